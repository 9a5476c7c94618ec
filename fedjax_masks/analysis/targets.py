"""Costs of reaching a target accuracy: rounds, bytes, FLOPs, simulated seconds, joules."""

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
    """Tables of costs, one for each data set and kind of accuracy.

    Args:
      series: The series.
      target: The accuracy to reach, in (0, 1]; the default is :func:`common_target`.

    Raises:
      UserError: The target is out of range.
    """
    if target is not None and not 0 < target <= 1:
        raise UserError(f"target={target:g}: must be above 0 and at most 1; name an accuracy such as 0.8")
    return [
        _table(members, key, target, name)
        for name, members in by_data(series)
        for key in ACCURACIES
        if have(sound(members), key)
    ]


def common_target(series: Sequence[Series], key: str) -> float:
    """A target within reach: 95 % of the accuracy that at least half of the series reach, in whole percent.

    Series with a diverged run do not count.

    Args:
      series: The series; some have the accuracy.
      key: The key of the accuracy.
    """
    curves = [mean_curve(member, key, ROUNDS) for member in sound(series)]
    best = sorted(float(curve.accuracy.max()) for curve in curves if curve.accuracy.size)
    common = best[len(best) // 2] if best else 0.0
    return max(math.floor(100 * _SHARE * common + 1e-9), 1) / 100


def cost_of_target(run: RunRecord, key: str, target: float, cost: Cost) -> float | None:
    """The cost of a run up to the first evaluation that reaches a target; None without such an evaluation.

    Args:
      run: The run.
      key: The key of the accuracy.
      target: The accuracy to reach.
      cost: The cost.
    """
    hits = np.flatnonzero(column(run, key) >= target)
    values = cost.values(run)
    return float(values[hits[0]]) if hits.size and np.isfinite(values[hits[0]]) else None


def _table(series: Sequence[Series], key: str, target: float | None, name: str) -> Table:
    aim = common_target(series, key) if target is None else target
    rows = [_row(member, key, aim) for member in series if have([member], key)]
    columns = [
        Column(_TITLES[cost.slug], _text(cost), cost.slug, min)
        for cost in (ROUNDS, *(cost for cost in COSTS if cost is not ROUNDS))
        if cost is ROUNDS or any(row[cost.slug] is not None for row in rows)
    ]
    accuracy = ACCURACIES[key]
    return Table(
        slug(f"target-{accuracy.split()[0]}", name),
        f"To {100 * aim:g} % {accuracy}" + (f" on {name}" if name else ""),
        _note(aim, accuracy, target is None, rows),
        columns,
        rows,
    )


def _row(member: Series, accuracy: str, target: float) -> Row:
    """Mean costs over seeds; None where a seed missed the target, as the other seeds have lower costs."""
    row: Row = {"label": member.label, "algorithm": member.algorithm, "target": target}
    costs = {
        cost.slug: [cost_of_target(run, accuracy, target, cost) for run in member.runs] for cost in COSTS
    }
    row |= {"seeds": len(member.runs), "reached": sum(value is not None for value in costs["rounds"])}
    if not sound([member]):
        empty = dict.fromkeys(key for slug in costs for key in (slug, f"{slug}_ci95"))
        return row | {"reached": 0, "diverged": 1} | empty
    row["diverged"] = 0
    for key, values in costs.items():
        numbers = [value for value in values if value is not None]
        complete = len(numbers) == len(values)
        width = half_width(numbers) if complete else math.nan
        row[key] = sum(numbers) / len(numbers) if complete else None
        row[f"{key}_ci95"] = width if width == width else None
    return row


def _text(cost: Cost) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        mean, width = row[cost.slug], row[f"{cost.slug}_ci95"]
        if row["diverged"]:
            return DIVERGED
        if mean is None:
            return _missing(row) if row["reached"] < row["seeds"] else NOT_APPLICABLE
        if not cost.unit:
            return f"{mean:.0f}" if not width else f"{mean:.0f} ± {width:.0f}"
        return si(mean, cost.unit)

    return text


def _missing(row: Row) -> str:
    """A cell of a series of which some seeds, or all, missed the target."""
    return f"{row['reached']} of {row['seeds']} seeds" if row["reached"] else "not reached"


def _note(target: float, accuracy: str, is_default: bool, rows: Sequence[Row]) -> str:
    parts = [f"Costs up to the first evaluation with at least {100 * target:g} % {accuracy}."]
    if accuracy.startswith("personal"):
        parts.append("Personal accuracies are of the clients that had trained by then.")
    if is_default:
        parts.append(
            "The target is 95 % of the accuracy that at least half of the series reach; --target sets "
            "another."
        )
    if any(row["seeds"] > 1 for row in rows):
        parts.append("Means over seeds, only where all seeds reached the target; ± as above.")
    return " ".join(parts)
