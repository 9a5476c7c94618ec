"""The report: one self-contained HTML page that compares runs."""

import os
from collections.abc import Sequence
from pathlib import Path

from fedjax_masks.analysis import page
from fedjax_masks.analysis.figures import Drawn, draw_all
from fedjax_masks.analysis.records import RunRecord, load_run
from fedjax_masks.analysis.style import drawing, group
from fedjax_masks.errors import UserError

_PNG_DPI = 200


def write_report(run_dirs: Sequence[str | Path], out_html: str | Path) -> Path:
    """Compares runs on one page.

    The page holds its figures and styles itself and loads nothing, so it can be mailed. The
    figures are also written as PNG files, into a folder beside it: ``report_figures/`` for
    ``report.html``.

    Args:
      run_dirs: Run directories, finished or not.
      out_html: The page to write; its folder is made if need be.

    Returns:
      The page's path.

    Raises:
      ValueError: There is no run, a directory is not a run, or the page cannot be written there.
    """
    if not run_dirs:
        raise UserError("run: none given; accepted are one or more run directories")
    out = Path(out_html)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out={str(out)!r}: accepted is the name of an .html file")
    runs = _load(run_dirs)
    series = group(runs)
    drawn = draw_all(series)
    text = page.render(runs, series, drawn)
    out.parent.mkdir(parents=True, exist_ok=True)
    _write_images(drawn, out.with_name(f"{out.stem}_figures"))
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(text, "utf-8")
    os.replace(partial, out)
    return out


def _load(run_dirs: Sequence[str | Path]) -> list[RunRecord]:
    """The runs; those whose directories are named alike also go by their parents' names."""
    paths = list(dict.fromkeys(Path(path).resolve() for path in run_dirs))
    runs = [load_run(path) for path in paths]
    names = [run.name for run in runs]
    return [
        run._replace(name=f"{path.parent.name}/{run.name}") if names.count(run.name) > 1 else run
        for run, path in zip(runs, paths)
    ]


def _write_images(drawn: Sequence[Drawn], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with drawing():
        for item in drawn:
            item.figure.savefig(folder / f"{item.slug}.png", dpi=_PNG_DPI, facecolor="white")
