"""Significance of differences in accuracy: paired t-tests over seeds, corrected by Holm's method."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t as student

from fedjax_masks.analysis.curves import ACCURACIES
from fedjax_masks.analysis.records import seeds_of, settled
from fedjax_masks.analysis.style import Series, by_data, sound
from fedjax_masks.analysis.table import Column, Row, Table
from fedjax_masks.analysis.wording import slug
from fedjax_masks.core.errors import unknown_name
from fedjax_masks.core.intervals import half_width

_LEVEL = 0.05
_FEW = 5


class Comparison(NamedTuple):
    """A comparison of a series with the reference, paired by seed.

    Attributes:
      seeds: The number of seeds that both series have.
      difference: The mean over seeds of the series' accuracy minus the reference's.
      half_width: Half the width of the 95 % confidence interval of the difference.
      p: The two-sided p-value of the paired t-test.
    """

    seeds: int
    difference: float
    half_width: float
    p: float


def significance_tables(series: Sequence[Series], baseline: str | None = None) -> list[Table]:
    """Tables of tests, one for each data set and kind of accuracy.

    A test needs two seeds that the series has in common with the reference. A series with a diverged run is
    not tested.

    Args:
      series: The series.
      baseline: The label or the algorithm of the reference, or ``"best"``; the default is FedAvg where it
        ran, else the best series.

    Raises:
      UserError: There is no such baseline.
    """
    names = {name for member in series for name in (member.label, member.algorithm)} | {"best"}
    if baseline is not None and baseline not in names:
        raise unknown_name("baseline", baseline, names)
    tables = [_table(members, key, baseline, name) for name, members in by_data(series) for key in ACCURACIES]
    return [table for table in tables if table is not None]


def paired(mine: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """The paired t-test of accuracies, one pair for each seed.

    Args:
      mine: Accuracies of the series.
      theirs: Accuracies of the reference, with the same seeds.

    >>> round(paired([0.9, 0.8, 0.85], [0.8, 0.75, 0.77]).p, 3)
    0.034
    """
    differences = [a - b for a, b in zip(mine, theirs, strict=True)]
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    ratio = abs(mean) / deviation * len(differences) ** 0.5 if deviation else math.inf
    p = 1.0 if mean == 0 else 2 * float(student.sf(ratio, len(differences) - 1))
    return Comparison(len(differences), mean, half_width(differences), p)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for multiple comparisons by Holm's method (1979), valid under any dependence.

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
    candidates = [member for member in sound(series) if len(scores[member.label]) > 1]
    reference = _reference(candidates, scores, baseline)
    if reference is None:
        return None
    theirs = scores[reference.label]
    others = [
        member
        for member in candidates
        if member is not reference and len(scores[member.label].keys() & theirs.keys()) > 1
    ]
    if not others:
        return None
    comparisons = [_compare(scores[member.label], theirs) for member in others]
    corrected = holm([comparison.p for comparison in comparisons])
    rows = [_row(*entry) for entry in zip(others, comparisons, corrected)]
    accuracy = ACCURACIES[key]
    return Table(
        slug(f"significance-{accuracy.split()[0]}", name),
        f"Difference from {reference.label} in {accuracy}" + (f" on {name}" if name else ""),
        _note(reference, rows, baseline),
        _COLUMNS,
        rows,
    )


def _reference(
    candidates: Sequence[Series], scores: dict[str, dict[str, float]], baseline: str | None
) -> Series | None:
    """The reference among series with several seeds; None where it is not among them."""
    if baseline is None and any(member.algorithm == "fedavg" for member in candidates):
        baseline = "fedavg"
    if baseline in (None, "best"):
        return max(candidates, key=lambda m: statistics.fmean(scores[m.label].values()), default=None)
    by_label = [member for member in candidates if member.label == baseline]
    by_algorithm = [member for member in candidates if member.algorithm == baseline]
    return next(iter(by_label or by_algorithm), None)


def _by_seed(member: Series, key: str) -> dict[str, float]:
    """The accuracy of each run at its end, by its seeds as text."""
    scores = {repr(seeds_of(run)): settled(run, key) for run in member.runs}
    return {seeds: value for seeds, value in scores.items() if value is not None}


def _compare(mine: dict[str, float], theirs: dict[str, float]) -> Comparison:
    shared = [seed for seed in mine if seed in theirs]
    return paired([mine[seed] for seed in shared], [theirs[seed] for seed in shared])


def _row(member: Series, comparison: Comparison, corrected: float) -> Row:
    direction = "better" if comparison.difference > 0 else "worse"
    return {
        "label": member.label,
        "algorithm": member.algorithm,
        **comparison._asdict(),
        "p_holm": corrected,
        "verdict": direction if corrected < _LEVEL else "no difference shown",
    }


def _note(reference: Series, rows: Sequence[Row], baseline: str | None) -> str:
    fewest = min(row["seeds"] for row in rows)
    significant = sum(row["p_holm"] < _LEVEL for row in rows)
    parts = [
        f"Last accuracy minus that of {reference.label}, paired by seed; ± is the 95 % confidence interval.",
        "Personal accuracies are of the clients that trained in each run; these may differ by algorithm.",
        f"Paired t-test; p is corrected by Holm's method for {len(rows)} comparison{'s' * (len(rows) > 1)}.",
        f"At p below {_LEVEL:g}, {significant} of {len(rows)} differ.",
    ]
    if fewest < _FEW:
        parts.append(
            f"With {fewest} seeds, tests detect only large and steady differences; "
            "smaller differences may exist."
        )
    if baseline == "best" or (baseline is None and reference.algorithm != "fedavg"):
        parts.append("The reference was chosen as the best series, which favors it.")
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
