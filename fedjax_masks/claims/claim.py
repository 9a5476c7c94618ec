"""What a row of the claims is, and where long runs have left their results."""

import json
import math
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
      command: What produces our figure, or what comes nearest to it.
      source: Where it was produced: just now, or the file, the commit and the machine.
      note: Of a figure that is not met: why; where there is none, what it would take, and what comes nearest.
    """

    system: str
    claim: str
    paper: str
    ours: str | None
    label: Label
    verdict: Verdict
    command: str
    source: str
    note: str = ""

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


def counted(
    system: str, claim: str, paper: float, ours: float, unit: str, *, digits: int = 0, why: str = ""
) -> Claim:
    """A figure that is counted on the spot, and must be the published one to its last digit.

    Args:
      system: The algorithm.
      claim: What is claimed.
      paper: The published figure.
      ours: Ours.
      unit: Of both.
      digits: Behind the decimal point, of the published figure.
      why: They differ, if they do.
    """
    paper_text, our_text = (f"{value:,.{digits}f} {unit}".strip() for value in (paper, ours))
    note = f"off by {ours - paper:+,.{digits + 1}f} {unit}".strip() + (f": {why}" if why else "")
    return _live(system, claim, paper_text, our_text, "" if round(ours, digits) == paper else note)


def bounded(
    system: str,
    claim: str,
    paper: str,
    ours: float,
    unit: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    digits: int = 2,
    why: str = "",
) -> Claim:
    """A figure that is counted on the spot, and must lie between bounds.

    Args:
      system: The algorithm.
      claim: What is claimed.
      paper: The published bound, with its unit.
      ours: Our figure.
      unit: Of our figure.
      low: What it must be at least.
      high: What it must be at most.
      digits: Behind the decimal point.
      why: It lies outside, if it does.
    """
    excess = max(low - ours, ours - high)
    note = f"by {excess:,.{digits}f} {unit}".strip() + (f": {why}" if why else "")
    return _live(system, claim, paper, f"{ours:,.{digits}f} {unit}".strip(), "" if excess <= 0 else note)


def listed(
    system: str,
    claim: str,
    paper: Sequence[int],
    ours: Sequence[float],
    unit: str = "",
    *,
    within: float = 0.5,
) -> Claim:
    """Several whole figures that are counted on the spot.

    Args:
      system: The algorithm.
      claim: What is claimed.
      paper: The published figures.
      ours: Ours.
      unit: Of all.
      within: How far each of ours may be from the published one.
    """
    paper_text, our_text = (
        f"{', '.join(f'{value:.0f}' for value in values)} {unit}".strip() for values in (paper, ours)
    )
    furthest = max(abs(a - b) for a, b in zip(ours, paper, strict=True))
    note = f"off by up to {furthest:.1f} {unit}".strip()
    return _live(system, claim, paper_text, our_text, "" if furthest <= within else note)


def _live(system: str, claim: str, paper: str, ours: str, note: str) -> Claim:
    """A figure that is counted on the spot, and met where there is nothing to note."""
    verdict: Verdict = "missed" if note else "met"
    return Claim(system, claim, paper, ours, "exact", verdict, "fedjax-masks claims", LIVE, note)


def from_results(
    system: str,
    claim: str,
    paper: str,
    label: Label,
    file: str,
    judge: Callable[[Sequence[dict[str, Any]]], tuple[str, bool]],
    *,
    why: str = "",
) -> Claim:
    """A figure from a committed file.

    Args:
      system: The algorithm.
      claim: What is claimed.
      paper: The published figure.
      label: Its class.
      file: The file's name under ``experiments/results``.
      judge: The file's lines to our figure, and whether it meets the claim.
      why: It does not, if so.
    """
    found = results(file)
    if found is None:
        source = f"there is no finished experiments/results/{file} here"
        return unreachable(system, claim, paper, label, source, "fedjax-masks claims, in the source tree")
    ours, met = judge(found.lines)
    verdict, note = ("met", "") if met else ("missed", why)
    return Claim(system, claim, paper, ours, label, verdict, found.command, found.source, note)


def unreachable(system: str, claim: str, paper: str, label: Label, why: str, nearest: str) -> Claim:
    """A published figure to which there is none of ours.

    Args:
      system: The algorithm.
      claim: What is claimed.
      paper: The published figure.
      label: Its class.
      why: What it would take, and what of ours comes nearest.
      nearest: The command that produces the latter.
    """
    return Claim(system, claim, paper, None, label, "not reproducible here", nearest, "no run of ours", why)


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
