"""Outcomes: the verdict on each claim over all its rows, and their numbers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fedjax_masks.claims.claim import Basis, Claim, Label

TITLES: dict[Basis, str] = {
    "published": "published",
    "authors' code": "authors' code",
    "derived here": "consistency checks",
}
"""The words of the summary for each origin of a figure, in the order of the summary."""

LABELS: tuple[Label, ...] = ("exact", "measured", "trend")
_SUCCESSES = ("met", "consistent")
_ORDER = (*_SUCCESSES, "missed", "inconsistent", "not run", "not reproducible here")


class Outcome(NamedTuple):
    """The verdict on a claim over all its rows.

    Attributes:
      system: The algorithm.
      claim: The quantity.
      basis: The origin of the figure beside ours.
      label: The class of our figure.
      conditions: The conditions of the rows, by verdict.
    """

    system: str
    claim: str
    basis: Basis
    label: Label
    conditions: dict[str, list[str]]

    @property
    def verdict(self) -> str:
        """The common verdict of all rows; with some rows met, ``met in part``.

        Rows without a figure do not count beside rows that missed.
        """
        first = next(verdict for verdict in _ORDER if verdict in self.conditions)
        return f"{first} in part" if first in _SUCCESSES and len(self.conditions) > 1 else first

    @property
    def details(self) -> str:
        """The conditions under which the claim is met, missed or not run.

        >>> Outcome("x", "speed", "published", "measured", {"met": ["LeNet"], "missed": ["VGG"]}).details
        'met under LeNet; missed under VGG'
        """
        parts = [(verdict, self.conditions[verdict]) for verdict in _ORDER if verdict in self.conditions]
        return "; ".join(f"{verdict} under {' | '.join(conditions)}" for verdict, conditions in parts)


def outcomes(claims: Iterable[Claim]) -> list[Outcome]:
    """The outcomes of claims; rows that agree in system and claim are one claim."""
    groups: dict[tuple[str, str], Outcome] = {}
    for row in claims:
        empty = Outcome(row.system, row.claim, row.basis, row.label, {})
        outcome = groups.setdefault((row.system, row.claim), empty)
        outcome.conditions.setdefault(row.verdict, []).append(row.conditions)
    return list(groups.values())


def summary(claims: Iterable[Claim]) -> str:
    """The numbers of claims by origin, class and verdict, in one line."""
    results = outcomes(claims)
    parts = []
    for basis, title in TITLES.items():
        group = [outcome for outcome in results if outcome.basis == basis]
        if not group:
            continue
        success = "consistent" if basis == "derived here" else "met"
        classes = [
            f"{label} {_share(members, success)}"
            for label in LABELS
            if (members := [outcome for outcome in group if outcome.label == label])
        ]
        others = Counter(outcome.verdict for outcome in group if outcome.verdict != success)
        verdicts = [f"{number} {verdict}" for verdict, number in sorted(others.items(), key=_rank)]
        share = f"{title}: {_share(group, success)} {success}"
        parts.append(", ".join([f"{share} ({', '.join(classes)})", *verdicts]))
    return "; ".join(parts)


def _share(group: Sequence[Outcome], success: str) -> str:
    return f"{sum(outcome.verdict == success for outcome in group)} of {len(group)}"


def _rank(item: tuple[str, int]) -> int:
    """The place of a verdict; ``met in part`` comes directly after ``met``."""
    return _ORDER.index(item[0].removesuffix(" in part"))
