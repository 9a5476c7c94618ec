"""Tables for the terminal, with one row per figure and one column per run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedjax_masks.analysis.records import RunRecord
from fedjax_masks.analysis.seeds import series_table
from fedjax_masks.analysis.style import group
from fedjax_masks.analysis.table import Table, is_best

if TYPE_CHECKING:
    from rich.console import Console

_TITLE_WIDTH, _RUN_WIDTH = 28, 17


def print_table(runs: Sequence[RunRecord], console: "Console | None" = None) -> None:
    """Prints the comparison of runs; runs that differ in seeds alone share a column.

    Args:
      runs: The runs.
      console: A rich console; standard output by default.
    """
    print_tables([series_table(group(runs))], console)


def print_tables(tables: Sequence[Table], console: "Console | None" = None) -> None:
    """Prints tables.

    Args:
      tables: The tables.
      console: A rich console; standard output by default.
    """
    from rich.console import Console

    out = Console() if console is None else console
    for table in tables:
        if len(tables) > 1:
            out.print(table.title, style="bold", markup=False, highlight=False)
        _print(table, out)
        for remark in table.remarks:
            out.print(remark, style="bold", markup=False, highlight=False)
        if len(tables) > 1:
            out.print(table.note, style="dim", markup=False, highlight=False)
            out.print()


def _print(table: Table, out: "Console") -> None:
    """Prints a table in parts, with as many columns as fit into the width of the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Grid
    from rich.text import Text

    abreast = max(1, (out.width - _TITLE_WIDTH) // _RUN_WIDTH)
    for start in range(0, len(table.rows), abreast):
        part = table.rows[start : start + abreast]
        grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
        grid.add_column()
        for row in part:
            grid.add_column(Text(row["label"]), justify="right")
        for line in table.columns:
            cells = [Text(line.text(row), "bold" if is_best(line, row, table.rows) else "") for row in part]
            grid.add_row(Text(line.title, "dim"), *cells)
        out.print(grid)
