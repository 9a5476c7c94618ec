"""Prints one JSON line per run directory: what was run, where, and what came out.

    python experiments/collect.py runs/fashion_mnist/* > experiments/results/fashion_mnist.jsonl

Bytes are exact; accuracies are of one run; seconds depend on the machine.
"""

import json
import sys
from pathlib import Path

_RESULTS = (
    *("round", "last_global_accuracy", "last_personal_accuracy_mean", "personal_accuracy_p10"),
    *("personal_accuracy_p90", "best_personal_accuracy_mean", "bytes_up_total", "bytes_down_total"),
    *(
        "setup_bytes",
        "client_flops",
        "density",
        "rounds_per_second",
        "padding_efficiency",
        "num_compilations",
    ),
)


def line(directory: Path) -> dict:
    """The line of one finished run."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    summary = json.loads((directory / "summary.json").read_text("utf-8"))
    config["data"] = {k: v for k, v in config["data"].items() if k not in ("dir", "cache_dir")}
    chosen = ("algorithm", "data", "model", "training", "rounds", "cohort", "seed", "chosen_plan", "versions")
    return {
        **{key: config[key] for key in chosen},
        "device": f"{config['platform']['devices']} x {config['platform']['device']}",
        "cpus": config["platform"]["cpus"],
        **{key: summary[key] for key in _RESULTS},
        "personal_accuracy_writeback": summary["extra"].get("personal_accuracy_writeback"),
    }


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(json.dumps(line(Path(argument))))
