"""Who takes part in a round: drawn on the host, so that the compiled program only trains."""

from collections.abc import Iterable
from functools import cache

import jax
import numpy as np

from fedjax_masks.algorithm import FederatedAlgorithm, Task
from fedjax_masks.simulation.layout import Rows, lay_out
from fedjax_masks.simulation.plan import Plan


def draw_cohort(
    seed: int, index: int, num_clients: int, cohort: int, among: np.ndarray | None = None
) -> np.ndarray:
    """Draws ``int32[cohort]`` client ids for round ``index``, uniformly without replacement.

    >>> sorted(draw_cohort(0, 3, num_clients=4, cohort=4).tolist())
    [0, 1, 2, 3]
    """
    source = num_clients if among is None else among
    return np.random.default_rng([seed, index]).choice(source, cohort, replace=False).astype(np.int32)


def lay_out_rounds(
    rounds: Iterable[int], seed: int, cohort: int, task: Task, algorithm: FederatedAlgorithm, plan: Plan
) -> Rows:
    """Draws the cohorts of some rounds and lays them out under the plan: ``int32[rounds, rows]`` each."""

    @cache  # an algorithm may ask for all earlier cohorts, in every round
    def of_all(index: int) -> np.ndarray:
        return draw_cohort(seed, index, task.num_clients, cohort)

    def draw(index: int, among: np.ndarray | None = None) -> np.ndarray:
        return of_all(index) if among is None else draw_cohort(seed, index, task.num_clients, cohort, among)

    cohorts = [algorithm.select(index, draw) for index in rounds]
    laid_out = [lay_out(ids, task.train, plan, algorithm.tiers)[0] for ids in cohorts]
    return jax.tree.map(lambda *rows: np.stack(rows), *laid_out)


def clients_of(cohorts: Rows, task: Task) -> np.ndarray:
    """The ids of all clients in some cohorts, sorted, without padding."""
    ids = np.unique(cohorts.ids)
    return ids[ids < task.num_clients]
