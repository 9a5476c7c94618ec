"""Tables of channel gates on a ResNet: accuracy and work of inference, bytes to targets, selections by layer.

Lines are those of the sweep ``adp-resnet20-cifar10.toml``:

    file=fedjax_masks/claims/results/adp_resnet20_cifar10.jsonl
    python experiments/collect.py --curves runs/adp-resnet20/*seed=* > $file
    python experiments/adp_sweep.py accuracy $file
    python experiments/adp_sweep.py bytes $file --targets 0.3 0.35 --out FIGURE.png
    python experiments/adp_sweep.py selections $file

Numbers are means over seeds with 95 % confidence intervals. Differences and ratios are between runs of the
same seed, against the setting without gates or another one (--baseline).
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import by_setting, markdown, read_lines, saved_figure

from fedjax_masks.algorithms.gate_report import SELECTIONS
from fedjax_masks.analysis.marks import band
from fedjax_masks.analysis.plotting import Axes
from fedjax_masks.analysis.style import PALETTE
from fedjax_masks.claims.curves import best_accuracy, bytes_to
from fedjax_masks.core.intervals import half_width, interval
from fedjax_masks.models import build_model, gated
from fedjax_masks.models.gates import inference_macs

Line = dict[str, Any]
Groups = Mapping[str, Sequence[Line]]


class _Cifar10(NamedTuple):
    input_shape: tuple[int, ...] = (32, 32, 3)
    num_classes: int = 10


def accuracy_table(groups: Groups, baseline_name: str = "fedavg") -> str:
    """A table in Markdown: accuracies, and bytes and work over the baseline's."""
    baseline = _by_seed(groups[baseline_name])
    above = f"above {baseline_name}"
    headings = ["", "accuracy, %", above, "best, %", above, "bytes up ÷", "MACs ÷", "seeds"]
    return markdown(headings, [[name, *_summary(group, baseline)] for name, group in groups.items()])


def bytes_table(groups: Groups, targets: Sequence[float], baseline_name: str = "fedavg") -> str:
    """A table in Markdown: megabytes to targets, and their share of the baseline's."""
    baseline = _by_seed(groups[baseline_name])
    rows = [
        [name, *(_megabytes(group, baseline, target) for target in targets)] for name, group in groups.items()
    ]
    return markdown(["MB to", *(f"{target:.0%}" for target in targets)], rows)


def selections_table(groups: Groups) -> str:
    """A table in Markdown: different selections among the images of a client, by layer."""
    chosen = {name: [_selections(line) for line in group] for name, group in groups.items()}
    chosen = {name: counts for name, counts in chosen.items() if counts[0]}
    layers = next(iter(chosen.values()))[0]
    return markdown(
        ["layer", *chosen],
        [[layer, *(interval([n[layer] for n in counts]) for counts in chosen.values())] for layer in layers],
    )


def draw(ax: Axes, groups: Groups) -> None:
    """Draws accuracy against bytes: a line and the interval of the mean for each setting."""
    for color, (name, group) in zip(PALETTE, groups.items()):
        megabytes = np.mean([line["evaluations"]["bytes"] for line in group], axis=0) / 1e6
        accuracies = np.array([line["evaluations"]["global_accuracy"] for line in group])
        mean, half = accuracies.mean(axis=0), np.array([half_width(column) for column in accuracies.T])
        ax.plot(megabytes, 100 * mean, color=color, label=name)
        band(ax, megabytes, mean - half, mean + half, color)
    ax.set_xlabel("MB of all clients, both ways")
    ax.set_ylabel("global accuracy, %")
    ax.legend()


def save_figure(groups: Groups, out: Path) -> None:
    """Draws the figure into a file."""
    with saved_figure(out, 5, 3.4) as figure:
        draw(figure.subplots(), groups)


def inference_work(line: Line) -> int:
    """Multiply-accumulates of one inference on a device that skips suppressed channels."""
    options = {key: value for key, value in line["model"].items() if value is not None}
    model = build_model(options.pop("name"), _Cifar10(), **options)
    if line["algorithm"]["name"] != "adp":
        return sum(kernel.positions * math.prod(kernel.shape) for kernel in model.kernels)
    ratio = line["algorithm"]["ratio"]
    model = gated(model, ratio=ratio)
    active = {k.name: np.arange(k.outputs)[None] < round(ratio * k.outputs) for k in model.kernels if k.gate}
    return sum(int(macs[0]) for macs in inference_macs(model, active))


def _by_seed(group: Sequence[Line]) -> dict[int, Line]:
    return {line["seed"]: line for line in group}


def _summary(group: Sequence[Line], baseline: Mapping[int, Line]) -> list[str]:
    pairs = [(line, baseline[line["seed"]]) for line in group]
    first, other = pairs[0]
    columns = [
        column
        for figure in (_late_accuracy, best_accuracy)
        for column in (
            interval([figure(line) for line in group]),
            interval([figure(line) - figure(theirs) for line, theirs in pairs]),
        )
    ]
    shares = (
        first["bytes_up_total"] / other["bytes_up_total"],
        inference_work(first) / inference_work(other),
    )
    return [*columns, *(f"{share:.3f}" for share in shares), str(len(group))]


def _late_accuracy(line: Line) -> float:
    return 100 * line["late_global_accuracy"]


def _megabytes(group: Sequence[Line], baseline: Mapping[int, Line], target: float) -> str:
    """Megabytes over seeds, and their share of the baseline's where both reach the target in all seeds."""
    costs = [bytes_to(line, target) for line in group]
    reached = sum(map(math.isfinite, costs))
    if reached < len(group):
        return f"{reached} of {len(group)} seeds"
    text = interval([cost / 1e6 for cost in costs])
    theirs = [bytes_to(baseline[line["seed"]], target) for line in group]
    if not all(map(math.isfinite, theirs)):
        return text
    return f"{text} ({interval([100 * mine / other for mine, other in zip(costs, theirs, strict=True)])} %)"


def _selections(line: Line) -> dict[str, float]:
    """The metrics of selections, by layer."""
    return {
        name.removeprefix(SELECTIONS): n for name, n in line["extra"].items() if name.startswith(SELECTIONS)
    }


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=["accuracy", "bytes", "selections"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.25, 0.3, 0.35])
    parser.add_argument("--baseline", default="fedavg", help="the setting that others are compared with")
    parser.add_argument("--out", type=Path, help="file of a figure: accuracy against bytes")
    args = parser.parse_args()
    groups = by_setting(read_lines(args.file))
    tables = {
        "accuracy": lambda: accuracy_table(groups, args.baseline),
        "bytes": lambda: bytes_table(groups, args.targets, args.baseline),
        "selections": lambda: selections_table(groups),
    }
    print(tables[args.table]())
    if args.out:
        save_figure(groups, args.out)


if __name__ == "__main__":
    main()
