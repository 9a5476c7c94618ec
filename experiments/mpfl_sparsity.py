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

It prints a table, or draws a figure, with mean and 95 % confidence interval over the seeds. It does the same
for the differences between MPFL and each other curve on the same seeds, of one file or several:

    python experiments/mpfl_sparsity.py table FILE.jsonl
    python experiments/mpfl_sparsity.py figure FILE.jsonl --out FILE.png
    python experiments/mpfl_sparsity.py gaps FILE.jsonl ...
    python experiments/mpfl_sparsity.py ladder FILE.jsonl ... --iteration 7 --out FILE.png

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
    printing = commands.add_parser("table", help="print results as a table")
    printing.set_defaults(command=lambda args: print(table(read_lines(args.file))))
    printing.add_argument("file", type=Path)
    figure = commands.add_parser("figure", help="draw results")
    figure.set_defaults(command=lambda args: draw(read_lines(args.file), args.out))
    figure.add_argument("file", type=Path)
    figure.add_argument("--out", type=Path, required=True)
    gaps = commands.add_parser("gaps", help="print MPFL minus each other curve, in points")
    gaps.set_defaults(command=lambda args: print(gaps_table({f.stem: read_lines(f) for f in args.files})))
    gaps.add_argument("files", type=Path, nargs="+")
    ladder = commands.add_parser("ladder", help="draw MPFL minus each other curve, by file")
    ladder.set_defaults(
        command=lambda args: draw_ladder(
            {f.stem: read_lines(f) for f in args.files}, args.iteration, args.out
        )
    )
    ladder.add_argument("files", type=Path, nargs="+")
    ladder.add_argument("--iteration", type=int, default=7)
    ladder.add_argument("--out", type=Path, required=True)
    timing = commands.add_parser("timing", help="time masked against compacted rounds")
    timing.set_defaults(command=lambda args: print(timing_table(args.turns)))
    timing.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
