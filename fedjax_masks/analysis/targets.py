"""What it costs to reach an accuracy: rounds, bytes, and whatever else was counted."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from fedjax_masks.analysis.curves import ACCURACIES, COSTS, ROUNDS, Cost, have, mean_curve
from fedjax_masks.analysis.records import RunRecord, column
from fedjax_masks.analysis.style import Series, by_data, sound
from fedjax_masks.analysis.table import Column, Row, Table
from fedjax_masks.analysis.wording import DIVERGED, NOT_APPLICABLE, si, slug
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.intervals import half_width

_SHARE = 0.95
_TITLES = {
    "bytes": "bytes in total",
    "rounds": "rounds",
    "flops": "FLOPs of all clients",
    "seconds": "simulated seconds",
    "joules": "joules of all clients",
}


def target_tables(series: Sequence[Series], target: float | None = None) -> list[Table]:
    """One table for each kind of accuracy that some run has, and for each data set.

    Args:
      series: The series.
      target: The accuracy to reach, in (0, 1]; by default :func:`common_target`.

    Raises:
      ValueError: The target is out of range.
    """
    if target is not None and not 0 < target <= 1:
        raise UserError(f"target={target:g}: accepted is a share above 0 and at most 1, as in 0.8")
    return [
        _table(members, key, target, name)
        for name, members in by_data(series)
        for key in ACCURACIES
        if have(sound(members), key)
    ]


def common_target(series: Sequence[Series], key: str) -> float:
    """95 % of the mean accuracy that at least half of the series reach, cut to whole percents.

    Series of which a run diverged do not count.

    Args:
      series: The series, of which some have the accuracy.
      key: Which accuracy.
    """
    curves = [mean_curve(member, key, ROUNDS) for member in sound(series)]
    best = sorted(float(curve.accuracy.max()) for curve in curves if curve.accuracy.size)
    common = best[len(best) // 2] if best else 0.0
    return max(math.floor(100 * _SHARE * common + 1e-9), 1) / 100


def cost_of_target(run: RunRecord, key: str, target: float, cost: Cost) -> float | None:
    """What a run had spent at the first evaluation at which it reached the target; None if it never did."""
    hits = np.flatnonzero(column(run, key) >= target)
    spent = cost.values(run)
    return float(spent[hits[0]]) if hits.size and np.isfinite(spent[hits[0]]) else None


def _table(series: Sequence[Series], key: str, target: float | None, name: str) -> Table:
    aim = common_target(series, key) if target is None else target
    rows = [_row(member, key, aim) for member in series if have([member], key)]
    shown = [
        Column(_TITLES[cost.slug], _text(cost), cost.slug, min)
        for cost in (ROUNDS, *(cost for cost in COSTS if cost is not ROUNDS))
        if cost is ROUNDS or any(row[cost.slug] is not None for row in rows)
    ]
    what = ACCURACIES[key]
    return Table(
        slug(f"target-{what.split()[0]}", name),
        f"To {100 * aim:g} % {what}" + (f" on {name}" if name else ""),
        _note(aim, what, target is None, rows),
        shown,
        rows,
    )


def _row(member: Series, accuracy: str, target: float) -> Row:
    """Means over the seeds that got there; none where a seed did not, as it would flatter."""
    row: Row = {"label": member.label, "algorithm": member.algorithm, "target": target}
    spent = {
        cost.slug: [cost_of_target(run, accuracy, target, cost) for run in member.runs] for cost in COSTS
    }
    row |= {"seeds": len(member.runs), "reached": sum(value is not None for value in spent["rounds"])}
    if not sound([member]):
        return (
            row
            | {"reached": 0, "diverged": 1}
            | dict.fromkeys(spent)
            | {f"{key}_ci95": None for key in spent}
        )
    row["diverged"] = 0
    for key, values in spent.items():
        known = [value for value in values if value is not None]
        complete = len(known) == len(values)
        width = half_width(known) if complete else math.nan
        row[key] = sum(known) / len(known) if complete else None
        row[f"{key}_ci95"] = width if width == width else None
    return row


def _text(cost: Cost) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        mean, width = row[cost.slug], row[f"{cost.slug}_ci95"]
        if row["diverged"]:
            return DIVERGED
        if mean is None:
            return _short_of_it(row) if row["reached"] < row["seeds"] else NOT_APPLICABLE
        if not cost.unit:
            return f"{mean:.0f}" if not width else f"{mean:.0f} ± {width:.0f}"
        return si(mean, cost.unit)

    return text


def _short_of_it(row: Row) -> str:
    return f"{row['reached']} of {row['seeds']} seeds" if row["reached"] else "not reached"


def _note(target: float, what: str, chosen: bool, rows: Sequence[Row]) -> str:
    parts = [f"What was spent up to the first evaluation with at least {100 * target:g} % {what}."]
    if what.startswith("personal"):
        parts.append("It is that of the clients that had trained by then.")
    if chosen:
        parts.append("The target is 95 % of what at least half of the compared reach; --target sets another.")
    if any(row["seeds"] > 1 for row in rows):
        parts.append("Means over seeds, only where all seeds got there; ± as above.")
    return " ".join(parts)
