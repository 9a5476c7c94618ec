"""What carries FedMask: a search over its scores, weights, pruning and regulariser.

Runs every configuration below, local training and FedAvg on the same task, and appends one JSON
line each; lines that are there already are kept and not run again:

    python experiments/fedmask_search.py run --dataset fashion_mnist --out FILE.jsonl

Prints what a file holds as a table, mean and 95 % confidence interval over the seeds:

    python experiments/fedmask_search.py table FILE.jsonl
"""

import argparse
import os
import statistics
import time
from pathlib import Path

# Clients are spread over host devices; has to be said before jax starts.
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={min(os.cpu_count() or 1, 4)}")

import jax
from common import append, lines

from fedjax_masks.core.intervals import interval
from fedjax_masks.experiment import build
from fedjax_masks.experiment.config import make_config
from fedjax_masks.experiment.loop import simulate

# At 0.1 LeNet's loss overflows on some clients with two classes.
BASELINES = [
    ("local, lr 0.1", "local", 0.1),
    ("fedavg, lr 0.1", "fedavg", 0.1),
    ("local", "local", 0.03),
    ("fedavg", "fedavg", 0.03),
    ("local, lr 0.01", "local", 0.01),
    ("fedavg, lr 0.01", "fedavg", 0.01),
]
# The defaults first, then one group of departures from them per question.
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


def overrides(args: argparse.Namespace, algorithm: str, options: dict, seed: int) -> dict:
    """The configuration's keys for one run."""
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


def result(args: argparse.Namespace, name: str, algorithm: str, options: dict, seed: int) -> dict:
    """Runs one configuration to its end; the line that is kept of it."""
    config = make_config(overrides(args, algorithm, options, seed))
    began = time.perf_counter()
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
        "seconds": round(time.perf_counter() - began, 1),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }


def run_missing(args: argparse.Namespace) -> None:
    """Runs what is not in the file yet."""
    done = {(line["name"], line["seed"]) for line in lines(args.out)}
    runs = [(name, kind, {"lr": lr}) for name, kind, lr in BASELINES]
    runs += [(name, "fedmask", options) for name, options in SEARCH.items()]
    for name, algorithm, options in runs:
        for seed in args.seeds:
            if (name, seed) in done or (args.only and name not in args.only):
                continue
            line = result(args, name, algorithm, options, seed)
            append(args.out, line)
            print(f"{name:30s} seed {seed}: {line['after_local']:.3f}", flush=True)


def per_cent(values: list[float | None]) -> str:
    """Mean and 95 % confidence interval of what is known, in per cent."""
    return interval([100 * value for value in values if value is not None])


def print_table(args: argparse.Namespace) -> None:
    """Prints a Markdown table of a file, best first."""
    groups: dict[str, list[dict]] = {}
    for line in lines(args.file):
        groups.setdefault(line["name"], []).append(line)
    dense = statistics.fmean(line["bytes_total"] for line in groups["fedavg"])
    ranked = sorted(groups.items(), key=lambda g: -statistics.fmean(line["after_local"] for line in g[1]))
    print("| | personal accuracy, % | after write-back, % | density | bytes ÷ FedAvg's | seeds |")
    print("|---|---|---|---|---|---|")
    for name, group in ranked:
        local, writeback = (
            per_cent([line[key] for line in group]) for key in ("after_local", "after_writeback")
        )
        densities = [line["density"] for line in group if line["density"] is not None]
        cells = [
            name,
            local,
            writeback,
            f"{statistics.fmean(densities):.2f}" if densities else "n/a",
            f"{statistics.fmean(line['bytes_total'] for line in group) / dense:.4f}",
            str(len(group)),
        ]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="run what is missing")
    run.set_defaults(command=run_missing)
    run.add_argument("--dataset", required=True)
    run.add_argument("--data-dir")
    run.add_argument("--model", help="default: one that suits the data set")
    run.add_argument("--partition", default="lotteryfl:2:1.0")
    run.add_argument("--clients", type=int, default=100)
    run.add_argument("--cohort", type=int, default=20)
    run.add_argument("--test-per-client", type=int, help="default: all test data of a client")
    run.add_argument("--rounds", type=int, default=50)
    run.add_argument("--seeds", type=int, nargs="+", default=[0])
    run.add_argument("--only", nargs="*", help="names of configurations")
    run.add_argument("--out", type=Path, required=True)
    table = commands.add_parser("table", help="print results as a table")
    table.set_defaults(command=print_table)
    table.add_argument("file", type=Path)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
