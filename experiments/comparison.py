r"""Compares algorithms by accuracy, bytes and FLOPs, from lines of ``collect.py`` of a sweep's runs.

The script prints a table with mean and 95 % confidence interval over the seeds; bytes and FLOPs are per
client and round:

    python experiments/comparison.py table fedjax_masks/claims/results/two_classes_cifar10.jsonl

It also draws each algorithm's accuracy on its clients' own test data beside the bytes that it sends:

    python experiments/comparison.py figure experiments/results/two_classes_fashion_mnist.jsonl \
        fedjax_masks/claims/results/two_classes_cifar10.jsonl --out FIGURE
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from common import by_setting, markdown, read_lines, saved_figure

from fedjax_masks.analysis.plotting import Axes
from fedjax_masks.analysis.style import BASELINE, PALETTE
from fedjax_masks.core.intervals import half_width, interval

SYSTEMS = ("fedmask", "fedskel", "mpfl", "adp", "ecofed")
COLUMNS = (
    *("personal accuracy, %", "of clients that trained, %", "global accuracy, %"),
    *("MB up", "MB down", "÷ FedAvg's", "MB once", "GFLOP"),
)

Run = dict[str, Any]
Groups = dict[str, list[Run]]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    table_parser = commands.add_parser("table", help="print a table")
    table_parser.add_argument("file", type=Path)
    table_parser.set_defaults(run=lambda args: print(table(args.file)))
    figure_parser = commands.add_parser("figure", help="draw accuracies and bytes")
    figure_parser.add_argument("files", type=Path, nargs="+")
    figure_parser.add_argument("--out", type=Path, required=True)
    figure_parser.set_defaults(run=lambda args: save_figure(args.files, args.out))
    args = parser.parse_args()
    args.run(args)


def table(file: Path) -> str:
    """A table in Markdown; the best personal accuracy comes first."""
    groups = best_first(file)
    (baseline, *_) = (runs for runs in groups.values() if runs[0]["algorithm"]["name"] == "fedavg")
    dense = fmean(map(traffic, baseline))
    rows = [(name, *cells(runs, dense), str(len(runs))) for name, runs in groups.items()]
    return markdown(("", *COLUMNS, "seeds"), rows)


def best_first(file: Path) -> Groups:
    """Runs by setting, the best personal accuracy first."""
    groups = by_setting(read_lines(file))
    return dict(sorted(groups.items(), key=lambda item: -fmean(personal_accuracies(item[1]))))


def cells(runs: Sequence[Run], dense: float) -> list[str]:
    """The cells of one setting.

    Args:
      runs: The setting's runs.
      dense: FedAvg's bytes per client and round.
    """
    accuracies = [run["last_global_accuracy"] for run in runs]
    costs = [
        fmean(per_client_round(run, key) for run in runs) for key in ("bytes_up_total", "bytes_down_total")
    ]
    flops = fmean(per_client_round(run, "client_flops_total") for run in runs)
    return [
        interval(personal_accuracies(runs)),
        interval(personal_accuracies(runs, "personal_accuracy_trained")),
        interval([100 * accuracy for accuracy in accuracies if accuracy is not None]),
        *(f"{cost / 1e6:.4f}" for cost in costs),
        f"{fmean(map(traffic, runs)) / dense:.3f}",
        f"{fmean(run['setup_bytes'] for run in runs) / 1e6:.4f}",
        f"{flops / 1e9:.3f}",
    ]


def personal_accuracies(runs: Sequence[Run], key: str = "last_personal_accuracy_mean") -> list[float]:
    """The mean accuracy of the clients on their own test data, in percent, for each run."""
    return [100 * run[key] for run in runs]


def per_client_round(run: Run, key: str) -> float:
    """A total of a run, divided by its clients and rounds."""
    return run[key] / (run["rounds"] * run["cohort"])


def traffic(run: Run) -> float:
    """Bytes per client and round, both directions."""
    return per_client_round(run, "bytes_up_total") + per_client_round(run, "bytes_down_total")


def save_figure(files: Sequence[Path], out: Path) -> None:
    """Draws accuracies and bytes of every file."""
    with saved_figure(out, 7.6, 4.9) as figure:
        for part, file in zip(figure.subfigures(1, len(files), squeeze=False)[0], files):
            accuracy, cost = part.subplots(1, 2, sharey=True, width_ratios=(3, 2))
            draw(accuracy, cost, best_first(file))
            part.suptitle(read_lines(file)[0]["data"]["name"], fontsize="medium")


def draw(accuracy: Axes, cost: Axes, groups: Groups) -> None:
    """Bars of accuracies, with 95 % confidence intervals over seeds, and points for bytes per client.

    A circle is the mean over the clients that took part in any round.
    """
    places = np.arange(len(groups))[::-1]
    colors = [PALETTE[0] if name.startswith(SYSTEMS) else BASELINE for name in groups]
    values = [personal_accuracies(runs) for runs in groups.values()]
    means, halves = list(map(fmean, values)), list(map(half_width, values))
    accuracy.barh(places, means, color=colors, height=0.7)
    accuracy.errorbar(means, places, xerr=halves, fmt="none", ecolor="black", elinewidth=1)
    trained = [fmean(personal_accuracies(runs, "personal_accuracy_trained")) for runs in groups.values()]
    accuracy.plot(trained, places, "o", color="white", markeredgecolor="black", markersize=4)
    accuracy.set(xlabel="personal accuracy, %", xlim=(0, 100))
    accuracy.set_yticks(places, list(groups))
    # On a logarithmic scale, the length of a bar would mean nothing.
    cost.scatter([fmean(map(traffic, runs)) / 1e6 for runs in groups.values()], places, color=colors, s=25)
    cost.set(xlabel="MB a round", xscale="log")
    for ax in (accuracy, cost):
        ax.grid(axis="y", visible=False)


if __name__ == "__main__":
    main()
