"""Marks on figures of accuracy: intervals, the Pareto front, ends with setup bytes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_masks.analysis.canvas import line
from fedjax_masks.analysis.curves import ACCURACIES, BYTES, Curve, front_of, mean_curve
from fedjax_masks.analysis.setup import counts_setup, setup_total
from fedjax_masks.analysis.style import FRONT, INK, Series

if TYPE_CHECKING:
    from fedjax_masks.analysis.plotting import Axes

_STAR = 9


def band(ax: "Axes", x: np.ndarray, low: np.ndarray, high: np.ndarray, color: str) -> None:
    """A range of accuracies along a cost; nothing where it is unknown."""
    if np.isfinite(low).any():
        low, high = np.clip((low, high), 0, 1)
        ax.fill_between(x, 100 * low, 100 * high, color=color, alpha=0.13, linewidth=0)


def whisker(ax: "Axes", x: float, mean: float, half: float, color: str, aside: float) -> None:
    """An interval as a bar, moved aside by so many points."""
    from fedjax_masks.analysis.plotting import ScaledTranslation

    if np.isfinite(half):
        moved = ScaledTranslation(aside / 72, 0, ax.figure.dpi_scale_trans)
        ends = (100 * max(mean - half, 0.0), 100 * min(mean + half, 1.0))
        ax.plot((x, x), ends, color=color, linewidth=1.1, alpha=0.75, transform=ax.transData + moved)


def level(ax: "Axes", curve: Curve, look: dict[str, Any]) -> None:
    """The last accuracy of a run that spent nothing: it has no place on a log axis."""
    ax.axhline(100 * curve.accuracy[-1], color=look["color"], linestyle=look["linestyle"], linewidth=1.2)


def front(ax: "Axes", series: Sequence[Series], key: str, name: str) -> str:
    """Marks the Pareto front: rings, joined by broad steps; returns what the caption says of it."""
    best = front_of(series, key)
    paid = best.cost > 0
    if len(series) == 1 or not paid.any():
        return ""
    x, y = best.cost[paid], 100 * best.accuracy[paid]
    ax.step(x, y, where="post", color=FRONT, linewidth=5, zorder=0.9)
    ax.plot(x, y, "o", markersize=11, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.1)
    what = ACCURACIES[key] + (f" on {name}" if name else "")
    return f" Rings: the Pareto front of {what} and these bytes: {', '.join(best.labels)}."


def setup_end(ax: "Axes", series: Sequence[Series], key: str) -> bool:
    """Marks each series' end as it were with what devices got before the first round; whether any did."""
    drawn = False
    for member in series:
        curve = mean_curve(member, key, BYTES)
        setup = sum(map(setup_total, member.runs)) / len(member.runs)
        if not curve.cost.size or not setup > 0 or counts_setup([member]):
            continue
        spent, accuracy, drawn = curve.cost[-1], 100 * curve.accuracy[-1], True
        ends = (spent if spent > 0 else setup, spent + setup)  # a log axis has no 0
        ax.plot(ends, (accuracy, accuracy), color=member.color, linestyle=":", linewidth=1.2)
        ax.plot(ends[1], accuracy, "*", color=member.color, markersize=_STAR, markerfacecolor="none")
    return drawn


def setup_key() -> tuple[Any, str]:
    """The entry of a legend for the marks of :func:`setup_end`."""
    key = line(INK, ":", "*")
    key.set(markersize=_STAR, markerfacecolor="none")
    return key, "with setup"
