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
    """Draws a range of accuracies along a cost; draws nothing where all values are NaN."""
    if np.isfinite(low).any():
        low, high = np.clip((low, high), 0, 1)
        ax.fill_between(x, 100 * low, 100 * high, color=color, alpha=0.13, linewidth=0)


def whisker(ax: "Axes", x: float, mean: float, half: float, color: str, offset: float) -> None:
    """Draws an interval as a vertical bar, moved sideways by an offset in points."""
    from fedjax_masks.analysis.plotting import ScaledTranslation

    if np.isfinite(half):
        shift = ScaledTranslation(offset / 72, 0, ax.figure.dpi_scale_trans)
        ends = (100 * max(mean - half, 0.0), 100 * min(mean + half, 1.0))
        ax.plot((x, x), ends, color=color, linewidth=1.1, alpha=0.75, transform=ax.transData + shift)


def level(ax: "Axes", curve: Curve, line_style: dict[str, Any]) -> None:
    """Draws the last accuracy of a run without costs as a level line; a log axis has no place for 0."""
    look = {key: line_style[key] for key in ("color", "linestyle")}
    ax.axhline(100 * curve.accuracy[-1], linewidth=1.2, **look)


def front(ax: "Axes", series: Sequence[Series], key: str, name: str) -> str:
    """Marks the Pareto front by rings and broad steps between them; returns a sentence for the caption."""
    best = front_of(series, key)
    visible = best.cost > 0
    if len(series) == 1 or not visible.any():
        return ""
    x, y = best.cost[visible], 100 * best.accuracy[visible]
    ax.step(x, y, where="post", color=FRONT, linewidth=5, zorder=0.9)
    ax.plot(x, y, "o", markersize=11, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.1)
    accuracy = ACCURACIES[key] + (f" on {name}" if name else "")
    return f" Rings: the Pareto front of {accuracy} and these bytes: {', '.join(best.labels)}."


def setup_end(ax: "Axes", series: Sequence[Series], key: str) -> bool:
    """Marks the end of each series with setup bytes included; returns whether any series has some."""
    has_setup = False
    for member in series:
        curve = mean_curve(member, key, BYTES)
        setup = sum(map(setup_total, member.runs)) / len(member.runs)
        if not curve.cost.size or not setup > 0 or counts_setup([member]):
            continue
        total, accuracy, has_setup = curve.cost[-1], 100 * curve.accuracy[-1], True
        ends = (total if total > 0 else setup, total + setup)  # a log axis has no 0
        ax.plot(ends, (accuracy, accuracy), color=member.color, linestyle=":", linewidth=1.2)
        ax.plot(ends[1], accuracy, "*", color=member.color, markersize=_STAR, markerfacecolor="none")
    return has_setup


def setup_key() -> tuple[Any, str]:
    """The entry of a legend for the marks of :func:`setup_end`."""
    key = line(INK, ":", "*")
    key.set(markersize=_STAR, markerfacecolor="none")
    return key, "with setup"
