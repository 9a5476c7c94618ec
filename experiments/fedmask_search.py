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

from fedjax_masks.config import load_config
from fedjax_masks.experiment import build
from fedjax_masks.runner import simulate

# The paper's defaults, and one group of departures from them per question.
BASE = {"score_lr": 0.1, "score_scale": 0.3, "prune_ratio": 0.2, "prune_layers": 2}
SEARCH = {
    "default": {},
    "paper sparsity 2e-4": {"sparsity": 2e-4},
    "sparsity 1e-6": {"sparsity": 1e-6},
    "scale 0.1": {"score_scale": 0.1},
    "scale 0.6": {"score_scale": 0.6},
    "scale 1": {"score_scale": 1.0},
    "lr 0.03": {"score_lr": 0.03},
    "lr 0.01, scale 0.1": {"score_lr": 0.01, "score_scale": 0.1},
    "lr 0.05": {"score_lr": 0.05},
    "sgd 100, scale 1": {"score_optimizer": "sgd", "score_lr": 100.0, "score_scale": 1.0},
    "constant weights": {"weights": "constant"},
    "constant weights x1.5": {"weights": "constant", "weight_scale": 1.5},
    "weights x1.5": {"weight_scale": 1.5},
    "keep scores": {"keep_scores": True},
    "keep scores, lr 0.03": {"keep_scores": True, "score_lr": 0.03},
    "keep scores, constant, lr 0.03": {"keep_scores": True, "score_lr": 0.03, "weights": "constant"},
    "own start": {"start": "own"},
    "no prune": {"prune_ratio": 1.0},
    "prune to 0.5": {"prune_ratio": 0.5},
    "prune last layer": {"prune_layers": 1},
    "prune all layers": {"prune_layers": 4},
    "prune by magnitude": {"prune_score": "magnitude"},
    "soft forward": {"forward": "soft"},
    "straight-through": {"gradient": "straight_through"},
    "no prune, constant": {"prune_ratio": 1.0, "weights": "constant"},
    "no prune, keep scores, lr 0.03": {"prune_ratio": 1.0, "keep_scores": True, "score_lr": 0.03},
}


def overrides(args: argparse.Namespace, algorithm: str, options: dict) -> dict:
    """The configuration's keys for one run."""
    return {
        "algorithm.name": algorithm,
        "data.name": args.dataset,
        "data.dir": args.data_dir,
        "data.partition": args.partition,
        "data.clients": args.clients,
        "data.test_per_client": args.test_per_client,
        "model.name": args.model,
        "training.epochs": 5,
        "rounds": args.rounds,
        "cohort": 20,
        "eval_every": args.rounds,
        "seed": args.seed,
        **{f"algorithm.{key}": value for key, value in options.items()},
    }


def main() -> None:
    """Runs what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--partition", default="lotteryfl:2:1.0")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--test-per-client", type=int, default=200)
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
    runs = [("fedmask", name, {**BASE, **options}) for name, options in SEARCH.items()]
    runs += [("local", "local", {}), ("fedavg", "fedavg", {})]
    for algorithm, name, options in runs:
        if name in done or (args.only and name not in args.only):
            continue
        config = load_config(overrides=overrides(args, algorithm, options))
        began = time.perf_counter()
        run = simulate(*build(config), rounds=config.rounds, cohort=config.cohort, seed=config.seed)
        last = run.records[-1]
        line = {
            "name": name,
            "algorithm": algorithm,
            "options": options,
            "dataset": args.dataset,
            "model": args.model,
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
