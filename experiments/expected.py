"""Expectations of a recipe beside its results.

    python experiments/expected.py experiments/fedskel-int8.toml experiments/results/fedskel_int8.jsonl

The comments of a recipe hold its expectations: a class, a key of the results, two settings of the sweep, and
the expected difference or ratio with a tolerance::

    # expected exact: bytes_up_total of fedskel-int8 / fedskel = 0.2529 +- 0.0001
    # expected trend: last_global_accuracy of fedskel-int8 - fedskel = 0.00 +- 0.03

An exact expectation must hold for every seed, a trend for the mean over the seeds. The script prints a table;
its exit code is 1 if an expectation does not hold.
"""

import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import by_setting, markdown, read_lines, result_file

_PREFIX = "# expected "
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_LINE = re.compile(rf"{_PREFIX}(exact|measured|trend): (\w+) of (\S+) ([-/]) (\S+) = {_NUMBER} \+- {_NUMBER}")


class Expectation(NamedTuple):
    """One expectation of a recipe.

    Attributes:
      label: ``exact``, ``measured`` or ``trend``.
      figure: A key of the results.
      ours: A setting of the sweep.
      operator: ``-`` or ``/``.
      theirs: Another setting.
      value: The expected difference or ratio.
      tolerance: The largest deviation from it.
    """

    label: str
    figure: str
    ours: str
    operator: str
    theirs: str
    value: float
    tolerance: float

    def __str__(self) -> str:
        return f"{self.figure} of {self.ours} {self.operator} {self.theirs}"


def results_of(recipe: Path) -> Path:
    """The path of a recipe's results, whether the file exists or not."""
    return result_file(f"{recipe.stem.replace('-', '_')}.jsonl")


def read_expected(recipe: Path) -> list[Expectation]:
    """The expectations in a recipe.

    Raises:
      ValueError: A line begins like an expectation and cannot be read.
    """
    expectations = []
    for line in recipe.read_text("utf-8").splitlines():
        if line.startswith(_PREFIX):
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError(f"{recipe.name}: line {line!r}: must match {_LINE.pattern}")
            label, figure, ours, operator, theirs, value, tolerance = match.groups()
            numbers = float(value), float(tolerance)
            expectations.append(Expectation(label, figure, ours, operator, theirs, *numbers))
    return expectations


def result_values(expectation: Expectation, runs: Sequence[dict[str, Any]]) -> list[float]:
    """The difference or ratio for every seed; for a trend, the mean over the seeds alone."""
    settings = by_setting(runs)
    ours, theirs = (
        {run["seed"]: run[expectation.figure] for run in settings[name]}
        for name in (expectation.ours, expectation.theirs)
    )
    pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    values = [a - b if expectation.operator == "-" else a / b for a, b in pairs]
    return [statistics.fmean(values)] if expectation.label == "trend" else values


def is_met(expectation: Expectation, runs: Sequence[dict[str, Any]]) -> bool:
    """Whether all of :func:`result_values` are within the tolerance."""
    values = result_values(expectation, runs)
    return all(abs(value - expectation.value) <= expectation.tolerance for value in values)


def row(expectation: Expectation, runs: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The cells of a table: class, figure, expected value, results, and the verdict."""
    values = result_values(expectation, runs)
    ends = dict.fromkeys(f"{value:.4f}" for value in (min(values), max(values)))
    verdict = "as expected" if is_met(expectation, runs) else "off"
    value = f"{expectation.value:g} ± {expectation.tolerance:g}"
    return (expectation.label, str(expectation), value, " to ".join(ends), verdict)


def main(recipe: Path, results: Path) -> int:
    """Prints the table; returns 1 if an expectation does not hold, else 0."""
    runs, expectations = read_lines(results), read_expected(recipe)
    print(markdown(["class", "figure", "expected", "result", ""], [row(e, runs) for e in expectations]))
    return int(not all(is_met(expectation, runs) for expectation in expectations))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
