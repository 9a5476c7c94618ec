"""Shared parts of the experiments: result files, runs by setting, tables, figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedjax_masks.claims.result_files import setting as setting

if TYPE_CHECKING:
    from fedjax_masks.analysis.plotting import Figure

_EXPERIMENTS = Path(__file__).parent
_CLAIMS = _EXPERIMENTS.parent / "fedjax_masks" / "claims" / "results"


def result_file(name: str) -> Path:
    """The path of a result file.

    Files that ``fedjax-masks claims`` reads are part of the package; all others lie in
    ``experiments/results``, whether they exist or not.
    """
    packaged = _CLAIMS / name
    return packaged if packaged.is_file() else _EXPERIMENTS / "results" / name


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a result file, one per line; none where there is no file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Appends a JSON object to a result file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def by_setting(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Runs by setting; the runs of one setting differ in their seeds alone."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(setting(run), []).append(run)
    return groups


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    >>> print(markdown(["", "seeds"], [["fedavg", "3"]]))
    |  | seeds |
    |---|---|
    | fedavg | 3 |
    """
    lines = [f"| {' | '.join(cells)} |" for cells in (headings, *rows)]
    return "\n".join([lines[0], "|---" * len(headings) + "|", *lines[1:]])


@contextmanager
def saved_figure(out: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure in the style of reports, of a size in inches, which is written to a file at the end."""
    from fedjax_masks.analysis.plotting import Figure
    from fedjax_masks.analysis.style import drawing

    with drawing():
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(out, dpi=150)
