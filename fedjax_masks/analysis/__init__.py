"""Reads run directories, compares runs, draws figures and writes the report."""

from fedjax_masks.analysis.accuracy import plot_run
from fedjax_masks.analysis.export import write_tables
from fedjax_masks.analysis.loading import load_run, load_runs
from fedjax_masks.analysis.records import RunRecord, column
from fedjax_masks.analysis.report import compare, write_report
from fedjax_masks.analysis.style import group
from fedjax_masks.analysis.table import comparison_table
from fedjax_masks.analysis.terminal import print_table, print_tables

__all__ = [
    "RunRecord",
    "column",
    "compare",
    "comparison_table",
    "group",
    "load_run",
    "load_runs",
    "plot_run",
    "print_table",
    "print_tables",
    "write_report",
    "write_tables",
]
