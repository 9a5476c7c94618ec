"""Reads run directories, compares runs, draws figures and writes the report."""

from fedjax_masks.analysis.figures import plot_run
from fedjax_masks.analysis.records import RunRecord, column, load_run
from fedjax_masks.analysis.report import write_report
from fedjax_masks.analysis.table import comparison_table, print_table

__all__ = [
    "RunRecord",
    "column",
    "comparison_table",
    "load_run",
    "plot_run",
    "print_table",
    "write_report",
]
