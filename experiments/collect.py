"""Prints one JSON line per run directory: what was run, where, and what came out.

    python experiments/collect.py runs/fashion_mnist/* > experiments/results/fedmask_fashion_mnist.jsonl

Bytes are exact; accuracies are of one run; seconds depend on the machine. Of runs that are named like
``fedavg-0`` or ``fedavg,seed=0`` it also prints a table, mean and 95 % confidence interval over the
seeds; bytes are divided by FedAvg's, or by those of the first run where there is no FedAvg:

    python experiments/collect.py --table experiments/results/fedskel_digits.jsonl

and by how many points of global accuracy one setting is above each other one, seed by seed:

    python experiments/collect.py --gaps ecofed-public experiments/results/ecofed_cifar10.jsonl
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import by_setting, lines

from fedjax_masks.claims.claim import gaps
from fedjax_masks.core.intervals import interval

_RESULTS = (
    *("round", "last_global_accuracy", "last_personal_accuracy_mean", "personal_accuracy_p10"),
    *("personal_accuracy_p90", "best_personal_accuracy_mean", "bytes_up_total", "bytes_down_total"),
    *(
        "setup_bytes",
        "client_flops",
        "client_flops_total",
        "density",
        "rounds_per_second",
        "padding_efficiency",
        "num_compilations",
    ),
    *("sim_seconds", "energy_joules"),
)

_ACCURACIES = {
    "global accuracy, %": "last_global_accuracy",
    "personal accuracy, %": "last_personal_accuracy_mean",
    "after write-back, %": "personal_accuracy_writeback",
}


_TIMES = {"simulated seconds": "sim_seconds", "joules": "energy_joules"}


def line(directory: Path) -> dict:
    """The line of one finished run."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    summary = json.loads((directory / "summary.json").read_text("utf-8"))
    config["data"] = {k: v for k, v in config["data"].items() if k not in ("dir", "cache_dir")}
    chosen = (
        *("algorithm", "data", "model", "training", "pretraining", "devices", "rounds", "cohort", "seed"),
        *("wire", "robust", "attack", "privacy", "chosen_plan", "versions"),
    )
    return {
        "run": directory.name,
        **{key: config[key] for key in chosen if key in config},
        "device": f"{config['platform']['devices']} x {config['platform']['device']}",
        "cpus": config["platform"]["cpus"],
        **{key: summary[key] for key in _RESULTS},
        "clients_trained": summary["clients_seen"],
        "personal_accuracy_trained": summary["personal_accuracy_mean_seen"],
        "personal_accuracy_writeback": summary["extra"].get("personal_accuracy_writeback"),
    }


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of lines."""
    groups = by_setting(runs)
    wanted = {title: key for title, key in _ACCURACIES.items() if any(run[key] for run in runs)}
    timed = [key for key in _TIMES if all(run.get(_TIMES[key]) for run in runs)]
    dense = "fedavg" if "fedavg" in groups else next(iter(groups))
    whose = "FedAvg's" if dense == "fedavg" else f"{dense}'s"
    titles = [*wanted, *timed, f"bytes ÷ {whose}", "seeds"]
    rows = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name, group in groups.items():
        columns = ([100 * run[key] for run in group if run[key] is not None] for key in wanted.values())
        share = [_bytes(run) / _bytes(groups[dense][0]) for run in group]
        times = (interval([run[_TIMES[title]] for run in group], digits=2) for title in timed)
        cells = (name, *map(interval, columns), *times, interval(share, digits=4), str(len(group)))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def gaps_table(runs: Sequence[Mapping[str, Any]], ours: str) -> str:
    """A Markdown table of the differences between a setting and all others."""
    groups = by_setting([run for run in runs if run["last_global_accuracy"] is not None])
    own, rows = groups.pop(ours), [f"| {ours} above | points | seeds |", "|---|---|---|"]
    for name, theirs in groups.items():
        found = gaps([*own, *theirs], _global_points, own.__contains__, theirs.__contains__)
        rows.append(f"| {name} | {interval(found)} | {len(found)} |")
    return "\n".join(rows)


def _global_points(run: Mapping[str, Any]) -> float:
    return 100 * run["last_global_accuracy"]


def _bytes(run: Mapping[str, Any]) -> int:
    return run["bytes_up_total"] + run["bytes_down_total"]


if __name__ == "__main__":
    if sys.argv[1] == "--table":
        print(table(lines(Path(sys.argv[2]))))
    elif sys.argv[1] == "--gaps":
        print(gaps_table(lines(Path(sys.argv[3])), sys.argv[2]))
    else:
        for argument in sys.argv[1:]:
            print(json.dumps(line(Path(argument))))
