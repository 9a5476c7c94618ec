"""Options of an algorithm whose values may differ between runs of one program."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_masks.core.algorithm import FederatedAlgorithm, Round, State, Task
from fedjax_masks.simulation import arrays
from fedjax_masks.simulation.mapping import Rows
from fedjax_masks.simulation.plan import parse_plan
from fedjax_masks.simulation.round import Setting, round_step
from fedjax_masks.simulation.tracing import trace_client


def can_trace(
    make_algorithm: Callable[[Mapping[str, Any]], FederatedAlgorithm],
    task: Task,
    names: Sequence[str],
    *,
    cohort: int,
) -> bool:
    """Whether an algorithm takes traced values for options; not if it looks at them, as ``if`` does."""
    if not names:
        return True
    examples, scalar = arrays.train_examples(task), jax.ShapeDtypeStruct((), jnp.float32)
    key, plan = jax.random.key(0), parse_plan("scan,mesh:1", cohort=cohort)
    rows = Rows(*[jax.ShapeDtypeStruct((cohort,), jnp.int32)] * len(Rows._fields))

    def everything(values: Mapping[str, Any], state: State, examples: arrays.Examples, rows: Rows) -> Any:
        algorithm = make(values)
        round = Round(key, jnp.int32(0))
        state, report = round_step(Setting(algorithm, plan, capacity), state, examples, rows, round)
        client = jax.tree.map(lambda a: a[0], state.clients)
        models = algorithm.predict.items()
        logits = [f(state.server, None if n == "global" else client, examples.inputs[:1]) for n, f in models]
        return report, logits

    values, capacity = dict.fromkeys(names, scalar), arrays.capacity(task)
    try:
        make, shapes = trace_client(make_algorithm, values, task, key, examples)
        jax.eval_shape(everything, values, shapes.state, examples, rows)
    except jax.errors.JAXTypeError:
        return False
    return True
