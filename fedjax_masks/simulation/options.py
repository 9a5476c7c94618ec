"""The check for options whose values may differ between runs of one program."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_masks.core.algorithm import FederatedAlgorithm, Round, State, Task
from fedjax_masks.simulation import arrays
from fedjax_masks.simulation.client import Setting
from fedjax_masks.simulation.lanes import Lanes
from fedjax_masks.simulation.plan import parse_plan
from fedjax_masks.simulation.round import round_step
from fedjax_masks.simulation.tracing import trace_client


def can_trace(
    make_algorithm: Callable[[Mapping[str, Any]], FederatedAlgorithm],
    task: Task,
    names: Sequence[str],
    *,
    cohort: int,
) -> bool:
    """Whether an algorithm takes traced values for options; an ``if`` on a value is a reason against."""
    if not names:
        return True
    examples, scalar = arrays.train_examples(task), jax.ShapeDtypeStruct((), jnp.float32)
    key, plan = jax.random.key(0), parse_plan("scan,mesh:1", cohort=cohort)
    lanes = Lanes(*[jax.ShapeDtypeStruct((cohort,), jnp.int32)] * len(Lanes._fields))

    def simulate(values: Mapping[str, Any], state: State, examples: arrays.Examples, lanes: Lanes) -> Any:
        """A round, and one prediction of each model."""
        algorithm = make(values)
        round = Round(key, jnp.int32(0))
        state, report = round_step(Setting(algorithm, plan, capacity), state, examples, lanes, round)
        client = jax.tree.map(lambda a: a[0], state.clients)
        models = algorithm.predict.items()
        logits = [f(state.server, None if n == "global" else client, examples.inputs[:1]) for n, f in models]
        return report, logits

    values, capacity = dict.fromkeys(names, scalar), arrays.capacity(task)
    try:
        make, shapes = trace_client(make_algorithm, values, task, key, examples)
        jax.eval_shape(simulate, values, shapes.state, examples, lanes)
    except jax.errors.JAXTypeError:
        return False
    return True
