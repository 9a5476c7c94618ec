"""Draws the accuracy of split training's protocols, from lines of ``collect.py``.

python experiments/split_figure.py fedjax_masks/claims/results/ecofed_*.jsonl --out FIGURE
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import by_setting, read_lines, saved_figure

from fedjax_masks.analysis.plotting import Axes
from fedjax_masks.analysis.style import BASELINE, PALETTE
from fedjax_masks.core.intervals import half_width

LABELS = {
    "fedavg": "FedAvg",
    "splitfed": "SplitFed",
    "lgl": "LGL",
    "fedgkt": "FedGKT",
    "ecofed-fractal": "EcoFed, fractals",
    "ecofed-public": "EcoFed, public (in-domain)",
    "ecofed-random": "EcoFed, random",
}


def main() -> None:
    """Reads the command line, and draws one panel per file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with saved_figure(args.out, 7.2, 2.7) as figure:
        panels = figure.subplots(1, len(args.files), sharey=True, squeeze=False)[0]
        for ax, file in zip(panels, args.files):
            draw(ax, read_lines(file))
        figure.supxlabel("global accuracy, %, mean and 95 % CI over seeds", fontsize="medium")


def draw(ax: Axes, runs: list[dict[str, Any]]) -> None:
    """Means and 95 % confidence intervals over seeds."""
    groups = by_setting(runs)
    values = [[100 * run["last_global_accuracy"] for run in groups[name]] for name in LABELS]
    means, halves = [float(np.mean(v)) for v in values], list(map(half_width, values))
    colors = [PALETTE[2] if name.startswith("ecofed") else BASELINE for name in LABELS]
    places = np.arange(len(LABELS))[::-1]
    ax.barh(places, means, color=colors, height=0.7)
    ax.errorbar(means, places, xerr=halves, fmt="none", ecolor="black")
    ax.set_yticks(places, list(LABELS.values()))
    ax.set_title(runs[0]["data"]["name"])
    ax.grid(axis="y", visible=False)


if __name__ == "__main__":
    main()
