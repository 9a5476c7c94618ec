"""Report: one self-contained HTML page that compares runs."""

import os
from collections.abc import Sequence
from pathlib import Path

from fedjax_masks.analysis import page
from fedjax_masks.analysis.canvas import Plot
from fedjax_masks.analysis.export import write_tables
from fedjax_masks.analysis.figures import draw_all
from fedjax_masks.analysis.loading import load_runs
from fedjax_masks.analysis.partition import divisions_of
from fedjax_masks.analysis.seeds import runs_table, series_table
from fedjax_masks.analysis.significance import significance_tables
from fedjax_masks.analysis.style import Series, drawing, group
from fedjax_masks.analysis.table import Table
from fedjax_masks.analysis.targets import target_tables
from fedjax_masks.core.errors import UserError, check_replaceable, one_line
from fedjax_masks.core.messages import warn
from fedjax_masks.core.progress import activity

_PNG_DPI = 200


def write_report(
    run_dirs: Sequence[str | Path],
    out_html: str | Path,
    *,
    target: float | None = None,
    baseline: str | None = None,
    tables: str | Path | None = None,
    setup_bytes: bool = False,
) -> Path:
    """Compares runs on one page.

    The page contains its figures and styles and loads nothing. The figures are also written as PNG files into
    a folder beside the page: ``report_figures/`` for ``report.html``.

    Args:
      run_dirs: Run directories, finished or not, and directories that contain some at any depth.
      out_html: The file of the page; a missing folder is created.
      target: The accuracy, in (0, 1], for the comparison of costs; the default is
        :func:`~fedjax_masks.analysis.targets.common_target`.
      baseline: The series that the others are tested against: an algorithm, a label of the legend or
        ``"best"``; the default is FedAvg where it ran, else the best series.
      tables: A folder for all tables as CSV and LaTeX.
      setup_bytes: Whether bytes include those that every device receives once, before the first round.

    Returns:
      The path of the page.

    Raises:
      UserError: There is no run, a directory is not a run, or the page cannot be written.
    """
    out = Path(out_html)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out={str(out)!r}: must end in .html or .htm; name such a file")
    check_replaceable(out)
    series = group(load_runs(run_dirs, setup_bytes=setup_bytes))
    summary, *others = compare(series, target=target, baseline=baseline)
    several = any(len(member.runs) > 1 for member in series)
    with activity(f"{out}: dividing the data again"):
        divisions, missing = divisions_of([run for member in series for run in member.runs])
    remarks = [
        f"The division of the data is not shown, as they could not be loaded: {line}." for line in missing
    ]
    try:
        with activity(f"{out}: drawing"):
            plots = draw_all(series, divisions)
    except Exception as error:  # missing libraries, fonts and caches raise errors of many types
        plots = []
        remarks.append(f"The figures could not be drawn: {one_line(error)}.")
        warn(f"{out}: without figures: {one_line(error)}")
    text = page.render(series, summary, others, runs_table(series) if several else None, plots, remarks)
    if tables is not None:
        write_tables([summary, *others, runs_table(series)], series, tables)
    out.parent.mkdir(parents=True, exist_ok=True)
    _write_images(plots, out.with_name(f"{out.stem}_figures"))
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(text, "utf-8")
    os.replace(partial, out)
    return out


def compare(
    series: Sequence[Series], *, target: float | None = None, baseline: str | None = None
) -> list[Table]:
    """The tables of a comparison: summary, costs of a target accuracy, tests over seeds.

    Args:
      series: The series to compare.
      target: See :func:`write_report`.
      baseline: See :func:`write_report`.

    Raises:
      UserError: The target is out of range, or there is no such baseline.
    """
    tests = significance_tables(series, baseline)
    return [series_table(series), *target_tables(series, target), *tests]


def _write_images(plots: Sequence[Plot], folder: Path) -> None:
    if not plots:
        return
    folder.mkdir(exist_ok=True)
    with drawing():
        for item in plots:
            item.figure.savefig(folder / f"{item.slug}.png", dpi=_PNG_DPI, facecolor="white")
