"""Rounds of FedSkel against whole rounds: ``fedjax-masks bench --workload fedskel-rounds``.

The net is ResNet-18 of a quarter of the published width, that of the recipe
``experiments/fedskel-resnet18-cifar10.toml``: speed, bytes and accuracy are known at one ratio on one net.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from fedjax_masks import models
from fedjax_masks.algorithms.fedskel import fedskel
from fedjax_masks.benchmarks import measure
from fedjax_masks.core.algorithm import PyTree, Task
from fedjax_masks.core.progress import activity
from fedjax_masks.data import synthetic_task
from fedjax_masks.models import Model
from fedjax_masks.simulation import make_simulation

CHANNELS = (16, 32, 64, 128)
RATIO = 0.2
_COHORT, _EXAMPLES, _BATCH = 5, 100, 10


def bench_skeleton_rounds(*, rounds: int, plan: str = "auto") -> dict[str, Any]:
    """Measures rounds in which clients train a skeleton against rounds in which they train the whole net.

    Args:
      rounds: The number of turns; at least 5 are measured.
      plan: The execution plan of the rounds.

    Returns:
      ``round_speedup``: the time of a round at ratio 1 over that at ratio 0.2, the median over the turns.
    """
    task = synthetic_task((32, 32, 3), 10, np.full(_COHORT, _EXAMPLES), test_per_client=1)
    model = models.resnet18(task, channels=CHANNELS)
    speedup = round_speedup(model, task, plan, ratio=RATIO, batch_size=_BATCH, turns=max(5, rounds))
    return {"device": measure.device(), "ratio": RATIO, "round_speedup": speedup}


def round_speedup(
    model: Model, task: Task, plan: str, *, ratio: float = 0.1, batch_size: int = 50, turns: int = 3
) -> float:
    """The time of an UpdateSkel round of all clients at ratio 1 over that at a ratio, in turns.

    Args:
      model: The model.
      task: The task, whose clients all take part.
      plan: The execution plan.
      ratio: The share of filters in a skeleton.
      batch_size: Examples per minibatch.
      turns: The number of measured rounds at each ratio.
    """

    def prepare(ratio: float) -> Callable[[], PyTree]:
        algorithm = fedskel(model, optax.sgd(0.01), batch_size=batch_size, ratios=(ratio,), updates=10**6)
        simulation = make_simulation(algorithm, task, cohort=task.num_clients, chunk=1, plan=plan)
        state, _ = simulation.run(simulation.init(), 0, 1)
        return measure.repeat(lambda state: simulation.run(state, 1, 1)[0], state)

    with activity("preparing rounds at two ratios"):
        calls = {value: prepare(value) for value in (ratio, 1.0)}
    times = measure.time_in_turns(calls, turns, title="rounds at two ratios")
    return measure.speedup(times[1.0], times[ratio])
