"""Accuracy against what it costs: means over seeds, and the Pareto front."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_masks.analysis.records import RunRecord, column, total_bytes
from fedjax_masks.analysis.style import Series, sound
from fedjax_masks.core.intervals import half_width

# Others' own models have never been trained, so they say nothing about a method.
PERSONAL, GLOBAL = "personal_accuracy_mean_seen", "global_accuracy"
ACCURACIES = {PERSONAL: "personal accuracy", GLOBAL: "global accuracy"}


class Cost(NamedTuple):
    """Something that accuracy is bought with.

    Attributes:
      slug: For file names and keys.
      title: What it is, in a heading.
      label: Of an axis.
      values: At each evaluation of a run, since its start: ``float64[evaluations]``.
      unit: Behind a number; empty for a bare count, which gets a linear axis.
    """

    slug: str
    title: str
    label: str
    values: Callable[[RunRecord], np.ndarray]
    unit: str = ""


BYTES = Cost("bytes", "communication", "bytes sent in total, log scale", total_bytes, "B")
ROUNDS = Cost("rounds", "rounds", "rounds", lambda run: column(run, "round"))
FLOPS = Cost(
    "flops",
    "computation",
    "FLOPs of all clients, log scale",
    lambda run: column(run, "client_flops_total"),
    "FLOP",
)
SECONDS = Cost(
    "seconds",
    "simulated time",
    "simulated seconds, log scale",
    lambda run: column(run, "sim_seconds"),
    "s",
)
JOULES = Cost(
    "joules",
    "energy",
    "joules of all clients, log scale",
    lambda run: column(run, "energy_joules"),
    "J",
)
COSTS = (BYTES, ROUNDS, FLOPS, SECONDS, JOULES)


class Curve(NamedTuple):
    """A series' accuracy along a cost, at the rounds at which all its seeds were evaluated.

    Attributes:
      rounds: ``float64[points]``: rounds done.
      cost: ``float64[points]``: mean over seeds.
      accuracy: ``float64[points]``: mean over seeds, in [0, 1].
      half_width: ``float64[points]``: of the 95 % confidence interval; NaN of a single seed.
    """

    rounds: np.ndarray
    cost: np.ndarray
    accuracy: np.ndarray
    half_width: np.ndarray


def mean_curve(member: Series, key: str, cost: Cost) -> Curve:
    """The mean over a series' seeds.

    Args:
      member: The series.
      key: Which accuracy.
      cost: Along which cost.

    Returns:
      The curve; without points where the runs do not have the figures.
    """
    tables = []
    for run in member.runs:
        rows = zip(column(run, "round"), cost.values(run), column(run, key))
        tables.append({done: (spent, hit) for done, spent, hit in rows if np.isfinite([spent, hit]).all()})
    shared = sorted(set(tables[0]).intersection(*tables[1:]))
    points = np.array([[table[done] for table in tables] for done in shared]).reshape(
        len(shared), len(tables), 2
    )
    spent, hits = points[..., 0], points[..., 1]
    widths = np.array([half_width(row.tolist()) for row in hits], np.float64)
    return Curve(np.array(shared, np.float64), spent.mean(1), hits.mean(1), widths)


def have(series: Sequence[Series], key: str) -> bool:
    """Whether some run has a figure."""
    return any(np.isfinite(column(run, key)).any() for member in series for run in member.runs)


def pareto_front(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """The points that no other beats: none is at least as accurate for at most as much.

    Args:
      costs: One per point; less is better.
      accuracies: One per point; more is better.

    Returns:
      Indices of the front, by ascending cost; of equal points the first.

    >>> pareto_front([1.0, 2.0, 3.0, 3.0], [0.5, 0.4, 0.7, 0.6])
    [0, 2]
    """
    front, best = [], -np.inf
    for index in np.lexsort((-np.asarray(accuracies), np.asarray(costs))):
        if accuracies[index] > best:
            front.append(int(index))
            best = accuracies[index]
    return front


class Front(NamedTuple):
    """The series that no other beats, by their last evaluations.

    Attributes:
      cost: ``float64[points]``, ascending.
      accuracy: ``float64[points]``, ascending.
      labels: Who they are, from the cheapest on.
    """

    cost: np.ndarray
    accuracy: np.ndarray
    labels: tuple[str, ...]


def front_of(series: Sequence[Series], key: str, cost: Cost = BYTES) -> Front:
    """The Pareto front of all that the series spent and what they reached by it, means over seeds.

    A series of which a run diverged is not on it.
    """
    curves = {member.label: mean_curve(member, key, cost) for member in sound(series)}
    ends = {label: (c.cost[-1], c.accuracy[-1]) for label, c in curves.items() if c.cost.size}
    costs, accuracies = np.array(list(ends.values()), np.float64).reshape(-1, 2).T
    front = pareto_front(costs.tolist(), accuracies.tolist())
    return Front(costs[front], accuracies[front], tuple(list(ends)[index] for index in front))
