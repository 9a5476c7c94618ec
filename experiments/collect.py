"""Prints one JSON line per run directory: what was run, where, and what came out.

    python experiments/collect.py runs/fashion_mnist/* > experiments/results/fedmask_fashion_mnist.jsonl

Bytes are exact; accuracies are of one run; seconds depend on the machine. Of runs that are named like
``fedavg-0``, with the seed behind the last dash, it also prints a table, mean and 95 % confidence
interval over the seeds:

    python experiments/collect.py --table experiments/results/fedskel_digits.jsonl
"""

import json
import sys
from pathlib import Path
from statistics import fmean

from common import lines

from fedjax_masks.analysis.intervals import interval
from fedjax_masks.simulation.cohorts import draw_cohort

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
    trained = took_part(config, len(summary["client_accuracy"]))
    chosen = (
        *("algorithm", "data", "model", "training", "pretraining", "devices", "rounds", "cohort", "seed"),
        *("robust", "attack", "privacy", "chosen_plan", "versions"),
    )
    return {
        "run": directory.name,
        **{key: config[key] for key in chosen if key in config},
        "device": f"{config['platform']['devices']} x {config['platform']['device']}",
        "cpus": config["platform"]["cpus"],
        **{key: summary[key] for key in _RESULTS},
        "clients_trained": len(trained),
        "personal_accuracy_trained": fmean(summary["client_accuracy"][client] for client in trained),
        "personal_accuracy_writeback": summary["extra"].get("personal_accuracy_writeback"),
    }


def took_part(config: dict, clients: int) -> list[int]:
    """The clients that were in any cohort; the others' own models have never been trained."""
    # FedSkel's cohorts stay for a cycle: a SetSkel round and the UpdateSkel rounds behind it.
    cycle = config["algorithm"].get("updates", 0) + 1
    drawn = (
        draw_cohort(config["seed"], first, clients, config["cohort"])
        for first in range(0, config["rounds"], cycle)
    )
    return sorted({int(client) for ids in drawn for client in ids})


def print_table(file: Path) -> None:
    """Prints a Markdown table of a file of lines."""
    groups: dict[str, list[dict]] = {}
    for found in lines(file):
        groups.setdefault(found["run"].rpartition("-")[0], []).append(found)
    wanted = {
        title: key for title, key in _ACCURACIES.items() if any(r[key] for g in groups.values() for r in g)
    }
    timed = [key for key in _TIMES if all(r.get(_TIMES[key]) for g in groups.values() for r in g)]
    print("| | " + " | ".join([*wanted, *timed, "bytes ÷ FedAvg's", "seeds"]) + " |")
    print("|---" * (len(wanted) + len(timed) + 3) + "|")
    dense = groups["fedavg"][0]
    for name, group in groups.items():
        columns = ([100 * run[key] for run in group if run[key] is not None] for key in wanted.values())
        share = [_bytes(run) / _bytes(dense) for run in group]
        times = (interval([run[_TIMES[title]] for run in group], digits=2) for title in timed)
        cells = (name, *map(interval, columns), *times, interval(share, digits=4), str(len(group)))
        print("| " + " | ".join(cells) + " |")


def _bytes(run: dict) -> int:
    return run["bytes_up_total"] + run["bytes_down_total"]


if __name__ == "__main__":
    if sys.argv[1] == "--table":
        print_table(Path(sys.argv[2]))
    else:
        for argument in sys.argv[1:]:
            print(json.dumps(line(Path(argument))))
