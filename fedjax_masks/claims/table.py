"""The claims in a terminal."""

from collections.abc import Sequence

from fedjax_masks.claims.claim import Claim


def print_claims(claims: Sequence[Claim]) -> None:
    """Prints a table; below it why what is not met is not, and where what was not counted comes from."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_lines=False)
    for heading in ("system", "claim", "paper", "ours", "class", "verdict"):
        table.add_column(heading, overflow="fold")
    colours = {"met": "green", "missed": "red"}
    for row in claims:
        colour = colours.get(row.verdict, "yellow")
        cells = (row.system, row.claim, row.paper, row.ours or "-", row.label)
        table.add_row(*cells, f"[{colour}]{row.verdict}[/{colour}]")
    console = Console()
    console.print(table)
    for row in claims:
        if row.note:
            console.print(
                f"{row.verdict}: {row.system}, {row.claim}: {row.note}", markup=False, highlight=False
            )
    for source, command in dict.fromkeys((row.source, row.command) for row in claims):
        console.print(f"{source}: {command}" if command else source, markup=False, highlight=False)
