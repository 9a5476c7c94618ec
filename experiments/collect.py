"""Prints one JSON line per run directory, with the run's settings, machine and results.

    python experiments/collect.py runs/robust/* > experiments/results/robust_digits.jsonl

Bytes are exact; accuracies are of one run; seconds depend on the machine. The script also prints a table of
runs with names like ``fedavg-0`` or ``fedavg,seed=0``, with mean and 95 % confidence interval over the seeds.
Bytes are divided by FedAvg's, or by those of the first run where FedAvg is missing:

    python experiments/collect.py --table experiments/results/robust_digits.jsonl

A third form prints differences in global accuracy between one setting and each other one, paired by seed:

    python experiments/collect.py --gaps ecofed-public fedjax_masks/claims/results/ecofed_cifar10.jsonl

With ``--curves`` before the runs, a line has the accuracy and the bytes of each evaluation, too, and the
extra metrics of the last one.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import by_setting, markdown, read_lines, setting

from fedjax_masks.claims.result_files import gaps
from fedjax_masks.core.intervals import interval

_SETTINGS = (
    *("algorithm", "data", "model", "training", "pretraining", "devices", "rounds", "cohort", "seed"),
    *("wire", "robust", "attack", "privacy", "chosen_plan", "versions"),
)
_RESULTS = (
    *("round", "last_global_accuracy", "last_personal_accuracy_mean", "personal_accuracy_p10"),
    *("personal_accuracy_p90", "best_personal_accuracy_mean", "bytes_up_total", "bytes_down_total"),
    *("setup_bytes", "client_flops", "client_flops_total", "density", "rounds_per_second"),
    *("padding_efficiency", "num_compilations", "sim_seconds", "energy_joules"),
)
_ACCURACIES = {
    "global accuracy, %": "last_global_accuracy",
    "personal accuracy, %": "last_personal_accuracy_mean",
    "after write-back, %": "personal_accuracy_writeback",
}
_TIMES = {"simulated seconds": "sim_seconds", "joules": "energy_joules"}


def line(directory: Path, *, curves: bool = False) -> dict[str, Any]:
    """The line of one finished run.

    Args:
      directory: The run.
      curves: Whether the line has the accuracy and the bytes of every evaluation, and the last extra metrics.
    """
    config = json.loads((directory / "config.json").read_text("utf-8"))
    summary = json.loads((directory / "summary.json").read_text("utf-8"))
    records = read_lines(directory / "metrics.jsonl")
    config["data"] = {k: v for k, v in config["data"].items() if k not in ("dir", "cache_dir")}
    return {
        "run": directory.name,
        **{key: config[key] for key in _SETTINGS if key in config},
        "device": f"{config['platform']['devices']} x {config['platform']['device']}",
        "cpus": config["platform"]["cpus"],
        **{key: summary[key] for key in _RESULTS},
        "clients_trained": summary["clients_seen"],
        "personal_accuracy_trained": summary["personal_accuracy_mean_seen"],
        "personal_accuracy_writeback": summary["extra"].get("personal_accuracy_writeback"),
        **late(records),
        **(_curves(records) if curves else {}),
    }


def _curves(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Evaluations, with the bytes of all clients, both ways, since round 0; and the last extra metrics."""
    return {
        "evaluations": {
            "round": [record["round"] for record in records],
            "global_accuracy": [record["global_accuracy"] for record in records],
            "bytes": [record["bytes_up_total"] + record["bytes_down_total"] for record in records],
        },
        "extra": records[-1]["extra"],
    }


def late(records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Mean accuracies over the evaluations in the last fifth of the rounds.

    The accuracy of a shared model varies from one round to the next where clients have few classes.

    >>> late([{"round": r, "global_accuracy": r / 10, "personal_accuracy_mean": None} for r in (4, 9, 10)])
    {'late_global_accuracy': 0.95, 'late_personal_accuracy_mean': None}
    """
    start, means = 0.8 * records[-1]["round"], {}
    for key in ("global_accuracy", "personal_accuracy_mean"):
        values = [record[key] for record in records if record["round"] > start and record[key] is not None]
        means[f"late_{key}"] = round(statistics.fmean(values), 6) if values else None
    return means


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown, with one row per setting."""
    groups = by_setting(runs)
    accuracies = {title: key for title, key in _ACCURACIES.items() if any(run[key] for run in runs)}
    times = {title: key for title, key in _TIMES.items() if all(run.get(key) for run in runs)}
    baseline = "fedavg" if "fedavg" in groups else next(iter(groups))
    name = "FedAvg" if baseline == "fedavg" else baseline
    rows = []
    for group_name, group in groups.items():
        columns = ([100 * run[key] for run in group if run[key] is not None] for key in accuracies.values())
        costs = (interval([run[key] for run in group], digits=2) for key in times.values())
        share = [_bytes(run) / _bytes(groups[baseline][0]) for run in group]
        rows.append([group_name, *map(interval, columns), *costs, interval(share, digits=4), str(len(group))])
    return markdown(["", *accuracies, *times, f"bytes ÷ {name}'s", "seeds"], rows)


def gaps_table(runs: Sequence[dict[str, Any]], ours: str) -> str:
    """A table in Markdown of the differences between a setting and all others."""
    runs = [run for run in runs if run["last_global_accuracy"] is not None]
    rows = []
    for other in by_setting(runs):
        if other != ours:
            points = gaps(runs, lambda run: 100 * run["last_global_accuracy"], setting, ours, other)
            rows.append([other, interval(points), str(len(points))])
    return markdown([f"{ours} above", "points", "seeds"], rows)


def _bytes(run: dict[str, Any]) -> int:
    return run["bytes_up_total"] + run["bytes_down_total"]


if __name__ == "__main__":
    if sys.argv[1] == "--table":
        print(table(read_lines(Path(sys.argv[2]))))
    elif sys.argv[1] == "--gaps":
        print(gaps_table(read_lines(Path(sys.argv[3])), sys.argv[2]))
    else:
        curves = sys.argv[1] == "--curves"
        for argument in sys.argv[1 + curves :]:
            print(json.dumps(line(Path(argument), curves=curves)))
