"""Curves of accuracy against cost: means over seeds, and the Pareto front."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_masks.analysis.records import RunRecord, column, total_bytes
from fedjax_masks.analysis.style import Series, sound
from fedjax_masks.core.intervals import half_width

# The personal models of other clients were never trained, so their accuracy tells nothing about a method.
PERSONAL, GLOBAL = "personal_accuracy_mean_seen", "global_accuracy"
ACCURACIES = {PERSONAL: "personal accuracy", GLOBAL: "global accuracy"}


class Cost(NamedTuple):
    """A cost of training.

    Attributes:
      slug: A short name, for file names and keys.
      title: The name in a heading.
      label: The label of an axis.
      values: ``run -> float64[evaluations]``: the cost from the start of a run to each evaluation.
      unit: The unit; empty for a count, which has a linear axis.
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
      rounds: ``float64[points]``: completed rounds.
      cost: ``float64[points]``: mean cost over seeds.
      accuracy: ``float64[points]``: mean accuracy over seeds, in [0, 1].
      half_width: ``float64[points]``: half the width of the 95 % confidence interval; NaN of a single seed.
    """

    rounds: np.ndarray
    cost: np.ndarray
    accuracy: np.ndarray
    half_width: np.ndarray


def mean_curve(member: Series, key: str, cost: Cost) -> Curve:
    """The mean curve over a series' seeds.

    Args:
      member: The series.
      key: The key of the accuracy.
      cost: The cost.

    Returns:
      The curve; it has no points where the runs lack the figures.
    """
    tables = []
    for run in member.runs:
        rows = zip(column(run, "round"), cost.values(run), column(run, key))
        tables.append({index: pair for index, *pair in rows if np.isfinite(pair).all()})
    rounds = sorted(set(tables[0]).intersection(*tables[1:]))
    points = np.array([[table[index] for table in tables] for index in rounds]).reshape(
        len(rounds), len(tables), 2
    )
    costs, accuracies = points[..., 0], points[..., 1]
    widths = np.array([half_width(row.tolist()) for row in accuracies], np.float64)
    return Curve(np.array(rounds, np.float64), costs.mean(1), accuracies.mean(1), widths)


def have(series: Sequence[Series], key: str) -> bool:
    """Whether some run has finite values of a figure."""
    return any(np.isfinite(column(run, key)).any() for member in series for run in member.runs)


def pareto_front(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """The Pareto front: no other point is at least as accurate at no more cost.

    Args:
      costs: The cost of each point.
      accuracies: The accuracy of each point.

    Returns:
      Indices of the points on the front, by ascending cost; among equal points, the first.

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
    """The series on the Pareto front, by their last evaluations.

    Attributes:
      cost: ``float64[points]``: costs, ascending.
      accuracy: ``float64[points]``: accuracies, ascending.
      labels: Labels of the series, the cheapest first.
    """

    cost: np.ndarray
    accuracy: np.ndarray
    labels: tuple[str, ...]


def front_of(series: Sequence[Series], key: str, cost: Cost = BYTES) -> Front:
    """The Pareto front of final accuracies and total costs, means over seeds.

    A series with a diverged run is not on the front.

    Args:
      series: The series.
      key: The key of the accuracy.
      cost: The cost.
    """
    curves = {member.label: mean_curve(member, key, cost) for member in sound(series)}
    ends = {label: (c.cost[-1], c.accuracy[-1]) for label, c in curves.items() if c.cost.size}
    costs, accuracies = np.array(list(ends.values()), np.float64).reshape(-1, 2).T
    front = pareto_front(costs.tolist(), accuracies.tolist())
    return Front(costs[front], accuracies[front], tuple(list(ends)[index] for index in front))
