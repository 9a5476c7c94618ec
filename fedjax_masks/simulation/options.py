"""The check for options whose values may differ between runs of one program."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax_masks.core.algorithm import Round, State, Task
from fedjax_masks.simulation import arrays
from fedjax_masks.simulation.client import Setting
from fedjax_masks.simulation.lanes import Lanes, lane_shapes
from fedjax_masks.simulation.plan import parse_plan
from fedjax_masks.simulation.round import RoundReport, round_step
from fedjax_masks.simulation.tracing import MakeAlgorithm, Options, trace_client


def can_trace(
    make_algorithm: MakeAlgorithm,
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

    def simulate(
        options: Options, state: State, examples: arrays.Examples[jax.Array], lanes: Lanes[jax.Array]
    ) -> tuple[RoundReport, list[jax.Array]]:
        """A round, and one prediction of each model."""
        algorithm = make(options)
        round = Round(key, jnp.int32(0))
        state, report = round_step(Setting(algorithm, plan, capacity), state, examples, lanes, round)
        client = jax.tree.map(lambda a: a[0], state.clients)
        models = algorithm.predict.items()
        logits = [f(state.server, None if n == "global" else client, examples.inputs[:1]) for n, f in models]
        return report, logits

    options, capacity = dict.fromkeys(names, scalar), arrays.capacity(task)
    try:
        make, shapes = trace_client(make_algorithm, options, task, key, examples)
        jax.eval_shape(simulate, options, shapes.state, examples, lane_shapes(cohort))
    except jax.errors.JAXTypeError:
        return False
    return True
