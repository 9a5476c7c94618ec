"""Tables and figures of the results of ``mpfl_sparsity.py``."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import markdown, saved_figure

from fedjax_masks.analysis.style import BASELINE, PALETTE
from fedjax_masks.core.intervals import half_width, interval

CURVES = {
    "mpfl": ("MPFL", PALETTE[0], "o"),
    "fedavg-mask": ("FedAvg's mask, from the start", "black", "s"),
    "fedavg-then-prune": ("FedAvg, then prune", BASELINE, "s"),
    "central": ("central pruning", PALETTE[1], "D"),
    "mpfl-central-score": ("MPFL, trained centrally", PALETTE[2], "^"),
    "initial": ("initial norms", PALETTE[3], "v"),
    "inverted": ("inverted initial norms", PALETTE[4], "P"),
    "random": ("random filters", PALETTE[5], "X"),
}
RIVALS = ("fedavg-mask", "fedavg-then-prune", "central", "initial", "random", "inverted")

Line = dict[str, Any]


def by_curve(lines: Sequence[Line]) -> dict[str, dict[int, list[Line]]]:
    """Lines of all seeds by curve and iteration; the dense model is the start of each federated curve."""
    curves: dict[str, dict[int, list[Line]]] = {
        curve: defaultdict(list) for curve in CURVES if any(line["curve"] == curve for line in lines)
    }
    federated = [curve for curve in curves if not curve.endswith("score")]
    for line in lines:
        for curve in federated if line["curve"] == "dense" else [line["curve"]]:
            curves[curve][line["iteration"]].append(line)
    return curves


def table(lines: Sequence[Line]) -> str:
    """A table in Markdown of the accuracies, by share of filters pruned."""
    curves, rows = by_curve(lines), []
    for iteration in sorted({iteration for groups in curves.values() for iteration in groups}):
        groups = [curves[curve][iteration] for curve in curves]
        share = statistics.fmean(line["sparsity"] for group in groups for line in group)
        accuracies = [interval([100 * line["accuracy"] for line in group]) for group in groups]
        rows.append([f"{100 * share:.0f}", *accuracies])
    return markdown(["filters pruned, %", *(CURVES[curve][0] for curve in curves)], rows)


def gaps_of(lines: Sequence[Line], rival: str, iteration: int) -> list[float]:
    """MPFL's accuracy minus a rival's in points, for each seed that has both.

    >>> lines = [{"curve": "mpfl", "iteration": 3, "seed": 0, "accuracy": 0.75}]
    >>> gaps_of([*lines, {"curve": "random", "iteration": 3, "seed": 0, "accuracy": 0.5}], "random", 3)
    [25.0]
    """
    ours, theirs = (
        {
            line["seed"]: line["accuracy"]
            for line in lines
            if line["curve"] == curve and line["iteration"] == iteration
        }
        for curve in ("mpfl", rival)
    )
    return [100 * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def gaps_table(files: Mapping[str, Sequence[Line]]) -> str:
    """A table in Markdown of MPFL minus each rival, in points on the same seeds, by file and share pruned.

    The last columns: the number of seeds, and the share of MPFL's filters that the norms of the initial
    weights would keep, too.
    """
    rows, rivals = [], _rivals(files)
    for name, lines in files.items():
        ours = [line for line in lines if line["curve"] == "mpfl"]
        for iteration in sorted({line["iteration"] for line in ours}):
            group = [line for line in ours if line["iteration"] == iteration]
            share = statistics.fmean(line["sparsity"] for line in group)
            cells = [interval(gaps_of(lines, rival, iteration)) for rival in rivals]
            overlaps = [100 * line["initial_overlap"] for line in group if "initial_overlap" in line]
            rows.append([name, f"{100 * share:.0f}", *cells, str(len(group)), interval(overlaps, 0)])
    headings = [f"minus {CURVES[rival][0]}" for rival in rivals]
    return markdown(["file", "filters pruned, %", *headings, "seeds", "as initial norms, %"], rows)


def _rivals(files: Mapping[str, Sequence[Line]]) -> list[str]:
    """The curves but MPFL's that any file has."""
    curves = {line["curve"] for lines in files.values() for line in lines}
    return [rival for rival in RIVALS if rival in curves]


def draw(lines: Sequence[Line], out: Path) -> None:
    """Draws mean accuracies and their 95 % confidence intervals over the seeds."""
    with saved_figure(out, 5.6, 4.2) as figure:
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


def draw_ladder(files: Mapping[str, Sequence[Line]], iteration: int, out: Path) -> None:
    """Draws MPFL minus each rival with 95 % confidence intervals, by file, after one iteration."""
    with saved_figure(out, max(5.6, 1.6 + 1.3 * len(files)), 3.8) as figure:
        ax = figure.subplots()
        ax.axhline(0, color=BASELINE, linewidth=0.8)
        rivals = _rivals(files)
        for place, rival in enumerate(rivals):
            label, color, marker = CURVES[rival]
            gaps = {x: gaps_of(lines, rival, iteration) for x, lines in enumerate(files.values())}
            gaps = {x: values for x, values in gaps.items() if values}
            x = [x + 0.12 * (place - (len(rivals) - 1) / 2) for x in gaps]
            y = [statistics.fmean(values) for values in gaps.values()]
            half = [half_width(values) for values in gaps.values()]
            ax.errorbar(x, y, half, marker=marker, color=color, label=f"minus {label}", linestyle="none")
        ax.set_xticks(range(len(files)), list(files), rotation=20, ha="right")
        ax.set(ylabel=f"MPFL's lead in points, {10 * iteration} % pruned")
        figure.legend(loc="outside lower center", ncols=2)
