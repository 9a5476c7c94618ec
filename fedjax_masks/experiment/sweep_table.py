"""Tables of a sweep: ``runs.csv``, a row for each finished run; ``sweep.json``, figures over seeds."""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_masks.core.errors import UserError
from fedjax_masks.core.intervals import half_width, interval
from fedjax_masks.experiment import disk, run_directory
from fedjax_masks.experiment.grid import Job
from fedjax_masks.experiment.groups import flat_config

RUNS, SWEEP = "runs.csv", "sweep.json"
_FIGURES = (
    "round",
    "global_accuracy",
    "personal_accuracy_mean",
    "best_global_accuracy",
    "best_personal_accuracy_mean",
    "best_personal_accuracy_mean_seen",
    "bytes_up_total",
    "bytes_down_total",
    "setup_bytes",
    "client_flops",
    "sim_seconds",
    "energy_joules",
    "wall_seconds",
    "personal_accuracy_mean_seen",
    "clients_seen",
    "num_clients",
    "diverged",
    "cycle_global_accuracy",
    "cycle_personal_accuracy_mean_seen",
)
# Key, factor, digits and title of each column on the terminal.
_COLUMNS = (
    ("cycle_global_accuracy", 100, 1, "global, %"),
    ("cycle_personal_accuracy_mean_seen", 100, 1, "personal, %"),
    ("bytes_up_total", 1e-6, 2, "MB up"),
    ("bytes_down_total", 1e-6, 2, "MB down"),
)

Row = Mapping[str, Any]


def write_table(jobs: Sequence[Job], out: Path) -> None:
    """Writes ``runs.csv`` and ``sweep.json``.

    Args:
      jobs: The runs.
      out: The sweep's directory.

    Raises:
      UserError: The summary of a run is damaged.
    """
    keys = list(dict.fromkeys(key for job in jobs for key in job.grid_values))
    rows = []
    for job in jobs:
        if run_directory.is_finished(out / job.name):
            values = flat_config(job.config)
            row = {"run": job.name, "setting": job.setting, "algorithm.name": job.config.algorithm.name}
            row |= {key: values.get(key) for key in keys} | {"seed": job.config.seed}
            rows.append(row | _read_figures(out / job.name / run_directory.SUMMARY))
    text = io.StringIO()
    header = ["run", "setting", "algorithm.name", *keys, "seed", *_FIGURES]
    table = csv.DictWriter(text, list(dict.fromkeys(header)), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    disk.write_atomically(out / RUNS, text.getvalue())
    content = {
        "runs": dict.fromkeys((job.name for job in jobs), False) | {row["run"]: True for row in rows},
        "settings": {name: seed_statistics(setting) for name, setting in _by_setting(rows).items()},
    }
    disk.write_atomically(out / SWEEP, json.dumps(content, indent=2))


def _read_figures(path: Path) -> dict[str, Any]:
    """The figures of a summary."""
    content = run_directory.read_object(path)
    # Summaries of older versions have no means over a cycle.
    figures = {key: content.get(key, content.get(key.removeprefix("cycle_"))) for key in _FIGURES}
    for key, value in figures.items():
        if not (value is None or isinstance(value, (int, float))):
            raise UserError(f"{path}: {key}={value!r}: must be a number or null; the file is damaged")
    return figures


def _by_setting(rows: Sequence[Row]) -> dict[str, list[Row]]:
    settings: dict[str, list[Row]] = {}
    for row in rows:
        settings.setdefault(row["setting"], []).append(row)
    return settings


def seed_statistics(rows: Sequence[Row]) -> dict[str, Any]:
    """For each figure, the mean over rows that have it, and half of its 95 % confidence interval.

    Args:
      rows: The rows of one setting, which differ in their seeds.
    """
    result: dict[str, Any] = {"seeds": len(rows)}
    for key in _FIGURES:
        values = [row[key] for row in rows if row[key] is not None]
        half = half_width(values) if len(values) > 1 else None
        result[key] = {"mean": statistics.fmean(values), "half_width": half} if values else None
    return result


def print_sweep(out_dir: str | Path) -> None:
    """Prints the table of a sweep: for each setting, mean ± 95 % confidence interval over seeds."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    with open(Path(out_dir) / RUNS, encoding="utf-8", newline="") as file:
        settings = _by_setting(list(csv.DictReader(file)))
    caption = (
        "Accuracies at the end, personal: of the clients that trained; bytes in total; ±: 95 % confidence "
        "interval over seeds."
    )
    table = Table("", box=SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    table.columns[0].overflow = "fold"
    for *_, title in _COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("seeds", justify="right", no_wrap=True)
    for setting, rows in settings.items():
        cells = [_cell(rows, key, factor, digits) for key, factor, digits, _ in _COLUMNS]
        table.add_row(Text("\n".join([setting, *_reservations(rows)])), *cells, str(len(rows)))
    Console().print(table)


def _reservations(rows: Sequence[Row]) -> list[str]:
    """Lines under a setting's name: runs that diverged, and clients that never trained."""
    diverged, number = sum(row["diverged"] == "True" for row in rows), rows[0]["num_clients"]
    lines = [f"diverged: {diverged} of {len(rows)}"] if diverged else []
    if any(row["clients_seen"] != number for row in rows):
        mean = _cell(rows, "personal_accuracy_mean", 100, 1)
        lines.append(f"seen {_cell(rows, 'clients_seen', 1, 0)} of {number}; all: {mean}")
    return lines


def _cell(rows: Sequence[Row], key: str, factor: float, digits: int) -> str:
    """A figure over seeds; without an interval where it is counted and always the same."""
    values = [factor * float(row[key]) for row in rows if row[key]]
    return interval(values if len(set(values)) > 1 else values[:1], digits)
