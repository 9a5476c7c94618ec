"""Rounds and bytes to a target accuracy, with channel gates and without, under four optimisers.

Runs the same small net on Fashion-MNIST, divided among ten clients by a Dirichlet distribution of 0.1, all
of which take part in every round; appends one JSON line for each run that is not in the file yet:

    python experiments/adp_rounds.py run --data-dir DIR --out experiments/results/adp_fashion_mnist.jsonl

Prints what the file holds as tables, mean and 95 % confidence interval over the seeds:

    python experiments/adp_rounds.py table experiments/results/adp_fashion_mnist.jsonl

``compact`` and ``compact-table`` do the same for what is left of FedAvg's gated model if each client
removes the channels that its own data hardly use.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
import optax
from common import append, lines

import fedjax_masks as fm
from fedjax_masks.core.algorithm import ClientIndex
from fedjax_masks.core.intervals import interval
from fedjax_masks.models import gated
from fedjax_masks.models.compaction import keep_outputs, parameter_count
from fedjax_masks.models.gates import channel_activity, channels_in_use, inference_macs

FEDERATIONS = {"FedAvg": fm.fedavg, "FedProx": fm.fedprox, "FedNova": fm.fednova, "SCAFFOLD": fm.scaffold}
WIDTHS = (8, 16, 32, 10)  # of the `cnn`
TRAINING = {"epochs": 2, "batch_size": 20}
MOMENTUM = 0.9
RATIO, WEIGHT_DECAY = 0.7, 1e-5
EVERY_NTH, TEST_IMAGES = 40, 2000
SHARES = (0.01, 0.1, 0.5)
TARGETS = (0.6, 0.65, 0.7, 0.75)


def task_of(seed: int, data_dir: str | None) -> fm.Task:
    """A fortieth of every client's images, and the first 2,000 of the test set."""
    whole = fm.load_task("fashion_mnist", data_dir=data_dir, clients=10, partition="dirichlet:0.1", seed=seed)
    return dataclasses.replace(
        whole,
        test_inputs=whole.test_inputs[:TEST_IMAGES],
        test_labels=whole.test_labels[:TEST_IMAGES],
        train=_index([rows[::EVERY_NTH] for rows in _rows(whole.train)]),
        test=_index([rows[rows < TEST_IMAGES] for rows in _rows(whole.test)]),
    )


def _rows(index: ClientIndex) -> list[np.ndarray]:
    return [index.rows[start : start + size] for start, size in zip(index.offsets, index.sizes)]


def _index(parts: list[np.ndarray]) -> ClientIndex:
    sizes = np.array([len(part) for part in parts], np.int32)
    return ClientIndex(np.concatenate(parts), np.cumsum(sizes, dtype=np.int32) - sizes, sizes)


def train(federation: str, gates: bool, seed: int, args: argparse.Namespace):
    """Runs one configuration to its end: its model, algorithm and task, and the run."""
    task = task_of(seed, args.data_dir)
    net = fm.models.cnn(task).rebuild(WIDTHS)
    model = gated(net, ratio=RATIO) if gates else net
    optimizer = optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(args.learning_rate, momentum=MOMENTUM)
    )
    algorithm = FEDERATIONS[federation](model, optimizer, **TRAINING)
    run = fm.simulate(algorithm, task, rounds=args.rounds, cohort=10, seed=seed, eval_every=1)
    return model, algorithm, task, run


def settings(seed: int, args: argparse.Namespace) -> dict:
    """What a line says of how it came about."""
    return {
        "seed": seed,
        "rounds": args.rounds,
        "ratio": RATIO,
        "weight_decay": WEIGHT_DECAY,
        **TRAINING,
        "learning_rate": args.learning_rate,
        "momentum": MOMENTUM,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }


def result(federation: str, gates: bool, seed: int, args: argparse.Namespace) -> dict:
    """The line that is kept of one run."""
    began = time.perf_counter()
    _, algorithm, task, run = train(federation, gates, seed, args)
    rows, sizes = task.train.rows, task.train.sizes
    logits = jax.jit(algorithm.predict_global)(run.state.common, run.state.server, task.inputs[rows])
    hits = np.argmax(logits, -1) == task.labels[rows]
    losses = [record["train_loss"] for record in run.records]
    return {
        "federation": federation,
        "gates": gates,
        **settings(seed, args),
        "accuracy": [record["global_accuracy"] for record in run.records],
        # None where no client's loss is a number: training can diverge.
        "train_loss": [loss if loss is None else round(loss, 4) for loss in losses],
        "bytes_up": run.records[-1]["bytes_up"],
        "bytes_down": run.records[-1]["bytes_down"],
        "train_sizes": sizes.tolist(),
        "client_train_accuracy": (np.add.reduceat(hits, task.train.offsets) / sizes).tolist(),
        "client_test_accuracy": run.evaluation.personal.tolist(),
        "seconds": round(time.perf_counter() - began, 1),
    }


def compaction(seed: int, args: argparse.Namespace) -> dict:
    """The line that is kept of FedAvg's final model without the channels that a client hardly uses."""
    model, _, task, run = train("FedAvg", True, seed, args)
    params, shares = run.state.server.params, []
    pairs = list(zip(_rows(task.train), _rows(task.test)))
    activities = [channel_activity(model, params, task.inputs[train]) for train, _ in pairs]
    for share in SHARES:
        measured = []
        for activity, (_, test) in zip(activities, pairs):
            smaller, few = keep_outputs(model, params, channels_in_use(activity, share))
            whole, left = _measure(model, params, task, test), _measure(smaller, few, task, test)
            sizes = {"parameters": parameter_count(few) / parameter_count(params)}
            measured.append({**{f"whole_{name}": value for name, value in whole.items()}, **left, **sizes})
        means = {name: float(np.mean([one[name] for one in measured])) for name in measured[0]}
        shares.append({"share": share, **means})
    return {**settings(seed, args), "activity": _lists(activities), "shares": shares}


def _measure(model: fm.models.Model, params: dict, task: fm.Task, test: np.ndarray) -> dict[str, float]:
    """Accuracy, and multiply-accumulates of one inference."""
    logits, gates = jax.jit(model.forward)(params, task.test_inputs[test])
    macs = inference_macs(model, {name: gate.active for name, gate in gates.items()})
    return {
        "accuracy": float(np.mean(np.argmax(logits, -1) == task.test_labels[test])),
        "macs": float(np.mean(sum(macs))),
    }


def _lists(activities: list[dict]) -> list[dict[str, list[float]]]:
    return [{name: np.round(values, 3).tolist() for name, values in one.items()} for one in activities]


def compact_missing(args: argparse.Namespace) -> None:
    """Runs what is not in the file of compactions yet."""
    for seed in set(args.seeds) - {line["seed"] for line in lines(args.out)}:
        append(args.out, compaction(seed, args))


def run_missing(args: argparse.Namespace) -> None:
    """Runs what is not in the file yet, one seed after the other."""
    done = {(line["federation"], line["gates"], line["seed"]) for line in lines(args.out)}
    for seed in args.seeds:
        for federation in args.federations:
            for gates in (False, True):
                if (federation, gates, seed) not in done:
                    line = result(federation, gates, seed, args)
                    append(args.out, line)
                    told = f"{federation}, gates {'on' if gates else 'off'}, seed {seed}"
                    print(f"{told}: {max(line['accuracy']):.3f} in {line['seconds']} s", flush=True)


def print_tables(args: argparse.Namespace) -> None:
    """Prints Markdown tables of a file."""
    groups: dict[tuple[str, bool], list[dict]] = {}
    for line in lines(args.file):
        groups.setdefault((line["federation"], line["gates"]), []).append(line)
    order = sorted(groups, key=lambda group: (list(FEDERATIONS).index(group[0]), group[1]))
    named = {f"{name}, gates {'on' if on else 'off'}": groups[name, on] for name, on in order}
    targets = [f"{target:.0%}" for target in TARGETS]
    _table("rounds to", targets, {n: [_reached(g, t, _rounds) for t in TARGETS] for n, g in named.items()})
    _table("MB to", targets, {n: [_reached(g, t, _megabytes) for t in TARGETS] for n, g in named.items()})
    columns = ["best accuracy, %", "train-test gap", "bytes per client and round, up", "seeds"]
    _table("", columns, {name: _summary(group) for name, group in named.items()})


def print_compactions(args: argparse.Namespace) -> None:
    """Prints a Markdown table of a file of compactions."""
    columns = ["accuracy, %", "whole model's", "MACs ÷ its own", "parameters ÷ its own"]
    shares: dict[float, list[dict]] = {}
    for line in lines(args.file):
        for entry in line["shares"]:
            shares.setdefault(entry["share"], []).append(entry)
    _table("kept if active in", columns, {f"{s:.0%} of examples": _compacted(g) for s, g in shares.items()})


def _table(corner: str, columns: list[str], rows: dict[str, list[str]]) -> None:
    print(f"\n| {corner} | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


def _rounds(line: dict, target: float) -> float | None:
    """The first round after which the accuracy is at least the target."""
    return next((n for n, accuracy in enumerate(line["accuracy"], 1) if accuracy >= target), None)


def _megabytes(line: dict, target: float) -> float | None:
    """What all clients sent and received until then."""
    rounds = _rounds(line, target)
    return None if rounds is None else rounds * (line["bytes_up"] + line["bytes_down"]) / 1e6


def _reached(group: list[dict], target: float, measure) -> str:
    known = [value for line in group if (value := measure(line, target)) is not None]
    return interval(known) if len(known) == len(group) else f"{len(known)} of {len(group)} seeds"


def _summary(group: list[dict]) -> list[str]:
    gaps = [
        np.nanmean(np.subtract(line["client_train_accuracy"], line["client_test_accuracy"])) for line in group
    ]
    return [
        interval([100 * max(line["accuracy"]) for line in group]),
        interval(gaps, digits=3),
        f"{group[0]['bytes_up'] // 10:,}",
        str(len(group)),
    ]


def _compacted(group: list[dict]) -> list[str]:
    return [
        interval([100 * entry["accuracy"] for entry in group]),
        interval([100 * entry["whole_accuracy"] for entry in group]),
        interval([entry["macs"] / entry["whole_macs"] for entry in group], digits=3),
        interval([entry["parameters"] for entry in group], digits=3),
    ]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for name, command in {"run": run_missing, "compact": compact_missing}.items():
        run = commands.add_parser(name, help=command.__doc__)
        run.set_defaults(command=command)
        run.add_argument("--data-dir")
        run.add_argument("--rounds", type=int, default=30)
        run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        run.add_argument("--learning-rate", type=float, default=0.01)
        run.add_argument("--out", type=Path, required=True)
        if command is run_missing:
            run.add_argument("--federations", nargs="+", choices=FEDERATIONS, default=list(FEDERATIONS))
    for name, command in {"table": print_tables, "compact-table": print_compactions}.items():
        table = commands.add_parser(name, help=command.__doc__)
        table.set_defaults(command=command)
        table.add_argument("file", type=Path)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
