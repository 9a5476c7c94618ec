"""Tables as files: CSV for programs, LaTeX for papers."""

import csv
import os
from collections.abc import Mapping, Sequence
from io import StringIO
from itertools import count, repeat
from pathlib import Path
from typing import Any

from fedjax_masks.analysis.curves import ACCURACIES, COSTS, mean_curve
from fedjax_masks.analysis.style import Series
from fedjax_masks.analysis.table import Table, is_best
from fedjax_masks.core.errors import UserError

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "÷": r"$\div$",
    "·": r"$\cdot$",
}


def write_tables(tables: Sequence[Table], series: Sequence[Series], folder: str | Path) -> list[Path]:
    """Writes each table as ``SLUG.csv`` and ``SLUG.tex``, all curves, and every client's last accuracy.

    CSV files hold plain numbers in base units. LaTeX files hold the texts of the page, as ``tabular`` with
    the rules of the package booktabs.

    Args:
      tables: The tables.
      series: The series for ``curves.csv`` and ``clients.csv``.
      folder: The folder of the files; a missing one is created.

    Returns:
      The paths of the files.

    Raises:
      UserError: The folder is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"tables={str(folder)!r}: must be a directory, not a file; name another one")
    folder.mkdir(parents=True, exist_ok=True)
    texts = {f"{table.slug}.csv": as_csv(table.rows) for table in tables}
    texts |= {f"{table.slug}.tex": as_latex(table) for table in tables}
    texts |= {"curves.csv": as_csv(_points(series)), "clients.csv": as_csv(_clients(series))}
    for name, text in texts.items():
        partial = folder / f".{name}.partial"
        partial.write_text(text, "utf-8", newline="")
        os.replace(partial, folder / name)
    return [folder / name for name in texts]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as comma-separated values with a heading; a cell is empty where a figure does not apply.

    >>> print(as_csv([{"label": "a, b", "p": 0.5}, {"label": "c", "seeds": 3}]).strip())
    label,p,seeds
    "a, b",0.5,
    c,,3
    """
    text = StringIO()
    keys = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_latex(table: Table) -> str:
    """A table in LaTeX: one row per series, the best value of a column bold, the note as a comment."""
    head = " & ".join(["", *(escape(column.title) for column in table.columns)])
    lines = [
        " ".join([f"% {table.title}. {table.note}".strip(), *table.remarks]),
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
    ]
    lines += [r"\toprule", head + r" \\", r"\midrule"]
    for row in table.rows:
        cells = [escape(str(row["label"]))]
        for column in table.columns:
            text = escape(column.text(row))
            cells.append(rf"\textbf{{{text}}}" if is_best(column, row, table.rows) else text)
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escape(text: str) -> str:
    r"""Text with the escapes that LaTeX needs.

    >>> print(escape("81.2 ± 1.3 %"))
    81.2 $\pm$ 1.3 \%
    """
    return "".join(_LATEX.get(character, character) for character in text)


def _points(series: Sequence[Series]) -> list[dict[str, Any]]:
    """The points of all curves, each with all costs up to it."""
    rows = []
    for member in series:
        for key, name in ACCURACIES.items():
            curves = {cost.slug: mean_curve(member, key, cost) for cost in COSTS}
            costs = {slug: dict(zip(curve.rounds, curve.cost)) for slug, curve in curves.items()}
            for index, _, mean, half in zip(*curves["rounds"]):
                row = {"label": member.label, "accuracy": name.split()[0], "seeds": len(member.runs)}
                row |= {slug: float(by_round[index]) for slug, by_round in costs.items() if index in by_round}
                rows.append(row | {"mean": float(mean), "ci95": float(half) if half == half else None})
    return rows


def _clients(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Personal accuracies of all evaluated clients at the end of every run."""
    rows = []
    for member in series:
        for run in member.runs:
            keys = ("client_ids", "client_accuracy", "client_seen")
            ids, accuracies, trained = (run.summary.get(key) for key in keys)
            for client, accuracy, flag in zip(ids or count(), accuracies or (), trained or repeat(None)):
                row = {"label": member.label, "run": run.name, "client": client}
                rows.append(row | {"personal_accuracy": accuracy, "trained": flag})
    return rows
