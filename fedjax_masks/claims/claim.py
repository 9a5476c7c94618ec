"""What a row of the claims is, and where long runs have left their results."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

Label = Literal["exact", "measured", "trend"]
Verdict = Literal["met", "missed", "not reproducible here"]

LIVE = "computed just now"
_RESULTS = Path(__file__).parents[2] / "experiments" / "results"


class Claim(NamedTuple):
    """A published figure beside ours.

    Attributes:
      system: The algorithm.
      claim: What is claimed, and where.
      paper: The published figure, with its unit.
      ours: Our figure, or None where there is none.
      label: ``exact``: counted; ``measured``: timed, as a ratio, on one machine; ``trend``: an order of
        accuracies on the data at hand, with 95 % confidence intervals over seeds.
      verdict: ``met``, ``missed`` or ``not reproducible here``.
      command: What produces our figure.
      source: Where it was produced: just now, or the file, the commit and the machine.
    """

    system: str
    claim: str
    paper: str
    ours: str | None
    label: Label
    verdict: Verdict
    command: str
    source: str

    def as_json(self) -> dict[str, str | None]:
        """The fields by name; the label is the ``class``."""
        return {"class" if key == "label" else key: value for key, value in self._asdict().items()}


class Results(NamedTuple):
    """A committed file of results.

    Attributes:
      lines: Its JSON objects.
      command: What produced it.
      source: The file, the commit and the machine.
    """

    lines: Sequence[dict[str, Any]]
    command: str
    source: str


def counted(system: str, claim: str, paper: float, ours: float, unit: str, *, digits: int = 0) -> Claim:
    """A figure that is counted on the spot, and must be the published one to its last digit."""
    met = round(ours, digits) == paper
    command = "fedjax-masks claims"
    texts = [f"{value:,.{digits}f} {unit}".strip() for value in (paper, ours)]
    return Claim(system, claim, texts[0], texts[1], "exact", "met" if met else "missed", command, LIVE)


def from_results(
    system: str,
    claim: str,
    paper: str,
    label: Label,
    file: str,
    judge: Callable[[Sequence[dict[str, Any]]], tuple[str, bool]],
) -> Claim:
    """A figure from a committed file.

    Args:
      system: The algorithm.
      claim: What is claimed.
      paper: The published figure.
      label: Its class.
      file: The file's name under ``experiments/results``.
      judge: The file's lines to our figure, and whether it meets the claim.
    """
    found = results(file)
    if found is None:
        source = f"there is no finished experiments/results/{file} here"
        return Claim(system, claim, paper, None, label, "not reproducible here", "", source)
    ours, met = judge(found.lines)
    return Claim(system, claim, paper, ours, label, "met" if met else "missed", found.command, found.source)


def results(file: str) -> Results | None:
    """A finished file under ``experiments/results``, or None; there is none without the source tree."""
    path, provenance = _RESULTS / file, _RESULTS / "provenance.json"
    if not path.is_file() or not provenance.is_file():
        return None
    made = json.loads(provenance.read_text("utf-8")).get(file)
    if made is None:
        return None
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    source = f"experiments/results/{file}, commit {made['commit']}, {made['machine']}"
    return Results(lines, made["command"], source)


def gaps(
    lines: Sequence[dict[str, Any]],
    value: Callable[[dict[str, Any]], float],
    ours: Callable[[dict[str, Any]], bool],
    theirs: Callable[[dict[str, Any]], bool],
) -> list[float]:
    """By how much one group of lines exceeds another, seed by seed.

    >>> lines = [{"seed": 0, "who": who, "x": x} for who, x in (("a", 3.0), ("b", 1.0))]
    >>> gaps(lines, lambda n: n["x"], lambda n: n["who"] == "a", lambda n: n["who"] == "b")
    [2.0]
    """
    mine, other = ({n["seed"]: value(n) for n in lines if chosen(n)} for chosen in (ours, theirs))
    return [mine[seed] - other[seed] for seed in sorted(mine.keys() & other.keys())]
