"""Messages of a run to its user, and the criterion of divergence."""

import numpy as np

from fedjax_masks.algorithms.gate_report import SELECTIONS
from fedjax_masks.core.progress import duration
from fedjax_masks.simulation import RoundMetrics

_MAX_IDS = 5  # clients named in a message
_MAX_BROKEN = 10  # updates in a row
_MAX_LOSS = 1e6
_LONG_EVALUATION = 60.0  # seconds


def notes(metrics: RoundMetrics, first: int, *, is_last: bool = False) -> tuple[str, ...]:
    """Messages about a chunk of rounds, one line each.

    Args:
      metrics: The chunk's metrics.
      first: Rounds before the chunk.
      is_last: Whether the run ends with the chunk.
    """
    lines = []
    not_finite = _not_finite(metrics)
    if not_finite.any():
        rounds = first + 1 + np.flatnonzero(not_finite.any(1))
        when = f"round {rounds[0]}" if len(rounds) == 1 else f"rounds {rounds[0]}-{rounds[-1]}"
        arrivals = (~_missed(metrics))[rounds[0] - first - 1 : rounds[-1] - first].sum()
        lines.append(
            f"{when}: {not_finite.sum()} of {arrivals} updates left out of the merge: not finite, or huge; "
            f"{_clients(np.unique(metrics.ids[not_finite]))}"
        )
    if first == 0 and "flip_fraction" in metrics.train and metrics.mean("flip_fraction")[0] == 0:
        lines.append(
            "round 1: no bit of any mask flipped, so nothing is learned; "
            "raise the scores' learning rate or lower their scale"
        )
    if is_last and (layers := _constant_gates(metrics)):
        lines.append(
            f"round {first + len(metrics.ids)}: the gates of {', '.join(layers)} keep the same channels for "
            "every image of a client, as a smaller net does; set algorithm.saliency='mean', or choose a "
            "model with normalization"
        )
    return tuple(lines)


def cycle_note(eval_every: int, period: int, rounds: int) -> str | None:
    """A message where all evaluations are of the same round of an algorithm's cycle.

    Args:
      eval_every: Rounds between two evaluations.
      period: The algorithm's period, in rounds.
      rounds: Rounds of the run.

    >>> cycle_note(6, 5, 100) is None
    True
    """
    if period == 1 or eval_every % period or rounds <= eval_every:
        return None
    return (
        f"eval_every={eval_every}: every evaluation is of the same round of the algorithm's cycle of "
        f"{period} rounds; with {eval_every + 1}, accuracies at the end are means over a cycle"
    )


def evaluation_note(seconds: float, rounds_seconds: float) -> str | None:
    """A message where an evaluation takes minutes, and longer than the rounds before it.

    Args:
      seconds: Seconds of the evaluation.
      rounds_seconds: Seconds of the rounds since the evaluation before.

    >>> evaluation_note(5.0, 1.0) is None
    True
    """
    if seconds < _LONG_EVALUATION or seconds < rounds_seconds:
        return None
    return (
        f"an evaluation takes {duration(seconds)}, and the rounds before it {duration(rounds_seconds)}; "
        "a smaller eval_clients or data.test_per_client makes it shorter"
    )


def _constant_gates(metrics: RoundMetrics) -> list[str]:
    """The layers with one selection of channels for all images of each client, in the chunk's last round."""
    trained = metrics.trained[-1]
    counts = {name: values[-1][trained] for name, values in metrics.train.items()}
    return [
        name.removeprefix(SELECTIONS)
        for name, values in counts.items()
        if name.startswith(SELECTIONS) and values.size and (values == 1).all()
    ]


def count_broken(count: int, metrics: RoundMetrics) -> int:
    """The number of updates in a row, up to the end of a chunk, that were not finite.

    A round in which at least one client trained resets the number, since the updates of a round have no
    order. A round from which no update arrived does not change it.

    Args:
      count: The number at the start of the chunk.
      metrics: The chunk's metrics.
    """
    for not_finite, has_trained in zip(_not_finite(metrics), metrics.trained):
        count = 0 if has_trained.any() else count + int(not_finite.sum())
    return count


def is_diverged(count: int, clients_seen: int, loss: float | None) -> bool:
    """Whether a run has diverged; a few hostile clients, or clients with broken data, do not suffice.

    Args:
      count: The result of :func:`count_broken`.
      clients_seen: The number of clients that have trained so far.
      loss: The last round's training loss; None without one.

    >>> is_diverged(3, 5, 0.3), is_diverged(10, 5, None), is_diverged(3, 0, None), is_diverged(0, 5, 1e9)
    (False, True, True, True)
    """
    return count >= _MAX_BROKEN or (count > 0 and clients_seen == 0) or (loss or 0.0) > _MAX_LOSS


def _missed(metrics: RoundMetrics) -> np.ndarray:
    """Whether a client's update did not arrive in time: ``bool[rounds, cohort]``."""
    none = np.zeros_like(metrics.dropped)
    return np.any([metrics.train.get(name, none) > 0 for name in ("away", "late", "lost")], axis=0)


def _not_finite(metrics: RoundMetrics) -> np.ndarray:
    """Whether an update arrived in time and was left out of the merge: ``bool[rounds, cohort]``."""
    return metrics.dropped & ~_missed(metrics)


def _clients(ids: np.ndarray) -> str:
    """The first clients by id, and the number of further ones."""
    more = f", and {len(ids) - _MAX_IDS} more" if len(ids) > _MAX_IDS else ""
    return f"client{'s' * (len(ids) > 1)} {', '.join(map(str, ids[:_MAX_IDS]))}{more}"
