r"""Rounds and bytes to a target accuracy under four federated algorithms, with channel gates and without.

The same small network runs on Fashion-MNIST, divided among ten clients by a Dirichlet distribution of 0.1.
All clients take part in every round. The script appends one JSON line for each run that the file lacks:

    python experiments/adp_rounds.py run --data-dir DIR \
        --out fedjax_masks/claims/results/adp_fashion_mnist.jsonl

It prints the tables of a file, with mean and 95 % confidence interval over the seeds:

    python experiments/adp_rounds.py table fedjax_masks/claims/results/adp_fashion_mnist.jsonl

``compact`` and ``compact-table`` do the same for FedAvg's gated model after each client removed the channels
that its own data hardly use.
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from adp_tables import compaction_tables, round_tables
from common import append_line, read_lines

import fedjax_masks as fm
from fedjax_masks.core.algorithm import ClientIndex
from fedjax_masks.models import gated
from fedjax_masks.models.compaction import keep_outputs, parameter_count
from fedjax_masks.models.gates import channel_activity, channels_in_use, inference_macs

FEDERATIONS = {"FedAvg": fm.fedavg, "FedProx": fm.fedprox, "FedNova": fm.fednova, "SCAFFOLD": fm.scaffold}
WIDTHS = (8, 16, 32, 10)  # of the model `cnn`
TRAINING = {"epochs": 2, "batch_size": 20}
MOMENTUM = 0.9
RATIO, WEIGHT_DECAY = 0.7, 1e-5
EVERY_NTH, TEST_IMAGES = 40, 2000
SHARES = (0.01, 0.1, 0.5)


class Trained(NamedTuple):
    """A configuration after its last round."""

    model: fm.models.Model
    algorithm: fm.FederatedAlgorithm
    task: fm.Task
    run: fm.Run


def task_of(seed: int, data_dir: str | None) -> fm.Task:
    """A fortieth of every client's images, and the first 2,000 images of the test set."""
    task = fm.load_task("fashion_mnist", data_dir=data_dir, clients=10, partition="dirichlet:0.1", seed=seed)
    return dataclasses.replace(
        task,
        test_inputs=task.test_inputs[:TEST_IMAGES],
        test_labels=task.test_labels[:TEST_IMAGES],
        train=_index([rows[::EVERY_NTH] for rows in _rows(task.train)]),
        test=_index([rows[rows < TEST_IMAGES] for rows in _rows(task.test)]),
    )


def _rows(index: ClientIndex) -> list[np.ndarray]:
    return [index.rows[start : start + size] for start, size in zip(index.offsets, index.sizes)]


def _index(parts: list[np.ndarray]) -> ClientIndex:
    sizes = np.array([len(part) for part in parts], np.int32)
    return ClientIndex(np.concatenate(parts), np.cumsum(sizes, dtype=np.int32) - sizes, sizes)


def train(federation: str, gates: bool, seed: int, args: argparse.Namespace) -> Trained:
    """Runs one configuration to its last round."""
    task = task_of(seed, args.data_dir)
    net = fm.models.cnn(task).rebuild(WIDTHS)
    model = gated(net, ratio=RATIO) if gates else net
    optimizer = optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(args.learning_rate, momentum=MOMENTUM)
    )
    algorithm = FEDERATIONS[federation](model, optimizer, **TRAINING)
    run = fm.simulate(algorithm, task, rounds=args.rounds, cohort=10, seed=seed, eval_every=1)
    return Trained(model, algorithm, task, run)


def settings(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The settings of a run, as its line records them."""
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


def result(federation: str, gates: bool, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The line of one run."""
    start = time.perf_counter()
    _, algorithm, task, run = train(federation, gates, seed, args)
    rows, sizes = task.train.rows, task.train.sizes
    logits = jax.jit(algorithm.predict["global"])(run.state.server, None, task.inputs[rows])
    hits = np.argmax(logits, -1) == task.labels[rows]
    losses = [record["train_loss"] for record in run.records]
    return {
        "federation": federation,
        "gates": gates,
        **settings(seed, args),
        "accuracy": [record["global_accuracy"] for record in run.records],
        # Training can diverge; the loss is None where no client's loss is a number.
        "train_loss": [loss if loss is None else round(loss, 4) for loss in losses],
        "bytes_up": run.records[-1]["bytes_up"],
        "bytes_down": run.records[-1]["bytes_down"],
        "train_sizes": sizes.tolist(),
        "client_train_accuracy": (np.add.reduceat(hits, task.train.offsets) / sizes).tolist(),
        "client_test_accuracy": run.evaluation.personal.tolist(),
        "seconds": round(time.perf_counter() - start, 1),
    }


def compaction(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The line of FedAvg's final model without the channels that a client hardly uses."""
    model, _, task, run = train("FedAvg", True, seed, args)
    params, shares = run.state.server.params, []
    pairs = list(zip(_rows(task.train), _rows(task.test)))
    activities = [channel_activity(model, params, jnp.asarray(task.inputs[rows])) for rows, _ in pairs]
    for share in SHARES:
        clients = []
        for activity, (_, rows) in zip(activities, pairs):
            small, small_params = keep_outputs(model, params, channels_in_use(activity, share))
            whole = _measure(model, params, task, rows)
            sizes = {"parameters": parameter_count(small_params) / parameter_count(params)}
            clients.append(
                {f"whole_{name}": value for name, value in whole.items()}
                | _measure(small, small_params, task, rows)
                | sizes
            )
        means = {name: float(np.mean([client[name] for client in clients])) for name in clients[0]}
        shares.append({"share": share, **means})
    return {**settings(seed, args), "activity": _rounded(activities), "shares": shares}


def _measure(model: fm.models.Model, params: Any, task: fm.Task, rows: np.ndarray) -> dict[str, float]:
    """Accuracy on some test images, and multiply-accumulates of one inference."""
    logits, gates = jax.jit(model.forward)(params, task.test_inputs[rows])
    macs = inference_macs(model, {name: gate.active for name, gate in gates.items()})
    return {
        "accuracy": float(np.mean(np.argmax(logits, -1) == task.test_labels[rows])),
        "macs": float(np.mean(sum(macs))),
    }


def _rounded(activities: list[dict[str, Any]]) -> list[dict[str, list[float]]]:
    return [{name: np.round(values, 3).tolist() for name, values in client.items()} for client in activities]


def compact_missing(args: argparse.Namespace) -> None:
    """Appends the compactions that the file lacks."""
    for seed in set(args.seeds) - {line["seed"] for line in read_lines(args.out)}:
        append_line(args.out, compaction(seed, args))


def run_missing(args: argparse.Namespace) -> None:
    """Appends the runs that the file lacks, one seed after the other."""
    existing = {(line["federation"], line["gates"], line["seed"]) for line in read_lines(args.out)}
    for seed in args.seeds:
        for federation in args.federations:
            for gates in (False, True):
                if (federation, gates, seed) not in existing:
                    line = result(federation, gates, seed, args)
                    append_line(args.out, line)
                    name = f"{federation}, gates {'on' if gates else 'off'}, seed {seed}"
                    print(f"{name}: {max(line['accuracy']):.3f} in {line['seconds']} s", flush=True)


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
    for name, tables in {"table": round_tables, "compact-table": compaction_tables}.items():
        table = commands.add_parser(name, help=tables.__doc__)
        table.set_defaults(command=lambda args, tables=tables: print(tables(read_lines(args.file))))
        table.add_argument("file", type=Path)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
