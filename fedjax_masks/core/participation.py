"""The host's side of an algorithm: the cohorts of rounds, and the tiers of clients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Draw(Protocol):
    """Draws a round's cohort, uniformly and without replacement: ``int32[cohort]``; runs on the host."""

    def __call__(self, index: int, candidates: np.ndarray | None = None) -> np.ndarray:
        """Draws the cohort of round ``index`` from the candidates, or from all clients.

        Every call with the same arguments returns the same cohort.
        """
        ...


def every_round(index: int, draw: Draw) -> np.ndarray:
    """Selects a new cohort for every round, from all clients."""
    return draw(index)


def one_tier(client_ids: np.ndarray) -> np.ndarray:
    """Puts all clients into tier 0."""
    return client_ids * 0


@dataclass(frozen=True)
class Schedule:
    """The host's side of an algorithm: participation, and clients that share a program.

    Attributes:
      select: ``(index, draw) -> int32[cohort]``: distinct clients that take part in round ``index``. The
        result may depend on the arguments alone, because cohorts are drawn ahead of their rounds.
      num_tiers: The number of tiers. Each may run a program of its own, by a ``lax.switch`` on ``data.tier``.
      tier_of: ``(client_ids) -> int32``, of the same shape, in ``[0, num_tiers)``.
      period: The number of rounds after which the algorithm repeats itself. The server's model can change its
        accuracy within a period, so summaries and reports average over one.
    """

    select: Callable[[int, Draw], np.ndarray] = every_round
    num_tiers: int = 1
    tier_of: Callable[[np.ndarray], np.ndarray] = one_tier
    period: int = 1


DEFAULT_SCHEDULE = Schedule()
"""A new cohort of all clients in every round, and one program for all of them."""
