"""Accuracy against sparsity: MPFL, pruning after FedAvg, and central pruning.

The script compares three ways to a mask of a model's convolution filters. Every layer loses the same share:

- mpfl: the clients vote and exchange masks alone (mpfl_search), in iterations of 10 % each;
- fedavg-then-prune: FedAvg trains the whole model, then each layer loses its smallest filters;
- central: the search of MPFL by a single client that holds all data.

The score of a mask is the accuracy after federated training of the remaining weights. Training starts from
the initial weights, or after FedAvg from the trained ones. MPFL's masks are also scored as published, by
training on all data in one place (mpfl-central-score). The pruned model is trained in its compacted form,
which gives the same parameters.

The script appends one JSON line per point, and does not repeat points that the file has:

    python experiments/mpfl_sparsity.py run --out FILE.jsonl

It prints a table, or draws a figure, with mean and 95 % confidence interval over the seeds:

    python experiments/mpfl_sparsity.py table FILE.jsonl
    python experiments/mpfl_sparsity.py figure FILE.jsonl --out FILE.png

It also times a round of the masked form against one of the compacted form:

    python experiments/mpfl_sparsity.py timing
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
from common import append_line, read_lines
from mpfl_models import BATCH, compacted, make_model, optimizer, smallest_pruned, sparsity
from mpfl_tables import draw, table
from mpfl_timing import timing_table

import fedjax_masks as fm
from fedjax_masks.data.tasks import index_of
from fedjax_masks.models import Model

ITERATIONS = (3, 5, 7, 9)  # the masks of these are scored: 30 to 90 % of the filters are pruned
SHARE = 0.1

Line = dict[str, Any]


class Trained(NamedTuple):
    """A model after training.

    Attributes:
      params: The parameters.
      accuracy: The accuracy on the test set.
      bytes_total: Bytes that all clients sent and received.
    """

    params: Any
    accuracy: float | None
    bytes_total: int


class Search(NamedTuple):
    """A search for masks.

    Attributes:
      initial: The initial weights.
      masks: The mask after each iteration.
      bytes_total: Bytes that all clients sent and received up to each iteration.
    """

    initial: Any
    masks: list[Any]
    bytes_total: list[int]


def pooled(task: fm.Task) -> fm.Task:
    """The task with a single client that holds all data."""
    return replace(task, train=index_of([task.train.rows]), test=index_of([task.test.rows]))


def search(model: Model, task: fm.Task, *, seed: int, epochs: int) -> Search:
    """Searches for masks by votes."""
    algorithm = fm.mpfl_search(
        model, optimizer(), epochs=epochs, batch_size=BATCH, prune_share=SHARE, prune_bias=True
    )
    simulation = fm.make_simulation(algorithm, task, cohort=task.num_clients, seeds=(seed,), chunk=1)
    state, masks, totals = simulation.init(), [], [0]
    for iteration in range(1 + max(ITERATIONS)):
        state, (metrics,) = simulation.run(state, iteration, 1)
        masks.append(jax.device_get(state.server.filters))
        totals.append(totals[-1] + int(metrics.bytes_up.sum() + metrics.bytes_down.sum()))
    return Search(jax.device_get(state.server.initial), masks, totals[1:])


def train(model: Model, params: Any, task: fm.Task, *, seed: int, rounds: int) -> Trained:
    """Runs FedAvg; with a pooled task, this is central training.

    Args:
      model: The model.
      params: The parameters at the start; None takes the model's initial ones.
      task: The task.
      seed: The seed.
      rounds: The number of rounds.
    """
    algorithm = fm.fedavg(model, optimizer(), batch_size=BATCH)
    simulation = fm.make_simulation(algorithm, task, cohort=task.num_clients, seeds=(seed,), chunk=rounds)
    state = simulation.init()
    if params is not None:
        state = state._replace(server=state.server._replace(params=jax.device_put(params)))
    state, (metrics,) = simulation.run(state, 0, rounds)
    accuracy = simulation.evaluate(state)[0].global_accuracy
    total = int(metrics.bytes_up.sum() + metrics.bytes_down.sum())
    return Trained(jax.device_get(state.server.params), accuracy, total)


def points(args: argparse.Namespace, seed: int) -> dict[tuple[str, int], Callable[[], Line]]:
    """The points of one seed, by curve and iteration: a function runs each."""
    task = fm.load_task(
        args.dataset,
        clients=args.clients,
        partition=args.partition,
        examples_per_client=args.examples,
        data_dir=args.data_dir,
        seed=seed,
    )
    model, pooled_task = make_model(task), pooled(task)

    @cache
    def masks_of(central: bool) -> Search:
        return search(model, pooled_task if central else task, seed=seed, epochs=args.search_epochs)

    @cache
    def dense() -> Trained:
        return train(model, None, task, seed=seed, rounds=args.rounds)

    def score_dense() -> Line:
        return {"sparsity": 0.0, "accuracy": dense().accuracy, "bytes_total": dense().bytes_total}

    def score(filters: Any, params: Any, search_bytes: int, data: fm.Task) -> Line:
        trained = train(*compacted(model, params, filters), data, seed=seed, rounds=args.rounds)
        total = search_bytes + trained.bytes_total if data is task else None
        return {"sparsity": sparsity(filters), "accuracy": trained.accuracy, "bytes_total": total}

    def by_search(iteration: int, *, central: bool, data: fm.Task) -> Line:
        initial, masks, totals = masks_of(central)
        return score(masks[iteration], initial, 0 if central else totals[iteration], data)

    def after_fedavg(iteration: int) -> Line:
        filters = smallest_pruned(model, dense().params, SHARE * iteration)
        return score(filters, dense().params, dense().bytes_total, task)

    calls: dict[tuple[str, int], Callable[[], Line]] = {("dense", 0): score_dense}
    for t in ITERATIONS:
        calls |= {
            ("mpfl", t): lambda t=t: by_search(t, central=False, data=task),
            ("fedavg-then-prune", t): lambda t=t: after_fedavg(t),
            ("central", t): lambda t=t: by_search(t, central=True, data=task),
            ("mpfl-central-score", t): lambda t=t: by_search(t, central=False, data=pooled_task),
        }
    return calls


def run_missing(args: argparse.Namespace) -> None:
    """Appends the points that the file lacks."""
    existing = {(line["curve"], line["iteration"], line["seed"]) for line in read_lines(args.out)}
    # All seeds and curves have the same shapes.
    jax.config.update("jax_compilation_cache_dir", args.compiled or tempfile.mkdtemp())
    keys = ("dataset", "partition", "clients", "examples", "rounds", "search_epochs")
    settings = {key: getattr(args, key) for key in keys}
    for seed in args.seeds:
        for (curve, iteration), run_point in points(args, seed).items():
            if (curve, iteration, seed) in existing:
                continue
            start = time.perf_counter()
            line = {"curve": curve, "iteration": iteration, "seed": seed, **run_point(), **settings}
            line["seconds"] = round(time.perf_counter() - start, 1)
            line["device"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
            line["jax"] = jax.__version__
            append_line(args.out, line)
            print(f"seed {seed} {curve:20s} {line['sparsity']:.2f}: {line['accuracy']:.3f}", flush=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help=run_missing.__doc__)
    run.set_defaults(command=run_missing)
    run.add_argument("--dataset", default="fashion_mnist")
    run.add_argument("--data-dir")
    run.add_argument(
        "--partition", default="iid", help="with corruption: iid+corrupt_pixels:0+corrupt_labels:1"
    )
    run.add_argument("--clients", type=int, default=10)
    run.add_argument("--examples", type=int, default=400, help="training examples of each client")
    run.add_argument("--rounds", type=int, default=20, help="rounds of each federated training")
    run.add_argument("--search-epochs", type=int, default=2)
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    run.add_argument("--compiled", help="folder of compiled programs; default: a new one")
    run.add_argument("--out", type=Path, required=True)
    printing = commands.add_parser("table", help="print results as a table")
    printing.set_defaults(command=lambda args: print(table(read_lines(args.file))))
    printing.add_argument("file", type=Path)
    figure = commands.add_parser("figure", help="draw results")
    figure.set_defaults(command=lambda args: draw(read_lines(args.file), args.out))
    figure.add_argument("file", type=Path)
    figure.add_argument("--out", type=Path, required=True)
    timing = commands.add_parser("timing", help="time masked against compacted rounds")
    timing.set_defaults(command=lambda args: print(timing_table(args.turns)))
    timing.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
