"""Messages of a run for people, and signs that it diverges."""

import numpy as np

from fedjax_masks.simulation import RoundMetrics

_NAMED = 5
_SURE = 10
_HUGE_LOSS = 1e6


def notes(metrics: RoundMetrics, first: int) -> tuple[str, ...]:
    """Messages about a chunk of rounds, one line each.

    Args:
      metrics: Of the chunk.
      first: Rounds done before the chunk.
    """
    lines = []
    broken = _not_finite(metrics)
    if broken.any():
        rounds = first + 1 + np.flatnonzero(broken.any(1))
        when = f"round {rounds[0]}" if len(rounds) == 1 else f"rounds {rounds[0]}-{rounds[-1]}"
        returned = (~_excused(metrics))[rounds[0] - first - 1 : rounds[-1] - first].sum()
        lines.append(
            f"{when}: {broken.sum()} of {returned} updates left out of the merge: not finite, or huge; "
            f"{_clients(np.unique(metrics.ids[broken]))}"
        )
    if first == 0 and "flip_fraction" in metrics.train and metrics.mean("flip_fraction")[0] == 0:
        lines.append(
            "round 1: no bit of any mask flipped, so nothing is learned; "
            "raise the scores' learning rate or lower their scale"
        )
    return tuple(lines)


def count_broken(before: int, metrics: RoundMetrics) -> int:
    """Updates in a row, up to the end of a chunk, that were not finite.

    A round in which one client trained ends the row: the updates of a round have no order. A round
    from which no update came back leaves it as it is.

    Args:
      before: The same, at the start of the chunk.
      metrics: Of the chunk.
    """
    for broken, trained in zip(_not_finite(metrics), metrics.trained):
        before = 0 if trained.any() else before + int(broken.sum())
    return before


def is_diverged(broken: int, clients_seen: int, loss: float | None) -> bool:
    """Whether a run has diverged; a few hostile clients, or clients with broken data, are no reason.

    Args:
      broken: Of :func:`count_broken`.
      clients_seen: Clients that have ever trained.
      loss: The last round's training loss; None where there is none.

    >>> is_diverged(3, 5, 0.3), is_diverged(10, 5, None), is_diverged(3, 0, None), is_diverged(0, 5, 1e9)
    (False, True, True, True)
    """
    return broken >= _SURE or (broken > 0 and clients_seen == 0) or (loss or 0.0) > _HUGE_LOSS


def _excused(metrics: RoundMetrics) -> np.ndarray:
    """``bool[rounds, cohort]``: who returned nothing in time."""
    nobody = np.zeros_like(metrics.dropped)
    return np.any([metrics.train.get(name, nobody) > 0 for name in ("away", "late", "lost")], axis=0)


def _not_finite(metrics: RoundMetrics) -> np.ndarray:
    """``bool[rounds, cohort]``: whose update came back in time and was left out all the same."""
    return metrics.dropped & ~_excused(metrics)


def _clients(ids: np.ndarray) -> str:
    """The first of some clients by number, and how many more there are."""
    more = f", and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"client{'s' * (len(ids) > 1)} {', '.join(map(str, ids[:_NAMED]))}{more}"
