"""Claims: published figures beside ours, and the verdict on each."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

Label = Literal["exact", "measured", "trend"]
Verdict = Literal["met", "missed", "not reproducible here"]

LIVE = "computed just now"


class Claim(NamedTuple):
    """A published figure beside ours.

    Attributes:
      system: The algorithm.
      claim: The quantity that the paper states, and its place in the paper.
      paper: The published figure, with its unit.
      ours: Our figure, or None without one.
      label: The class of our figure. ``exact``: counted; ``measured``: a ratio of times on one machine;
        ``trend``: an order of accuracies on the available data, with 95 % confidence intervals over seeds.
      verdict: ``met``, ``missed`` or ``not reproducible here``.
      command: The command that produces our figure, or the figure nearest to it.
      source: The origin of our figure: this call, or a result file with its commit and machine.
      note: The reason for a verdict other than ``met``.
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
        """The fields by name; the key of the label is ``class``."""
        return {"class" if key == "label" else key: value for key, value in self._asdict().items()}


def exact_claim(
    system: str, claim: str, paper: float, ours: float, unit: str, *, digits: int = 0, reason: str = ""
) -> Claim:
    """A figure that this call counted; it must equal the published one to its last digit.

    Args:
      system: The algorithm.
      claim: The quantity.
      paper: The published figure.
      ours: Our figure.
      unit: The unit of both figures.
      digits: Decimal places of the published figure.
      reason: An explanation, used where the figures differ.
    """
    paper_text, our_text = (f"{value:,.{digits}f} {unit}".strip() for value in (paper, ours))
    note = _explained(f"off by {ours - paper:+,.{digits + 1}f} {unit}", reason)
    return _live(system, claim, paper_text, our_text, "" if round(ours, digits) == paper else note)


def bounded_claim(
    system: str,
    claim: str,
    paper: str,
    ours: float,
    unit: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    digits: int = 2,
    reason: str = "",
) -> Claim:
    """A figure that this call counted; it must lie between bounds.

    Args:
      system: The algorithm.
      claim: The quantity.
      paper: The published bound, with its unit.
      ours: Our figure.
      unit: The unit of our figure.
      low: The least figure that meets the claim.
      high: The largest figure that meets the claim.
      digits: Decimal places.
      reason: An explanation, used where the figure lies outside the bounds.
    """
    excess = max(low - ours, ours - high)
    note = _explained(f"outside the bound by {excess:,.{digits}f} {unit}", reason)
    return _live(system, claim, paper, f"{ours:,.{digits}f} {unit}".strip(), "" if excess <= 0 else note)


def list_claim(
    system: str,
    claim: str,
    paper: Sequence[int],
    ours: Sequence[float],
    unit: str = "",
    *,
    tolerance: float = 0.5,
) -> Claim:
    """Several whole numbers that this call counted.

    Args:
      system: The algorithm.
      claim: The quantities.
      paper: The published figures.
      ours: Our figures, equally many.
      unit: The unit of all figures.
      tolerance: The largest difference between a figure of ours and the published one.
    """
    paper_text, our_text = (
        f"{', '.join(f'{value:.0f}' for value in values)} {unit}".strip() for values in (paper, ours)
    )
    largest = max(abs(a - b) for a, b in zip(ours, paper, strict=True))
    note = f"off by up to {largest:.1f} {unit}".strip()
    return _live(system, claim, paper_text, our_text, "" if largest <= tolerance else note)


def unreachable_claim(system: str, claim: str, paper: str, label: Label, reason: str, command: str) -> Claim:
    """A published figure without one of ours.

    Args:
      system: The algorithm.
      claim: The quantity.
      paper: The published figure.
      label: The class that our figure would have.
      reason: The requirements that are missing, and the nearest figure of ours.
      command: The command that produces the nearest figure.
    """
    return Claim(
        system, claim, paper, None, label, "not reproducible here", command, "no run of ours", reason
    )


def _explained(difference: str, reason: str) -> str:
    return difference.strip() + (f": {reason}" if reason else "")


def _live(system: str, claim: str, paper: str, ours: str, note: str) -> Claim:
    """A figure that this call counted; an empty note means that it meets the claim."""
    verdict: Verdict = "missed" if note else "met"
    return Claim(system, claim, paper, ours, "exact", verdict, "fedjax-masks claims", LIVE, note)
