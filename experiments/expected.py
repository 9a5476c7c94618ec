"""What a recipe expects of its runs, beside what came out.

    python experiments/expected.py experiments/fedskel-int8.toml experiments/results/fedskel_int8.jsonl

A recipe says so in its comments, with a class, a figure of the results, two settings of the sweep, and a
tolerance::

    # expected exact: bytes_up_total of fedskel-int8 / fedskel = 0.2529 +- 0.0001
    # expected trend: last_global_accuracy of fedskel-int8 - fedskel = 0.00 +- 0.03

What is exact must hold under every seed, a trend in the mean over them. Prints a table, and ends with 1 if
something is off.
"""

import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import by_setting, lines

_PREFIX = "# expected "
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_LINE = re.compile(rf"{_PREFIX}(exact|measured|trend): (\w+) of (\S+) ([-/]) (\S+) = {_NUMBER} \+- {_NUMBER}")


class Expected(NamedTuple):
    """One line of a recipe.

    Attributes:
      label: ``exact``, ``measured`` or ``trend``.
      figure: A key of the results.
      ours: A setting of the sweep.
      operator: ``-`` or ``/``.
      theirs: Another.
      value: What is expected of the difference or ratio.
      tolerance: How far off it may be.
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
    """Where a recipe's results lie, if there are any."""
    return recipe.parent / "results" / f"{recipe.stem.replace('-', '_')}.jsonl"


def read_expected(recipe: Path) -> list[Expected]:
    """The expectations in a recipe.

    Raises:
      ValueError: A line begins like one and is none.
    """
    found = []
    for line in recipe.read_text("utf-8").splitlines():
        if line.startswith(_PREFIX):
            match = _LINE.fullmatch(line)
            if match is None:
                raise ValueError(f"{recipe.name}: {line!r}; accepted is {_LINE.pattern}")
            found.append(Expected(*match.groups()[:5], *map(float, match.groups()[5:])))
    return found


def found_values(expected: Expected, runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """The difference or ratio: of every seed, or of a trend the mean over them."""
    settings = by_setting(runs)
    ours, theirs = (
        {run["seed"]: run[expected.figure] for run in settings[name]}
        for name in (expected.ours, expected.theirs)
    )
    pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    values = [a - b if expected.operator == "-" else a / b for a, b in pairs]
    return [statistics.fmean(values)] if expected.label == "trend" else values


def is_met(expected: Expected, runs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all of :func:`found_values` are within the tolerance."""
    return all(abs(value - expected.value) <= expected.tolerance for value in found_values(expected, runs))


def row(expected: Expected, runs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The cells of a table: class, what, expected, found, and whether that is as expected."""
    values = found_values(expected, runs)
    ends = dict.fromkeys(f"{value:.4f}" for value in (min(values), max(values)))
    verdict = "as expected" if is_met(expected, runs) else "off"
    wanted = f"{expected.value:g} ± {expected.tolerance:g}"
    return (expected.label, str(expected), wanted, " to ".join(ends), verdict)


def main(recipe: Path, results: Path) -> int:
    """Prints the table; returns whether anything is off."""
    runs, wanted = lines(results), read_expected(recipe)
    print("| class | what | expected | found | |\n|---|---|---|---|---|")
    for expected in wanted:
        print(f"| {' | '.join(row(expected, runs))} |")
    return int(not all(is_met(expected, runs) for expected in wanted))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
