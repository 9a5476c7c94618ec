"""What carries FedMask: a search over its scores, weights, pruning and regulariser.

Runs every configuration below under the same task and seed and appends one JSON line each:

    python experiments/fedmask_search.py --dataset fashion_mnist --data-dir DIR --out FILE.jsonl

Lines that are there already are kept and not run again.
"""

import argparse
import json
import time
from pathlib import Path

import jax

from fedjax_masks.config import make_config
from fedjax_masks.experiment import build
from fedjax_masks.runner import simulate

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


def overrides(args: argparse.Namespace, algorithm: str, options: dict) -> dict:
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
        "seed": args.seed,
        **{f"algorithm.{key}": value for key, value in options.items()},
    }
    return {key: value for key, value in values.items() if value is not None}


def main() -> None:
    """Runs what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--model", help="default: one that suits the data set")
    parser.add_argument("--partition", default="lotteryfl:2:1.0")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--cohort", type=int, default=20)
    parser.add_argument("--test-per-client", type=int, help="default: all test data of a client")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of configurations")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    done = (
        {json.loads(line)["name"] for line in args.out.read_text().splitlines()}
        if args.out.exists()
        else set()
    )
    runs = [("fedmask", name, options) for name, options in SEARCH.items()]
    runs += [("local", "local", {}), ("fedavg", "fedavg", {})]
    for algorithm, name, options in runs:
        if name in done or (args.only and name not in args.only):
            continue
        config = make_config(overrides(args, algorithm, options))
        began = time.perf_counter()
        run = simulate(*build(config), rounds=config.rounds, cohort=config.cohort, seed=config.seed)
        last = run.records[-1]
        line = {
            "name": name,
            "algorithm": algorithm,
            "options": options,
            "dataset": args.dataset,
            "model": config.model.name,
            "partition": args.partition,
            "rounds": args.rounds,
            "seed": args.seed,
            "after_local": last["personal_accuracy_mean"],
            "after_writeback": last["extra"].get("personal_accuracy_writeback"),
            "density": last["density"],
            "train_loss": last["train_loss"],
            "bytes_total": last["bytes_up_total"] + last["bytes_down_total"],
            "seconds": round(time.perf_counter() - began, 1),
            "device": jax.devices()[0].device_kind,
        }
        with args.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"{name:34s} {line['after_local']:.3f} {line['after_writeback'] or float('nan'):.3f}", flush=True
        )


if __name__ == "__main__":
    main()
