"""Confidence intervals over seeds."""

import statistics
from collections.abc import Sequence

from scipy.stats import t as student


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % confidence interval of the mean, by Student's t; NaN for fewer than two values.

    >>> round(half_width([1.0, 2.0, 3.0]), 2)
    2.48
    """
    if len(values) < 2:
        return float("nan")
    return float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def interval(values: Sequence[float], digits: int = 1) -> str:
    """Mean and 95 % confidence interval as text; the value alone for one value, ``"n/a"`` for none.

    >>> interval([1.0, 2.0, 3.0])
    '2.0 ± 2.5'
    """
    if not values:
        return "n/a"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {half_width(values):.{digits}f}"


def surely_above(values: Sequence[float], bound: float) -> bool:
    """Whether the whole 95 % confidence interval of the mean lies above a bound.

    >>> surely_above([1.0, 2.0, 3.0], 0.0), surely_above([4.0, 5.0, 6.0], 0.0)
    (False, True)
    """
    return statistics.fmean(values) - half_width(values) > bound


def mean_over_period(rounds: Sequence[int], values: Sequence[float], period: int) -> float | None:
    """The mean of a figure over the last evaluations, one for each place in the period; None without any.

    Args:
      rounds: The rounds of the evaluations.
      values: The figure at each evaluation.
      period: The algorithm's period, in rounds.

    >>> mean_over_period([4, 6, 8, 10], [0.0, 0.5, 0.1, 0.7], period=1)
    0.7
    >>> mean_over_period([3, 6, 9, 12], [0.0, 0.5, 0.1, 0.75], period=2)  # an odd round and an even one
    0.425
    """
    last = {round % period: value for round, value in zip(rounds[-period:], values[-period:])}
    return statistics.fmean(last.values()) if last else None
