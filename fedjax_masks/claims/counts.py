"""Claims on figures that the call counts: a number, a number between bounds, a list of numbers."""

import math
from collections.abc import Sequence

from fedjax_masks.claims.claim import Basis, Claim, Statement, explained, judged_claim


def exact_claim(
    system: str,
    claim: str,
    paper: float,
    ours: float,
    unit: str,
    *,
    conditions: str,
    basis: Basis = "derived here",
    digits: int = 0,
    reason: str = "",
) -> Claim:
    """A figure that this call counted; it must equal the one beside it to the last digit.

    Args:
      system: The algorithm.
      claim: The quantity.
      paper: The figure beside ours.
      ours: Our figure.
      unit: The unit of both figures.
      conditions: The conditions of our figure.
      basis: The origin of the figure beside ours.
      digits: Decimal places of the figure beside ours.
      reason: An explanation, used where the figures differ.
    """
    paper_text, our_text = (f"{value:,.{digits}f} {unit}".strip() for value in (paper, ours))
    note = explained(f"off by {ours - paper:+,.{digits + 1}f} {unit}", reason)
    statement = Statement(system, claim, paper_text, "exact", basis)
    return judged_claim(statement, conditions, our_text, round(ours, digits) == paper, note=note)


def bounded_claim(
    system: str,
    claim: str,
    paper: str,
    ours: float,
    unit: str,
    *,
    conditions: str,
    basis: Basis = "derived here",
    low: float = -math.inf,
    high: float = math.inf,
    digits: int = 2,
    reason: str = "",
) -> Claim:
    """A figure that this call counted; it must lie between bounds.

    Args:
      system: The algorithm.
      claim: The quantity.
      paper: The bound, with its unit.
      ours: Our figure.
      unit: The unit of our figure.
      conditions: The conditions of our figure.
      basis: The origin of the bound.
      low: The least figure that meets the claim.
      high: The largest figure that meets the claim.
      digits: Decimal places.
      reason: An explanation, used where the figure lies outside the bounds.
    """
    excess = max(low - ours, ours - high)
    note = explained(f"outside the bound by {excess:,.{digits}f} {unit}", reason)
    statement = Statement(system, claim, paper, "exact", basis)
    return judged_claim(statement, conditions, f"{ours:,.{digits}f} {unit}".strip(), excess <= 0, note=note)


def list_claim(
    system: str,
    claim: str,
    paper: Sequence[int],
    ours: Sequence[float],
    unit: str = "",
    *,
    conditions: str,
    basis: Basis = "derived here",
    tolerance: float = 0.5,
) -> Claim:
    """Several whole numbers that this call counted.

    Args:
      system: The algorithm.
      claim: The quantities.
      paper: The figures beside ours.
      ours: Our figures, equally many.
      unit: The unit of all figures.
      conditions: The conditions of our figures.
      basis: The origin of the figures beside ours.
      tolerance: The largest difference between a figure of ours and the one beside it.
    """
    paper_text, our_text = (
        f"{', '.join(f'{value:.0f}' for value in values)} {unit}".strip() for values in (paper, ours)
    )
    largest = max(abs(a - b) for a, b in zip(ours, paper, strict=True))
    note = f"off by up to {largest:.1f} {unit}".strip()
    statement = Statement(system, claim, paper_text, "exact", basis)
    return judged_claim(statement, conditions, our_text, largest <= tolerance, note=note)
