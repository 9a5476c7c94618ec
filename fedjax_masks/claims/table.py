"""Claims as a table in the terminal."""

from collections.abc import Sequence

from fedjax_masks.claims.claim import Claim

_COLORS = {"met": "green", "missed": "red"}


def print_claims(claims: Sequence[Claim]) -> None:
    """Prints a table of the claims; notes, and the sources of all figures, follow below the table.

    Args:
      claims: The claims, in the order of the rows.
    """
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table(show_lines=False)
    for heading in ("system", "claim", "paper", "ours", "class", "verdict"):
        table.add_column(heading, overflow="fold")
    for claim in claims:
        color = _COLORS.get(claim.verdict, "yellow")
        cells = (claim.system, claim.claim, claim.paper, claim.ours or "-", claim.label)
        table.add_row(*cells, f"[{color}]{claim.verdict}[/{color}]")
    console.print(table)
    notes = [f"{c.verdict}: {c.system}, {c.claim}: {c.note}" for c in claims if c.note]
    sources = dict.fromkeys(f"{c.source}: {c.command}" for c in claims)
    for line in (*notes, *sources):
        console.print(line, markup=False, highlight=False)
