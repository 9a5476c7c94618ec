"""Who takes part in a round: drawn on the host, so that the compiled program only trains."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np

from fedjax_masks.core.algorithm import FederatedAlgorithm, Task, every_round
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.returns import name_of
from fedjax_masks.simulation.mapping import Rows, lay_out
from fedjax_masks.simulation.plan import Plan


def draw_cohort(
    seed: int, index: int, num_clients: int, cohort: int, candidates: np.ndarray | None = None
) -> np.ndarray:
    """Draws ``int32[cohort]`` client ids for round ``index``, uniformly without replacement.

    >>> sorted(draw_cohort(0, 3, num_clients=4, cohort=4).tolist())
    [0, 1, 2, 3]
    """
    source = num_clients if candidates is None else candidates
    return np.random.default_rng([seed, index]).choice(source, cohort, replace=False).astype(np.int32)


def select_cohorts(
    rounds: Iterable[int], seed: int, cohort: int, num_clients: int, algorithm: FederatedAlgorithm
) -> np.ndarray:
    """Who takes part in some rounds: ``int32[rounds, cohort]``.

    Raises:
      UserError: The algorithm selects something else than distinct clients, as many as the cohort has, or
        asks for a draw that there cannot be.
    """
    name = f"select={name_of(algorithm.schedule.select)}"

    @cache  # an algorithm may ask for all earlier cohorts, in every round
    def of_all(index: int) -> np.ndarray:
        return draw_cohort(seed, index, num_clients, cohort)

    def draw(index: int, candidates: np.ndarray | None = None) -> np.ndarray:
        if not isinstance(index, (int, np.integer)) or index < 0:
            raise UserError(f"{name}: must draw for a round, an integer of 0 or more, and not for {index!r}")
        if candidates is None:
            return of_all(int(index))
        some = _distinct(candidates, num_clients)
        if len(some) < cohort:
            raise UserError(
                f"{name}: must draw among {cohort} distinct clients, the cohort, or more of {num_clients}, "
                f"and does not for round {index}; a client is an integer from 0"
            )
        return draw_cohort(seed, int(index), num_clients, cohort, some)

    def select(index: int) -> np.ndarray:
        ids = _distinct(algorithm.schedule.select(index, draw), num_clients)
        if len(ids) != cohort:
            raise UserError(
                f"{name}: must return {cohort} distinct clients, the cohort, of {num_clients}, each an "
                f"integer from 0, and does not in round {index}; `draw(index, candidates)` does"
            )
        return ids

    return np.stack([select(index) for index in rounds])


def _distinct(ids: Any, num_clients: int) -> np.ndarray:
    """Ids of distinct clients as ``int32[n]``; empty for anything else.

    >>> _distinct([2, 0], 3).tolist(), _distinct([0.5, 1], 3).tolist(), _distinct(None, 3).tolist()
    ([2, 0], [], [])
    """
    try:
        found = np.asarray(ids)
    except ValueError:  # lists of several lengths
        found = np.zeros(0)
    is_list = found.ndim == 1 and found.dtype.kind in "iu"
    if is_list and len(np.unique(found)) == len(found) and ((found >= 0) & (found < num_clients)).all():
        return found.astype(np.int32)
    return np.zeros(0, np.int32)


def check_selection(
    algorithm: FederatedAlgorithm, rounds: range, cohorts: np.ndarray, again: Callable[[range], np.ndarray]
) -> None:
    """Raises UserError where an algorithm selects others for the same rounds when it is asked again.

    Cohorts are drawn ahead of their rounds, and again after a resume, so that a selection that goes by
    what has happened since would silently go by something older.

    Args:
      algorithm: The algorithm.
      rounds: Some rounds.
      cohorts: ``int32[rounds, ...]``: who was selected for them.
      again: ``(rounds) -> int32[rounds, ...]``: selects once more.
    """
    if algorithm.schedule.select is every_round:
        return
    differs = (again(rounds) != cohorts).reshape(len(rounds), -1).any(axis=1)
    if differs.any():
        raise UserError(
            f"select={name_of(algorithm.schedule.select)}: must depend on its arguments alone, as cohorts "
            f"are drawn ahead; round {rounds[int(np.argmax(differs))]} has got two cohorts"
        )


def lay_out_rounds(cohorts: np.ndarray, task: Task, algorithm: FederatedAlgorithm, plan: Plan) -> Rows:
    """Lays out the cohorts of some rounds under the plan: ``int32[rounds, rows]`` each."""
    laid_out = [lay_out(ids, task.train, plan, algorithm.schedule)[0] for ids in cohorts]
    return jax.tree.map(lambda *rows: np.stack(rows), *laid_out)


def clients_of(cohorts: Sequence[Rows], task: Task) -> np.ndarray:
    """The ids of all clients in some cohorts, sorted, without padding."""
    ids = np.unique(np.concatenate([rows.ids.ravel() for rows in cohorts]))
    return ids[ids < task.num_clients]
