"""Runs all benchmarks, and prints one JSON line for each workload and plan, with machine and versions.

    python experiments/benchmarks.py > experiments/results/benchmarks_cpu.jsonl

Each benchmark runs in a process of its own, as ``fedjax-masks bench`` does. ``docs/make_benchmarks.py`` makes
the documentation's page of benchmarks from these lines. Workloads are also compiled for accelerators that are
not there (``pip install -e ".[aot]"``):

    python experiments/benchmarks.py --compile-for h200 > experiments/results/compiled_h200.jsonl
"""

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version

from fedjax_masks.benchmarks.rounds import SETUPS

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
        "--workload",
        action="append",
        choices=sorted({*PLANS, *SETUPS}),
        help="a workload (default: all of them)",
    )
    parser.add_argument("--compile-for", metavar="CHIP", help="compile for a chip, and run nothing")
    args = parser.parse_args()
    if args.compile_for:
        for workload in args.workload or SETUPS:
            bench(["--workload", workload, "--rounds", "10", "--compile-for", args.compile_for])
        return
    for workload in args.workload or PLANS:
        for plan in PLANS[workload]:
            options = ["--workload", workload, "--rounds", str(ROUNDS.get(workload, 10))]
            bench(options if plan == "auto" else [*options, "--plan", plan])


def bench(options: Sequence[str]) -> None:
    """Prints the figures of a benchmark, with its command, the date and the versions of packages."""
    command = [sys.executable, "-m", "fedjax_masks.cli", "bench", *options, "--json"]
    figures = json.loads(subprocess.check_output(command, text=True))
    origin = {
        "command": " ".join(["fedjax-masks bench", *options]),
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "fedjax_masks")},
    }
    print(json.dumps(figures | origin), flush=True)


if __name__ == "__main__":
    main()
