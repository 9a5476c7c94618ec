"""Table and figure of the results of ``mpfl_sparsity.py``."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import markdown

from fedjax_masks.analysis.style import BASELINE, PALETTE, drawing
from fedjax_masks.core.intervals import half_width, interval

CURVES = {
    "mpfl": ("MPFL", PALETTE[0], "o"),
    "fedavg-then-prune": ("FedAvg, then prune", BASELINE, "s"),
    "central": ("central pruning", PALETTE[1], "D"),
    "mpfl-central-score": ("MPFL, trained centrally", PALETTE[2], "^"),
}

Line = dict[str, Any]


def by_curve(lines: Sequence[Line]) -> dict[str, dict[int, list[Line]]]:
    """Lines of all seeds by curve and iteration; the dense model is the start of each federated curve."""
    curves: dict[str, dict[int, list[Line]]] = {curve: defaultdict(list) for curve in CURVES}
    federated = [curve for curve in CURVES if not curve.endswith("score")]
    for line in lines:
        for curve in federated if line["curve"] == "dense" else [line["curve"]]:
            curves[curve][line["iteration"]].append(line)
    return curves


def table(lines: Sequence[Line]) -> str:
    """A table in Markdown of the accuracies, by share of filters pruned."""
    curves, rows = by_curve(lines), []
    for iteration in sorted({iteration for groups in curves.values() for iteration in groups}):
        groups = [curves[curve][iteration] for curve in CURVES]
        share = statistics.fmean(line["sparsity"] for group in groups for line in group)
        accuracies = [interval([100 * line["accuracy"] for line in group]) for group in groups]
        rows.append([f"{100 * share:.0f}", *accuracies])
    return markdown(["filters pruned, %", *(label for label, _, _ in CURVES.values())], rows)


def draw(lines: Sequence[Line], out: Path) -> None:
    """Draws mean accuracies and their 95 % confidence intervals over the seeds."""
    from fedjax_masks.analysis.plotting import Figure

    with drawing():
        figure = Figure(figsize=(5.0, 3.6), layout="constrained")
        ax = figure.subplots()
        for curve, groups in by_curve(lines).items():
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
        figure.savefig(out, dpi=150)
