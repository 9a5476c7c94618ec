"""Runs all benchmarks, and prints one JSON line for each workload and plan, with machine and versions.

    python experiments/benchmarks.py > experiments/results/benchmarks_cpu.jsonl

Each benchmark runs in a process of its own, as ``fedjax-masks bench`` does. ``docs/make_benchmarks.py`` makes
the documentation's page of benchmarks from these lines.
"""

import argparse
import datetime
import json
import subprocess
import sys
from importlib.metadata import version

PLANS = {
    **dict.fromkeys(
        ("femnist-cnn", "femnist-cnn-ragged", "mlp-1000", "pfl-cifar10", "fedmask-lenet"),
        ("auto", "scan", "blocks:5", "vmap"),
    ),
    **dict.fromkeys(("runner-overhead", "scale-clients", "scale-cohort", "scale-devices"), ("auto",)),
}
ROUNDS = {"pfl-cifar10": 4, "fedmask-lenet": 6, "scale-clients": 10, "scale-cohort": 10}


def main() -> None:
    """Runs the workloads that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--workload", action="append", choices=PLANS, help="a workload (default: all of them)"
    )
    for workload in parser.parse_args().workload or PLANS:
        for plan in PLANS[workload]:
            command = ["bench", "--workload", workload, "--rounds", str(ROUNDS.get(workload, 10))]
            command += [] if plan == "auto" else ["--plan", plan]
            figures = subprocess.check_output(
                [sys.executable, "-m", "fedjax_masks.cli", *command, "--json"], text=True
            )
            origin = {
                "command": " ".join(["fedjax-masks", *command]),
                "date": datetime.date.today().isoformat(),
                "versions": {name: version(name) for name in ("jax", "jaxlib", "fedjax_masks")},
            }
            print(json.dumps(json.loads(figures) | origin), flush=True)


if __name__ == "__main__":
    main()
