"""Claims as tables in the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedjax_masks.claims.claim import Basis, Claim
from fedjax_masks.claims.outcomes import outcomes, summary

if TYPE_CHECKING:
    from rich.table import Table

TABLES: dict[Basis, tuple[str, str]] = {
    "published": ("Published in the papers", "paper"),
    "authors' code": ("In the authors' code and logs", "authors"),
    "derived here": ("Consistency checks: both figures are ours", "expected"),
}
"""The title of each table, and the heading of the figure beside ours."""

_COLORS = {"met": "green", "missed": "red", "inconsistent": "red"}


def print_claims(claims: Sequence[Claim]) -> None:
    """Prints a table for each origin of figures, and the numbers of claims in the last line.

    Below the tables follow the claims that are met in part, the notes, and the sources of all figures.

    Args:
      claims: The claims, in the order of the rows.
    """
    from rich.console import Console

    console = Console()
    for basis in TABLES:
        rows = [claim for claim in claims if claim.basis == basis]
        if rows:
            console.print(_table(basis, rows))
    parts = [o for o in outcomes(claims) if o.verdict.endswith("in part")]
    lines = [
        *(f"{o.verdict}: {o.system}, {o.claim}: {o.details}" for o in parts),
        *(f"{c.verdict}: {c.system}, {c.claim} ({c.conditions}): {c.note}" for c in claims if c.note),
        *dict.fromkeys(f"{c.source}: {c.command}" for c in claims),
        summary(claims),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(basis: Basis, claims: Sequence[Claim]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    title, heading = TABLES[basis]
    table = Table(title=title, title_justify="left", show_lines=False)
    for name in ("system", "claim", heading, "ours", "class", "verdict"):
        table.add_column(name, overflow="fold")
    for claim in claims:
        text = Text.assemble(claim.claim, (f"\n{claim.conditions}", "dim"))
        color = _COLORS.get(claim.verdict, "yellow" if claim.ours is None else "")
        verdict = Text(claim.verdict, style=color)
        table.add_row(claim.system, text, claim.paper, claim.ours or "-", claim.label, verdict)
    return table
