"""Draws the accuracy of split training's protocols, from lines of ``collect.py``.

python experiments/split_figure.py experiments/results/ecofed_*.jsonl --out FIGURE
"""

import argparse
from pathlib import Path

import numpy as np
from common import by_setting, lines

from fedjax_masks.analysis.plotting import Figure
from fedjax_masks.analysis.style import BASELINE, PALETTE, drawing
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
    """Reads the command line, and draws a panel per file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with drawing():
        figure = Figure(figsize=(7.2, 2.7), layout="constrained")
        panels = figure.subplots(1, len(args.files), sharey=True, squeeze=False)[0]
        for ax, file in zip(panels, args.files):
            draw(ax, lines(file))
        figure.supxlabel("global accuracy, %, mean and 95 % CI over seeds", fontsize="medium")
        figure.savefig(args.out, dpi=150)


def draw(ax, found: list[dict]) -> None:
    """Means and 95 % confidence intervals over seeds."""
    runs = by_setting(found)
    values = [[100 * n["last_global_accuracy"] for n in runs[name]] for name in LABELS]
    colors = [PALETTE[2] if name.startswith("ecofed") else BASELINE for name in LABELS]
    places = np.arange(len(LABELS))[::-1]
    ax.barh(places, [np.mean(v) for v in values], color=colors, height=0.7)
    ax.errorbar(
        [np.mean(v) for v in values], places, xerr=[half_width(v) for v in values], fmt="none", ecolor="black"
    )
    ax.set_yticks(places, list(LABELS.values()))
    ax.set_title(found[0]["data"]["name"])
    ax.grid(axis="y", visible=False)


if __name__ == "__main__":
    main()
