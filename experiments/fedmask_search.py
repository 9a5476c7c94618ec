"""Searches the options of FedMask: scores, frozen weights, pruning and regularizer.

The script runs every configuration below, local training and FedAvg on the same task, and appends one JSON
line each; it does not repeat runs that the file has:

    python experiments/fedmask_search.py run --dataset fashion_mnist --out FILE.jsonl

It prints a table of a file, with mean and 95 % confidence interval over the seeds:

    python experiments/fedmask_search.py table FILE.jsonl
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

# Clients are spread over host devices; jax reads the flag when it starts.
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={min(os.cpu_count() or 1, 4)}")

import jax
from common import append_line, markdown, read_lines

from fedjax_masks.core.intervals import interval
from fedjax_masks.experiment.build import build
from fedjax_masks.experiment.config import make_config
from fedjax_masks.experiment.loop import simulate

# With a rate of 0.1, LeNet's loss overflows on some clients with two classes.
BASELINES = [
    ("local, lr 0.1", "local", 0.1),
    ("fedavg, lr 0.1", "fedavg", 0.1),
    ("local", "local", 0.03),
    ("fedavg", "fedavg", 0.03),
    ("local, lr 0.01", "local", 0.01),
    ("fedavg, lr 0.01", "fedavg", 0.01),
]
# New scores in every round come first, as "default"; then groups of options, one for each question. Scores
# are kept only where the name says so.
ADAM = {"score_optimizer": "adam", "score_lr": 0.1, "score_scale": 0.3}
SEARCH = {
    "default": {},
    "lr 30": {"score_lr": 30.0},
    "lr 300": {"score_lr": 300.0},
    "scale 0.3": {"score_scale": 0.3},
    "scale 0.3, lr 30": {"score_scale": 0.3, "score_lr": 30.0},
    "momentum 0.9, lr 10": {"score_momentum": 0.9, "score_lr": 10.0},
    "adam 0.1, scale 0.3": ADAM,
    "adam 0.1, scale 1": {**ADAM, "score_scale": 1.0},
    "adam 0.01, scale 0.1": {**ADAM, "score_lr": 0.01, "score_scale": 0.1},
    "adam, keep scores": {**ADAM, "keep_scores": True},
    "adam, constant weights": {**ADAM, "weights": "constant"},
    "adam, no prune": {**ADAM, "prune_ratio": 1.0},
    "adam, paper sparsity 2e-4": {**ADAM, "sparsity": 2e-4},
    "paper sparsity 2e-4": {"sparsity": 2e-4},
    "sparsity 2e-5": {"sparsity": 2e-5},
    "constant weights": {"weights": "constant"},
    "constant weights x1.5": {"weights": "constant", "weight_scale": 1.5},
    "weights x1.5": {"weight_scale": 1.5},
    "weights x0.7": {"weight_scale": 0.7},
    "keep scores": {"keep_scores": True},
    "keep scores, scale 0.3": {"keep_scores": True, "score_scale": 0.3},
    "keep scores, no prune": {"keep_scores": True, "prune_ratio": 1.0},
    "keep scores, prune to 0.5": {"keep_scores": True, "prune_ratio": 0.5},
    "keep scores, constant weights": {"keep_scores": True, "weights": "constant"},
    "own start": {"start": "own"},
    "own start, keep scores": {"start": "own", "keep_scores": True},
    "no prune": {"prune_ratio": 1.0},
    "prune to 0.5": {"prune_ratio": 0.5},
    "prune last layer": {"prune_layers": 1},
    "prune all layers": {"prune_layers": 4},
    "prune by magnitude": {"prune_score": "magnitude"},
    "soft forward": {"forward": "soft"},
    "straight-through": {"gradient": "straight_through"},
}


def overrides(args: argparse.Namespace, algorithm: str, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """The keys of the configuration of one run."""
    values = {
        "algorithm.name": algorithm,
        "data.name": args.dataset,
        "data.dir": args.data_dir,
        "data.partition": args.partition,
        "data.clients": args.clients,
        "data.test_per_client": args.test_per_client,
        "model.name": args.model,
        "training.epochs": 5,
        "rounds": args.rounds,
        "cohort": args.cohort,
        "eval_every": args.rounds,
        "seed": seed,
        "data.seed": seed,
        **{f"algorithm.{key}": value for key, value in options.items()},
    }
    return {key: value for key, value in values.items() if value is not None}


def result(
    args: argparse.Namespace, name: str, algorithm: str, options: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Runs one configuration to its last round, and returns its line."""
    config = make_config(overrides(args, algorithm, options, seed))
    start = time.perf_counter()
    run = simulate(*build(config), rounds=config.rounds, cohort=config.cohort, seed=config.seed)
    last = run.records[-1]
    return {
        "name": name,
        "algorithm": algorithm,
        "options": options,
        "dataset": args.dataset,
        "model": config.model.name,
        "partition": args.partition,
        "clients": args.clients,
        "cohort": args.cohort,
        "rounds": args.rounds,
        "seed": seed,
        "after_local": last["personal_accuracy_mean"],
        "after_writeback": last["extra"].get("personal_accuracy_writeback"),
        "density": last["density"],
        "train_loss": last["train_loss"],
        "bytes_total": last["bytes_up_total"] + last["bytes_down_total"],
        "seconds": round(time.perf_counter() - start, 1),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }


def run_missing(args: argparse.Namespace) -> None:
    """Appends the runs that the file lacks."""
    existing = {(line["name"], line["seed"]) for line in read_lines(args.out)}
    runs = [(name, algorithm, {"lr": lr}) for name, algorithm, lr in BASELINES]
    runs += [(name, "fedmask", {"keep_scores": False} | options) for name, options in SEARCH.items()]
    for name, algorithm, options in runs:
        for seed in args.seeds:
            if (name, seed) in existing or (args.only and name not in args.only):
                continue
            line = result(args, name, algorithm, options, seed)
            append_line(args.out, line)
            print(f"{name:30s} seed {seed}: {line['after_local']:.3f}", flush=True)


def percent(values: list[float | None]) -> str:
    """Mean and 95 % confidence interval of the values other than None, in percent."""
    return interval([100 * value for value in values if value is not None])


def table(lines: list[dict[str, Any]]) -> str:
    """A table in Markdown, the best personal accuracy first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(line["name"], []).append(line)
    dense = statistics.fmean(line["bytes_total"] for line in groups["fedavg"])
    rows = []
    for name, group in groups.items():
        densities = [line["density"] for line in group if line["density"] is not None]
        row = [
            name,
            percent([line["after_local"] for line in group]),
            percent([line["after_writeback"] for line in group]),
            f"{statistics.fmean(densities):.2f}" if densities else "n/a",
            f"{statistics.fmean(line['bytes_total'] for line in group) / dense:.4f}",
            str(len(group)),
        ]
        rows.append((-statistics.fmean(line["after_local"] for line in group), row))
    headings = ["", "personal accuracy, %", "after write-back, %", "density", "bytes ÷ FedAvg's", "seeds"]
    return markdown(headings, [row for _, row in sorted(rows, key=lambda pair: pair[0])])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help=run_missing.__doc__)
    run.set_defaults(command=run_missing)
    run.add_argument("--dataset", required=True)
    run.add_argument("--data-dir")
    run.add_argument("--model", help="default: the model for the data set")
    run.add_argument("--partition", default="lotteryfl:2:1.0")
    run.add_argument("--clients", type=int, default=100)
    run.add_argument("--cohort", type=int, default=20)
    run.add_argument("--test-per-client", type=int, help="default: all test data of a client")
    run.add_argument("--rounds", type=int, default=50)
    run.add_argument("--seeds", type=int, nargs="+", default=[0])
    run.add_argument("--only", nargs="*", help="names of configurations")
    run.add_argument("--out", type=Path, required=True)
    printing = commands.add_parser("table", help="print results as a table")
    printing.set_defaults(command=lambda args: print(table(read_lines(args.file))))
    printing.add_argument("file", type=Path)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
