"""Accuracy against sparsity: MPFL, pruning after FedAvg, and central pruning.

Three ways to a mask of a model's convolution filters, in which every layer loses the same share:

- mpfl: the clients vote, exchanging masks only (mpfl_search), in iterations of 10 % each;
- fedavg-then-prune: FedAvg trains the whole model, then each layer's smallest filters go;
- central: the same search as MPFL's, by one client that holds all data.

Each mask is scored by federated training of what it leaves: of the initial weights, and after
FedAvg of the trained ones. MPFL's masks are also scored as published, by training on all data
in one place (mpfl-central-score). The pruned model is trained in its compacted form, which gives the
same parameters.

Appends one JSON line per point; points that are there already are not run again:

    python experiments/mpfl_sparsity.py run --out FILE.jsonl

Prints them as a table, mean and 95 % confidence interval over the seeds, or draws them:

    python experiments/mpfl_sparsity.py table FILE.jsonl
    python experiments/mpfl_sparsity.py figure FILE.jsonl --out FILE.png

Times a round of the masked form against one of the compacted form:

    python experiments/mpfl_sparsity.py timing
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from common import append, lines

import fedjax_masks as fm
from fedjax_masks.algorithms.masked_fedavg import survivors
from fedjax_masks.algorithms.mpfl import filter_norms, keep_largest
from fedjax_masks.analysis.style import BASELINE, PALETTE, drawing
from fedjax_masks.core.intervals import half_width, interval
from fedjax_masks.core.masks import prune
from fedjax_masks.data.tasks import index_of
from fedjax_masks.models import Model
from fedjax_masks.models.compaction import compact

ITERATIONS = (3, 5, 7, 9)  # of which the masks are scored: 30 to 90 % of the filters are pruned
SHARE = 0.1
BATCH = 20
CURVES = {
    "mpfl": ("MPFL", PALETTE[0], "o"),
    "fedavg-then-prune": ("FedAvg, then prune", BASELINE, "s"),
    "central": ("central pruning", PALETTE[1], "D"),
    "mpfl-central-score": ("MPFL, trained centrally", PALETTE[2], "^"),
}


class Trained(NamedTuple):
    """The end of a training: parameters, accuracy on the test set, bytes sent by all."""

    params: Any
    accuracy: float
    bytes_total: int


def make_model(task: fm.Task) -> Model:
    """LeNet of half its width, with as many filters as tenths of them can be pruned exactly."""
    return fm.models.lenet(task).rebuild((10, 20, 64, task.num_classes))


def pooled(task: fm.Task) -> fm.Task:
    """The task with one client that holds everything."""
    return replace(task, train=index_of([task.train.rows]), test=index_of([task.test.rows]))


def optimizer() -> optax.GradientTransformation:
    """The clients' optimiser everywhere."""
    return optax.adam(2e-3)


def search(model: Model, task: fm.Task, *, seed: int, epochs: int) -> tuple[Any, list[Any], list[int]]:
    """The initial weights, and after each iteration the mask and all bytes sent so far."""
    algorithm = fm.mpfl_search(
        model, optimizer(), epochs=epochs, batch_size=BATCH, prune_share=SHARE, prune_bias=True
    )
    simulation = fm.make_simulation(algorithm, task, cohort=task.num_clients, seed=seed, chunk=1)
    state, masks, sent = simulation.init(), [], [0]
    for iteration in range(1 + max(ITERATIONS)):
        state, metrics = simulation.run(state, iteration, 1)
        masks.append(jax.device_get(state.server.filters))
        sent.append(sent[-1] + int(metrics.bytes_up.sum() + metrics.bytes_down.sum()))
    return jax.device_get(state.common), masks, sent[1:]


def train(model: Model, params: Any, task: fm.Task, *, seed: int, rounds: int) -> Trained:
    """FedAvg from given parameters, or the initial ones; with a pooled task, central training."""
    algorithm = fm.fedavg(model, optimizer(), batch_size=BATCH)
    simulation = fm.make_simulation(algorithm, task, cohort=task.num_clients, seed=seed, chunk=rounds)
    state = simulation.init()
    if params is not None:
        state = state._replace(server=state.server._replace(params=jax.device_put(params)))
    state, metrics = simulation.run(state, 0, rounds)
    accuracy = simulation.evaluate(state).global_accuracy
    sent = int(metrics.bytes_up.sum() + metrics.bytes_down.sum())
    return Trained(jax.device_get(state.server.params), accuracy, sent)


def smallest_pruned(model: Model, params: Any, share: float) -> Any:
    """Prunes the share of each layer's filters that has the smallest norms."""
    kernels = [kernel for kernel in model.kernels if kernel.kind == "conv"]
    norms = filter_norms(kernels, params)
    return {n: keep_largest(v, np.ones(len(v), bool), share) for n, v in norms.items()}


def compacted(model: Model, params: Any, filters: Any) -> tuple[Model, Any]:
    """The model without the pruned filters."""
    kept = survivors(model.kernels, params, jax.tree.map(jax.numpy.asarray, filters), prune_bias=True)
    return compact(model, prune(params, kept))


def sparsity(filters: Any) -> float:
    """The share of all filters that is pruned."""
    return float(1 - np.concatenate([np.asarray(mask) for mask in filters.values()]).mean())


def points(args: argparse.Namespace, seed: int) -> dict[tuple[str, int], Callable[[], dict]]:
    """What there is to run of one seed: a function per curve and iteration."""
    task = fm.load_task(
        args.dataset,
        clients=args.clients,
        partition=args.partition,
        examples_per_client=args.examples,
        data_dir=args.data_dir,
        seed=seed,
    )
    model, everything = make_model(task), pooled(task)

    @cache
    def searched(central: bool) -> tuple[Any, list[Any], list[int]]:
        return search(model, everything if central else task, seed=seed, epochs=args.search_epochs)

    @cache
    def dense() -> Trained:
        return train(model, None, task, seed=seed, rounds=args.rounds)

    def whole() -> dict:
        return {"sparsity": 0.0, "accuracy": dense().accuracy, "bytes_total": dense().bytes_total}

    def score(filters: Any, params: Any, before: int, where: fm.Task) -> dict:
        end = train(*compacted(model, params, filters), where, seed=seed, rounds=args.rounds)
        bytes_total = before + end.bytes_total if where is task else None
        return {"sparsity": sparsity(filters), "accuracy": end.accuracy, "bytes_total": bytes_total}

    def by_search(iteration: int, *, central: bool, where: fm.Task) -> dict:
        initial, masks, sent = searched(central)
        return score(masks[iteration], initial, 0 if central else sent[iteration], where)

    def after_fedavg(iteration: int) -> dict:
        trained = dense()
        filters = smallest_pruned(model, trained.params, SHARE * iteration)
        return score(filters, trained.params, trained.bytes_total, task)

    found: dict[tuple[str, int], Callable[[], dict]] = {("dense", 0): whole}
    for t in ITERATIONS:
        found |= {
            ("mpfl", t): lambda t=t: by_search(t, central=False, where=task),
            ("fedavg-then-prune", t): lambda t=t: after_fedavg(t),
            ("central", t): lambda t=t: by_search(t, central=True, where=task),
            ("mpfl-central-score", t): lambda t=t: by_search(t, central=False, where=everything),
        }
    return found


def run_missing(args: argparse.Namespace) -> None:
    """Runs what is not in the file yet."""
    done = {(line["curve"], line["iteration"], line["seed"]) for line in lines(args.out)}
    # The same shapes come back with every seed and every curve.
    jax.config.update("jax_compilation_cache_dir", args.compiled or tempfile.mkdtemp())
    settings = {
        key: getattr(args, key)
        for key in ("dataset", "partition", "clients", "examples", "rounds", "search_epochs")
    }
    for seed in args.seeds:
        for (curve, iteration), point in points(args, seed).items():
            if (curve, iteration, seed) in done:
                continue
            began = time.perf_counter()
            line = {"curve": curve, "iteration": iteration, "seed": seed, **point(), **settings}
            line["seconds"] = round(time.perf_counter() - began, 1)
            line |= {
                "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
                "jax": jax.__version__,
            }
            append(args.out, line)
            print(f"seed {seed} {curve:20s} {line['sparsity']:.2f}: {line['accuracy']:.3f}", flush=True)


def grouped(path: Path) -> dict[str, dict[int, list[dict]]]:
    """By curve and iteration the lines of all seeds; federated curves start from the dense model."""
    found: dict[str, dict[int, list[dict]]] = {curve: defaultdict(list) for curve in CURVES}
    federated = [curve for curve in CURVES if not curve.endswith("score")]
    for line in lines(path):
        for curve in federated if line["curve"] == "dense" else [line["curve"]]:
            found[curve][line["iteration"]].append(line)
    return found


def print_table(args: argparse.Namespace) -> None:
    """Prints a Markdown table."""
    curves = grouped(args.file)
    print("| filters pruned, % | " + " | ".join(label for label, _, _ in CURVES.values()) + " |")
    print("|---" * (1 + len(CURVES)) + "|")
    for iteration in (0, *ITERATIONS):
        groups = [curves[curve][iteration] for curve in CURVES]
        share = statistics.fmean(line["sparsity"] for group in groups for line in group)
        cells = [interval([100 * line["accuracy"] for line in group]) for group in groups]
        print(f"| {100 * share:.0f} | " + " | ".join(cells) + " |")


def draw(args: argparse.Namespace) -> None:
    """Draws mean and 95 % confidence interval over the seeds."""
    from fedjax_masks.analysis.plotting import Figure

    with drawing():
        figure = Figure(figsize=(5.0, 3.6), layout="constrained")
        ax = figure.subplots()
        for curve, groups in grouped(args.file).items():
            label, color, marker = CURVES[curve]
            ordered = [groups[key] for key in sorted(groups)]
            x = [100 * statistics.fmean(line["sparsity"] for line in group) for group in ordered]
            y = np.array([100 * statistics.fmean(line["accuracy"] for line in group) for group in ordered])
            half = np.array([half_width([100 * line["accuracy"] for line in group]) for group in ordered])
            dash = (0, (1.2, 1.4)) if curve.endswith("score") else "-"
            ax.plot(x, y, marker=marker, color=color, label=label, linestyle=dash)
            ax.fill_between(x, y - half, y + half, color=color, alpha=0.13, linewidth=0)
        ax.set(xlabel="convolution filters pruned (%)", ylabel="test accuracy (%)")
        figure.legend(loc="outside lower center", ncols=2)
        figure.savefig(args.out, dpi=150)


def print_timing(args: argparse.Namespace) -> None:
    """Prints, by model and share pruned, the median time of a round in either form and their ratio."""
    task = fm.load_task("digits", clients=10)  # for the labels' number and the clients' sizes only
    task = replace(task, inputs=np.repeat(np.repeat(task.inputs, 4, 1), 4, 2)[:, 2:30, 2:30])
    for name, model in {"LeNet 10-20-64": make_model(task), "LeNet 20-50-500": fm.models.lenet(task)}.items():
        for share in (0.5, 0.9):
            initial = model.init(jax.random.key(0))
            filters = smallest_pruned(model, initial, share)
            masked = fm.masked_fedavg(model, optimizer(), filters=filters, prune_bias=True, batch_size=BATCH)
            params = model.init(jax.random.key(0))
            small, _ = compacted(model, params, filters)
            forms = [
                _rounds(form, task) for form in (masked, fm.fedavg(small, optimizer(), batch_size=BATCH))
            ]
            pairs = [[one_round() for one_round in forms] for _ in range(args.turns)]
            masked_ms, small_ms = (1e3 * statistics.median(column) for column in zip(*pairs))
            ratio = statistics.median(a / b for a, b in pairs)
            cells = (name, f"{100 * share:.0f}", f"{masked_ms:.0f}", f"{small_ms:.0f}", f"{ratio:.2f}")
            print("| " + " | ".join(cells) + " |", flush=True)


def _rounds(algorithm: fm.FederatedAlgorithm, task: fm.Task) -> Callable[[], float]:
    """A function that runs one more round and returns its seconds."""
    simulation = fm.make_simulation(algorithm, task, cohort=task.num_clients, chunk=1)
    carry = [simulation.run(simulation.init(), 0, 1)[0]]

    def one_round() -> float:
        began = time.perf_counter()
        carry[0], _ = simulation.run(carry[0], 1, 1)
        return time.perf_counter() - began

    return one_round


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="run what is missing")
    run.set_defaults(command=run_missing)
    run.add_argument("--dataset", default="fashion_mnist")
    run.add_argument("--data-dir")
    run.add_argument(
        "--partition", default="iid", help="with corruption: iid+corrupt_pixels:0+corrupt_labels:1"
    )
    run.add_argument("--clients", type=int, default=10)
    run.add_argument("--examples", type=int, default=400, help="training examples of each client")
    run.add_argument("--rounds", type=int, default=20, help="of each federated training")
    run.add_argument("--search-epochs", type=int, default=2)
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    run.add_argument("--compiled", help="where compiled programs are kept; default: a new place")
    run.add_argument("--out", type=Path, required=True)
    table = commands.add_parser("table", help="print results as a table")
    table.set_defaults(command=print_table)
    table.add_argument("file", type=Path)
    figure = commands.add_parser("figure", help="draw results")
    figure.set_defaults(command=draw)
    figure.add_argument("file", type=Path)
    figure.add_argument("--out", type=Path, required=True)
    timing = commands.add_parser("timing", help="time masked against compacted rounds")
    timing.set_defaults(command=print_timing)
    timing.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
