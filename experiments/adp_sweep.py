"""Channel gates on a ResNet: accuracy, bytes to targets, selections by layer, and work of inference.

The first form writes one JSON line for each run of the sweep ``adp-resnet20-cifar10.toml``, the second prints
tables of a file, with mean and 95 % confidence interval over the seeds:

    python experiments/adp_sweep.py collect runs/adp-resnet20 > experiments/results/adp_resnet20_cifar10.jsonl
    python experiments/adp_sweep.py table experiments/results/adp_resnet20_cifar10.jsonl --targets 0.3 0.35

Differences and ratios are between runs of the same seed, against the setting without gates.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import by_setting, markdown, read_lines

from fedjax_masks.algorithms.gate_report import SELECTIONS
from fedjax_masks.analysis.loading import load_runs
from fedjax_masks.analysis.records import RunRecord
from fedjax_masks.core.intervals import interval
from fedjax_masks.models import build_model, gated
from fedjax_masks.models.gates import inference_macs

BASELINE = "fedavg"
LAST = 3  # evaluations whose mean is a run's accuracy

Line = dict[str, Any]


class _Cifar10(NamedTuple):
    input_shape: tuple[int, ...] = (32, 32, 3)
    num_classes: int = 10


def line(run: RunRecord) -> Line:
    """The line of one run; bytes are those of all clients, both ways, since round 0."""
    last = run.records[-1]["extra"]
    return {
        "run": run.name,
        "seed": run.config["seed"],
        "rounds": [record["round"] for record in run.records],
        "accuracy": [record["global_accuracy"] for record in run.records],
        "bytes": [record["bytes_up_total"] + record["bytes_down_total"] for record in run.records],
        "bytes_up": run.records[-1]["bytes_up_total"],
        "selections": {name.removeprefix(SELECTIONS): n for name, n in last.items() if SELECTIONS in name},
        "macs": inference_work(run.config),
    }


def inference_work(config: Mapping[str, Any]) -> int:
    """Multiply-accumulates of one inference on a device that skips suppressed channels."""
    options = dict(config["model"])
    model = build_model(options.pop("name"), _Cifar10(), **options)
    if config["algorithm"]["name"] != "adp":
        return sum(kernel.positions * math.prod(kernel.shape) for kernel in model.kernels)
    ratio = config["algorithm"]["ratio"]
    model = gated(model, ratio=ratio)
    active = {k.name: np.arange(k.outputs)[None] < round(ratio * k.outputs) for k in model.kernels if k.gate}
    return sum(int(macs[0]) for macs in inference_macs(model, active))


def tables(lines: Sequence[Line], targets: Sequence[float]) -> str:
    """Tables in Markdown: accuracy and work, bytes to targets, selections by layer."""
    groups = by_setting(lines)
    baseline = {line["seed"]: line for line in groups[BASELINE]}
    headings = [
        "",
        f"accuracy, last {LAST}, %",
        f"above {BASELINE}",
        "best, %",
        "bytes up ÷",
        "MACs ÷",
        "seeds",
    ]
    summary = markdown(headings, [[name, *_summary(group, baseline)] for name, group in groups.items()])
    costs = markdown(
        ["MB to", *(f"{target:.0%}" for target in targets)],
        [
            [name, *(_megabytes(group, baseline, target) for target in targets)]
            for name, group in groups.items()
        ],
    )
    reported = {name: group for name, group in groups.items() if group[0]["selections"]}
    layers = list(next(iter(reported.values()))[0]["selections"])
    selections = markdown(
        ["selections of a client, mean", *reported],
        [[layer, *(_selections(group, layer) for group in reported.values())] for layer in layers],
    )
    return "\n\n".join((summary, costs, selections))


def bytes_to(line: Line, target: float) -> int | None:
    """Bytes up to the first evaluation that reached the target, or None.

    >>> bytes_to({"accuracy": [0.2, 0.4, 0.3], "bytes": [5, 10, 15]}, 0.3)
    10
    """
    pairs = zip(line["accuracy"], line["bytes"], strict=True)
    return next((number for accuracy, number in pairs if accuracy >= target), None)


def _accuracy(line: Line) -> float:
    return 100 * statistics.fmean(line["accuracy"][-LAST:])


def _summary(group: Sequence[Line], baseline: Mapping[int, Line]) -> list[str]:
    pairs = [(line, baseline[line["seed"]]) for line in group]
    first, other = pairs[0]
    return [
        interval([_accuracy(line) for line in group]),
        interval([_accuracy(line) - _accuracy(theirs) for line, theirs in pairs]),
        interval([100 * max(line["accuracy"]) for line in group]),
        f"{first['bytes_up'] / other['bytes_up']:.3f}",
        f"{first['macs'] / other['macs']:.3f}",
        str(len(group)),
    ]


def _megabytes(group: Sequence[Line], baseline: Mapping[int, Line], target: float) -> str:
    """Megabytes over seeds, and their ratio to the baseline's where both reach the target in all seeds."""
    costs = [bytes_to(line, target) for line in group]
    values = [cost / 1e6 for cost in costs if cost is not None]
    if len(values) < len(group):
        return f"{len(values)} of {len(group)} seeds"
    theirs = [bytes_to(baseline[line["seed"]], target) for line in group]
    shares = [mine * 1e8 / cost for mine, cost in zip(values, theirs, strict=True) if cost is not None]
    return f"{interval(values)} ({interval(shares)} %)" if len(shares) == len(values) else interval(values)


def _selections(group: Sequence[Line], layer: str) -> str:
    return interval([line["selections"][layer] for line in group])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("collect", help="write the lines").add_argument("runs", nargs="+")
    table = commands.add_parser("table", help="print the tables")
    table.add_argument("file", type=Path)
    table.add_argument("--targets", type=float, nargs="+", default=[0.25, 0.3, 0.35, 0.4])
    args = parser.parse_args()
    if args.command == "table":
        print(tables(read_lines(args.file), args.targets))
    else:
        for run in load_runs(args.runs):
            print(json.dumps(line(run)))


if __name__ == "__main__":
    main()
