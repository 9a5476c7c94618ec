"""Accuracy against sparsity: MPFL, its controls, pruning after FedAvg, and central pruning.

The script compares masks of a model's convolution filters. Every layer loses the same share:

- mpfl: the clients vote and exchange masks alone (mpfl_search), in iterations of 10 % each;
- fedavg-mask: FedAvg trains the whole model, whose filters with the smallest norms are pruned;
- fedavg-then-prune: the same mask, but training continues from FedAvg's weights;
- central: the search of MPFL by a single client that holds all data;
- initial: the norms of the initial weights decide, without any search;
- inverted: the filters with the largest norms of the initial weights are pruned;
- random: random filters are pruned.

The score of a mask is the accuracy after federated training of the remaining weights. Training starts from
the initial weights, except in fedavg-then-prune. The authors, too, start every mask from the initial weights,
but train it on all data in one place: --score central does so for all curves, and the curve
mpfl-central-score for MPFL's masks. The pruned model is trained in its compacted form, which gives the same
parameters.

The published initial weights are pre-trained: --pretrained public trains them on examples that no client
has, --pretrained fractal on images of fractals. The published heterogeneity is --partition
iid+corrupt_pixels:0+corrupt_labels:1.

The script appends one JSON line per point, and does not repeat points that the file has. A file has one
setting:

    python experiments/mpfl_sparsity.py run --out FILE.jsonl

It prints a table, and draws a figure, with mean and 95 % confidence interval over the seeds. It does the same
for the differences between MPFL and each other curve on the same seeds, of one file or several:

    python experiments/mpfl_sparsity.py table FILE.jsonl --out FILE.png
    python experiments/mpfl_sparsity.py gaps FILE.jsonl ... --iteration 7 --out FILE.png

It also times a round of the masked form against one of the compacted form:

    python experiments/mpfl_sparsity.py timing
"""

import argparse
import tempfile
import time
from dataclasses import asdict, fields
from pathlib import Path

import jax
from common import append_line, read_lines
from mpfl_curves import CURVES, Seed, Setting, setting_of
from mpfl_models import WIDTHS
from mpfl_tables import draw, draw_ladder, gaps_table, table
from mpfl_timing import timing_table

ITERATIONS = (3, 5, 7, 9)  # the masks of these are scored: 30 to 90 % of the filters are pruned
CHOICES = {"model": tuple(WIDTHS), "optimizer": ("adam", "sgd"), "score": ("federated", "central")}
HELP = {
    "partition": "with corruption: iid+corrupt_pixels:0+corrupt_labels:1",
    "examples": "training examples of each client",
    "rounds": "rounds of each federated training",
    "search_epochs": "local epochs in an iteration of a search",
    "momentum": "momentum of sgd",
    "pretrained": "initial weights: random, public, fractal, or a file such as npz:FILE",
    "pretrained_epochs": "epochs of pre-training",
    "public": "examples of --pretrained public",
    "score": "training under a mask: federated, or on all data in one place",
}


def run_missing(args: argparse.Namespace) -> None:
    """Appends the points that the file lacks."""
    setting = Setting(**{field.name: getattr(args, field.name) for field in fields(Setting)})
    lines = read_lines(args.out)
    for line in lines:
        if setting_of(line) != asdict(setting):
            changes = [f"{key}={value}" for key, value in setting_of(line).items() - asdict(setting).items()]
            raise SystemExit(f"error: --out {args.out}: must be a file of this setting; it has {changes}")
    existing = {(line["curve"], line["iteration"], line["seed"]) for line in lines}
    # All seeds and curves have the same shapes.
    jax.config.update("jax_compilation_cache_dir", args.compiled or tempfile.mkdtemp())
    for seed in args.seeds:
        runs = Seed(setting, seed, iterations=max(args.iterations), data_dir=args.data_dir)
        for (curve, iteration), run_point in runs.points(args.curves, args.iterations).items():
            if (curve, iteration, seed) in existing:
                continue
            start = time.perf_counter()
            line = {"curve": curve, "iteration": iteration, "seed": seed, **run_point(), **asdict(setting)}
            line["seconds"] = round(time.perf_counter() - start, 1)
            line["device"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
            line["jax"] = jax.__version__
            append_line(args.out, line)
            print(f"seed {seed} {curve:20s} {line['sparsity']:.2f}: {line['accuracy']:.3f}", flush=True)


def print_table(args: argparse.Namespace) -> None:
    """Prints the accuracies of a file, and draws them."""
    lines = read_lines(args.file)
    print(table(lines))
    if args.out:
        draw(lines, args.out)


def print_gaps(args: argparse.Namespace) -> None:
    """Prints MPFL minus each other curve, and draws it after one iteration."""
    files = {file.stem: read_lines(file) for file in args.files}
    print(gaps_table(files))
    if args.out:
        draw_ladder(files, args.iteration, args.out)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser(
        "run", help=run_missing.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    run.set_defaults(command=run_missing)
    for field in fields(Setting):
        option, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        text = HELP.get(field.name, " ")
        run.add_argument(option, type=kind, default=field.default, choices=CHOICES.get(field.name), help=text)
    run.add_argument("--curves", nargs="+", choices=tuple(CURVES), default=list(CURVES), help=" ")
    run.add_argument("--iterations", type=int, nargs="+", default=list(ITERATIONS), help="masks to score")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help=" ")
    run.add_argument("--data-dir", help="folder of data sets")
    run.add_argument("--compiled", help="folder of compiled programs; none is a new one")
    run.add_argument("--out", type=Path, required=True, help="the result file")
    curves = commands.add_parser("table", help="print results, and draw them")
    curves.set_defaults(command=print_table)
    curves.add_argument("file", type=Path)
    gaps = commands.add_parser("gaps", help="print MPFL minus each other curve, and draw it by file")
    gaps.set_defaults(command=print_gaps)
    gaps.add_argument("files", type=Path, nargs="+")
    gaps.add_argument("--iteration", type=int, default=7, help="the mask of the figure")
    for printing in (curves, gaps):
        printing.add_argument("--out", type=Path, help="file of a figure")
    timing = commands.add_parser("timing", help="time masked against compacted rounds")
    timing.set_defaults(command=lambda args: print(timing_table(args.turns)))
    timing.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
