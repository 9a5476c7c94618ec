"""Whether a difference in accuracy is more than the luck of seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy.stats import t as student

from fedjax_masks.analysis.curves import ACCURACIES
from fedjax_masks.analysis.records import last, seeds_of
from fedjax_masks.analysis.style import Series, by_data, sound
from fedjax_masks.analysis.table import Column, Row, Table
from fedjax_masks.analysis.wording import slug
from fedjax_masks.core.errors import unknown
from fedjax_masks.core.intervals import half_width

_LEVEL = 0.05
_FEW = 5


class Comparison(NamedTuple):
    """A series against the reference, seed by seed.

    Attributes:
      seeds: Seeds that both have.
      difference: Mean over seeds of the series' accuracy minus the reference's.
      half_width: Of its 95 % confidence interval.
      p: Two-sided p-value of the paired t-test.
    """

    seeds: int
    difference: float
    half_width: float
    p: float


def significance_tables(series: Sequence[Series], baseline: str | None = None) -> list[Table]:
    """One table for each data set and kind of accuracy of which several series have several common seeds.

    A series of which a run diverged is not tested.

    Args:
      series: The series.
      baseline: The label or the algorithm of the reference, or ``"best"``; by default FedAvg where
        it ran, else the best.

    Raises:
      ValueError: There is no such baseline.
    """
    known = {name for member in series for name in (member.label, member.algorithm)} | {"best"}
    if baseline is not None and baseline not in known:
        raise unknown("baseline", baseline, known)
    tables = [_table(members, key, baseline, name) for name, members in by_data(series) for key in ACCURACIES]
    return [table for table in tables if table is not None]


def paired(mine: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """The paired t-test of accuracies with the same seeds.

    >>> round(paired([0.9, 0.8, 0.85], [0.8, 0.75, 0.77]).p, 3)
    0.034
    """
    differences = [a - b for a, b in zip(mine, theirs, strict=True)]
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    ratio = abs(mean) / deviation * len(differences) ** 0.5 if deviation else math.inf
    p = 1.0 if mean == 0 else 2 * float(student.sf(ratio, len(differences) - 1))
    return Comparison(len(differences), mean, half_width(differences), p)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's method (1979), which holds whatever their dependence.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, floor = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        floor = max(floor, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = floor
    return corrected


def _table(series: Sequence[Series], key: str, baseline: str | None, name: str) -> Table | None:
    scores = {member.label: _by_seed(member, key) for member in series}
    able = [member for member in sound(series) if len(scores[member.label]) > 1]
    reference = _reference(able, scores, baseline)
    if reference is None:
        return None
    theirs = scores[reference.label]
    others = [m for m in able if m is not reference and len(scores[m.label].keys() & theirs.keys()) > 1]
    if not others:
        return None
    found = [_compare(scores[member.label], theirs) for member in others]
    corrected = holm([one.p for one in found])
    rows = [_row(*entry) for entry in zip(others, found, corrected)]
    what = ACCURACIES[key]
    return Table(
        slug(f"significance-{what.split()[0]}", name),
        f"Difference from {reference.label} in {what}" + (f" on {name}" if name else ""),
        _note(reference, rows, baseline),
        _COLUMNS,
        rows,
    )


def _reference(
    able: Sequence[Series], scores: dict[str, dict[Any, float]], baseline: str | None
) -> Series | None:
    """The series to compare with, if it has several seeds."""
    if baseline is None and any(member.algorithm == "fedavg" for member in able):
        baseline = "fedavg"
    if baseline in (None, "best"):
        return max(able, key=lambda m: statistics.fmean(scores[m.label].values()), default=None)
    named = [member for member in able if member.label == baseline]
    return next(iter(named or [member for member in able if member.algorithm == baseline]), None)


def _by_seed(member: Series, key: str) -> dict[Any, float]:
    """The last accuracy by what the run's seeds are."""
    found = {repr(seeds_of(run)): last(run, key) for run in member.runs}
    return {seeds: value for seeds, value in found.items() if value is not None}


def _compare(mine: dict[Any, float], theirs: dict[Any, float]) -> Comparison:
    shared = [seed for seed in mine if seed in theirs]
    return paired([mine[seed] for seed in shared], [theirs[seed] for seed in shared])


def _row(member: Series, found: Comparison, corrected: float) -> Row:
    direction = "better" if found.difference > 0 else "worse"
    return {
        "label": member.label,
        "algorithm": member.algorithm,
        **found._asdict(),
        "p_holm": corrected,
        "verdict": direction if corrected < _LEVEL else "no difference shown",
    }


def _note(reference: Series, rows: Sequence[Row], baseline: str | None) -> str:
    fewest = min(row["seeds"] for row in rows)
    shown = sum(row["p_holm"] < _LEVEL for row in rows)
    parts = [
        f"Last accuracy (personal: of the clients that trained in each run, which can be others for another "
        f"algorithm) minus that of {reference.label}, paired by "
        f"seed; ± is the 95 % confidence interval. "
        f"Paired t-test; p is corrected by Holm's method for {len(rows)} "
        f"comparison{'s' * (len(rows) > 1)}. At p below {_LEVEL:g}, {shown} of {len(rows)} differ."
    ]
    if fewest < _FEW:
        parts.append(
            f"With {fewest} seeds only large and steady differences can show: none shown does not mean none."
        )
    if baseline == "best" or (baseline is None and reference.algorithm != "fedavg"):
        parts.append("The reference was chosen for being the best, which flatters it.")
    return " ".join(parts)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


_COLUMNS = (
    Column(
        "difference, percentage points",
        lambda row: f"{100 * row['difference']:+.1f} ± {100 * row['half_width']:.1f}",
        "difference",
    ),
    Column("verdict", lambda row: row["verdict"], "verdict"),
    Column("p, corrected", lambda row: _p(row["p_holm"]), "p_holm"),
    Column("p, alone", lambda row: _p(row["p"]), "p"),
    Column("seeds in common", lambda row: str(row["seeds"]), "seeds"),
)
