"""The cohorts of rounds, drawn on the host ahead of the rounds."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache

import jax
import numpy as np

from fedjax_masks.core.algorithm import FederatedAlgorithm, Task, every_round
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.returns import name_of
from fedjax_masks.simulation.lanes import Lanes, lay_out
from fedjax_masks.simulation.plan import Plan


def draw_cohort(
    seed: int, index: int, num_clients: int, cohort: int, candidates: np.ndarray | None = None
) -> np.ndarray:
    """Draws the cohort of round ``index``, ``int32[cohort]``, uniformly without replacement.

    >>> sorted(draw_cohort(0, 3, num_clients=4, cohort=4).tolist())
    [0, 1, 2, 3]
    """
    source = num_clients if candidates is None else candidates
    # A generator per round, not one for the run: a resumed run draws the same cohorts.
    return np.random.default_rng([seed, index]).choice(source, cohort, replace=False).astype(np.int32)


def select_cohorts(
    rounds: Iterable[int], seed: int, cohort: int, num_clients: int, algorithm: FederatedAlgorithm
) -> np.ndarray:
    """Selects the cohorts of some rounds: ``int32[rounds, cohort]``.

    Raises:
      UserError: The algorithm does not select a cohort of distinct clients, or draws from less.
    """
    name = f"select={name_of(algorithm.schedule.select)}"

    @cache  # an algorithm may draw all earlier cohorts again in every round
    def draw_from_all(index: int) -> np.ndarray:
        return draw_cohort(seed, index, num_clients, cohort)

    def draw(index: int, candidates: np.ndarray | None = None) -> np.ndarray:
        if not isinstance(index, (int, np.integer)) or index < 0:
            raise UserError(f"{name}: must draw for a round, an integer of 0 or more, and not for {index!r}")
        if candidates is None:
            return draw_from_all(int(index))
        ids = _distinct(candidates, num_clients)
        if len(ids) < cohort:
            raise UserError(
                f"{name}: must draw from {cohort} distinct clients, the cohort, or more of {num_clients}, "
                f"and does not for round {index}; a client is an integer from 0"
            )
        return draw_cohort(seed, int(index), num_clients, cohort, ids)

    def select(index: int) -> np.ndarray:
        ids = _distinct(algorithm.schedule.select(index, draw), num_clients)
        if len(ids) != cohort:
            raise UserError(
                f"{name}: must return {cohort} distinct clients, the cohort, of {num_clients}, each an "
                f"integer from 0, and does not in round {index}; `draw(index, candidates)` does"
            )
        return ids

    return np.stack([select(index) for index in rounds])


def _distinct(ids: object, num_clients: int) -> np.ndarray:
    """The ids of distinct clients as ``int32[n]``; empty for anything else.

    >>> _distinct([2, 0], 3).tolist(), _distinct([0.5, 1], 3).tolist(), _distinct(None, 3).tolist()
    ([2, 0], [], [])
    """
    try:
        array = np.asarray(ids)
    except ValueError:  # lists of several lengths
        array = np.zeros(0)
    is_list = array.ndim == 1 and array.dtype.kind in "iu"
    if is_list and len(np.unique(array)) == len(array) and ((array >= 0) & (array < num_clients)).all():
        return array.astype(np.int32)
    return np.zeros(0, np.int32)


def check_selection(
    algorithm: FederatedAlgorithm, rounds: range, cohorts: np.ndarray, select: Callable[[range], np.ndarray]
) -> None:
    """Checks that a second selection of the same rounds gives the same cohorts.

    Cohorts are drawn ahead of their rounds, and again after a resume. A selection that depends on results of
    earlier rounds would silently depend on older results.

    Args:
      algorithm: The algorithm.
      rounds: Some rounds.
      cohorts: ``int32[rounds, ...]``: the cohorts of the first selection.
      select: ``(rounds) -> int32[rounds, ...]``: the selection.

    Raises:
      UserError: The cohorts of a round differ.
    """
    if algorithm.schedule.select is every_round:
        return
    differs = (select(rounds) != cohorts).reshape(len(rounds), -1).any(axis=1)
    if differs.any():
        raise UserError(
            f"select={name_of(algorithm.schedule.select)}: must depend on its arguments alone, as cohorts "
            f"are drawn ahead; round {rounds[int(np.argmax(differs))]} has got two cohorts"
        )


def lay_out_rounds(
    cohorts: np.ndarray, task: Task, algorithm: FederatedAlgorithm, plan: Plan
) -> Lanes[np.ndarray]:
    """Lays out the cohorts of some rounds under the plan: ``int32[rounds, lanes]`` each."""
    rounds = [lay_out(ids, task.train, plan, algorithm.schedule)[0] for ids in cohorts]
    return jax.tree.map(lambda *fields: np.stack(fields), *rounds)


def client_ids(cohorts: Sequence[Lanes[np.ndarray]], task: Task) -> np.ndarray:
    """The ids of all clients in some cohorts, sorted, without padding."""
    ids = np.unique(np.concatenate([lanes.ids.ravel() for lanes in cohorts]))
    return ids[ids < task.num_clients]
