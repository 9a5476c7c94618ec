"""Times a round of the masked form of a model against a round of its compacted form."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
from common import markdown
from mpfl_models import BATCH, compacted, make_model, optimizer, smallest_pruned

import fedjax_masks as fm


def timing_table(turns: int) -> str:
    """A table in Markdown: median times of a round in both forms and their ratio, by model and share pruned.

    Args:
      turns: The number of timed rounds of each form; the forms take turns.
    """
    task = fm.load_task("digits", clients=10)  # only the number of classes and the clients' sizes matter
    task = replace(task, inputs=np.repeat(np.repeat(task.inputs, 4, 1), 4, 2)[:, 2:30, 2:30])
    rows = []
    for name, model in {"LeNet 10-20-64": make_model(task), "LeNet 20-50-500": fm.models.lenet(task)}.items():
        for share in (0.5, 0.9):
            params = model.init(jax.random.key(0))
            filters = smallest_pruned(model, params, share)
            masked = fm.masked_fedavg(model, optimizer(), filters=filters, prune_bias=True, batch_size=BATCH)
            small, _ = compacted(model, params, filters)
            calls = [
                _rounds(form, task) for form in (masked, fm.fedavg(small, optimizer(), batch_size=BATCH))
            ]
            pairs = [[call() for call in calls] for _ in range(turns)]
            milliseconds = [f"{1e3 * statistics.median(column):.0f}" for column in zip(*pairs)]
            ratio = statistics.median(a / b for a, b in pairs)
            rows.append([name, f"{100 * share:.0f}", *milliseconds, f"{ratio:.2f}"])
    times = ["masked round, ms", "compacted round, ms", "ratio, median of pairs"]
    return markdown(["model", "filters pruned, %", *times], rows)


def _rounds(algorithm: fm.FederatedAlgorithm, task: fm.Task) -> Callable[[], float]:
    """A function that runs one more round and returns its seconds."""
    simulation = fm.make_simulation(algorithm, task, cohort=task.num_clients, chunk=1)
    carry = [simulation.run(simulation.init(), 0, 1)[0]]

    def one_round() -> float:
        start = time.perf_counter()
        carry[0], _ = simulation.run(carry[0], 1, 1)
        return time.perf_counter() - start

    return one_round
