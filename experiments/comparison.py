"""Compares algorithms by accuracy, bytes and FLOPs, from lines of ``collect.py`` of a sweep's runs.

Prints a table, mean and 95 % confidence interval over the seeds; bytes and FLOPs are per client and round:

    python experiments/comparison.py table experiments/results/two_classes_cifar10.jsonl

Draws each algorithm's accuracy on its clients' own test data beside the bytes that it sends:

    python experiments/comparison.py figure experiments/results/two_classes_*.jsonl --out FIGURE
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from common import by_setting, lines

from fedjax_masks.analysis.plotting import Axes, Figure
from fedjax_masks.analysis.style import BASELINE, PALETTE, drawing
from fedjax_masks.core.intervals import half_width, interval

SYSTEMS = ("fedmask", "fedskel", "mpfl", "adp", "ecofed")
COLUMNS = (
    *("personal accuracy, %", "of clients that trained, %", "global accuracy, %"),
    *("MB up", "MB down", "÷ FedAvg's", "MB once", "GFLOP"),
)

Groups = dict[str, list[dict]]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    printing = commands.add_parser("table")
    printing.add_argument("file", type=Path)
    printing.set_defaults(run=lambda args: print(table(args.file)))
    drawn = commands.add_parser("figure")
    drawn.add_argument("files", type=Path, nargs="+")
    drawn.add_argument("--out", type=Path, required=True)
    drawn.set_defaults(run=lambda args: figure(args.files, args.out))
    args = parser.parse_args()
    args.run(args)


def table(file: Path) -> str:
    """A Markdown table of a file of lines; the best personal accuracy comes first."""
    groups = best_first(file)
    (dense, *_) = (runs for runs in groups.values() if runs[0]["algorithm"]["name"] == "fedavg")
    rows = [("", *COLUMNS, "seeds"), ("---",) * (len(COLUMNS) + 2)]
    rows += [(name, *cells(runs, fmean(map(sent, dense))), str(len(runs))) for name, runs in groups.items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def best_first(file: Path) -> Groups:
    """Runs that differ only by seed, the best personal accuracy first."""
    return dict(sorted(by_setting(lines(file)).items(), key=lambda item: -fmean(personal(item[1]))))


def cells(runs: Sequence[dict], dense: float) -> list[str]:
    """One row of the table; ``dense`` is what FedAvg sends."""
    everywhere = [run["last_global_accuracy"] for run in runs]
    costs = [fmean(each(run, key) for run in runs) for key in ("bytes_up_total", "bytes_down_total")]
    flops = fmean(each(run, "client_flops_total") for run in runs)
    return [
        interval(personal(runs)),
        interval(personal(runs, "personal_accuracy_trained")),
        interval([100 * accuracy for accuracy in everywhere if accuracy is not None]),
        *(f"{cost / 1e6:.4f}" for cost in costs),
        f"{fmean(map(sent, runs)) / dense:.3f}",
        f"{fmean(run['setup_bytes'] for run in runs) / 1e6:.4f}",
        f"{flops / 1e9:.3f}",
    ]


def personal(runs: Sequence[dict], key: str = "last_personal_accuracy_mean") -> list[float]:
    """The mean accuracy over the clients, each on its own test data, of every run, in percent."""
    return [100 * run[key] for run in runs]


def each(run: dict, key: str) -> float:
    """A total of a run, by client and round."""
    return run[key] / (run["rounds"] * run["cohort"])


def sent(run: dict) -> float:
    """Bytes by client and round, both ways."""
    return each(run, "bytes_up_total") + each(run, "bytes_down_total")


def figure(files: Sequence[Path], out: Path) -> None:
    """Draws, of every file, accuracies and bytes."""
    with drawing():
        whole = Figure(figsize=(7.6, 4.9), layout="constrained")
        for part, file in zip(whole.subfigures(1, len(files), squeeze=False)[0], files):
            accuracy, cost = part.subplots(1, 2, sharey=True, width_ratios=(3, 2))
            draw(accuracy, cost, best_first(file))
            part.suptitle(lines(file)[0]["data"]["name"], fontsize="medium")
        whole.savefig(out, dpi=150)


def draw(accuracy: Axes, cost: Axes, groups: Groups) -> None:
    """Bars of accuracies, with 95 % confidence intervals over seeds, and points for bytes per client.

    A circle is the mean over the clients that took part in any round.
    """
    places = np.arange(len(groups))[::-1]
    colors = [PALETTE[0] if name.startswith(SYSTEMS) else BASELINE for name in groups]
    found = [personal(runs) for runs in groups.values()]
    means, halves = [fmean(values) for values in found], [half_width(values) for values in found]
    accuracy.barh(places, means, color=colors, height=0.7)
    accuracy.errorbar(means, places, xerr=halves, fmt="none", ecolor="black", elinewidth=1)
    trained = [fmean(personal(runs, "personal_accuracy_trained")) for runs in groups.values()]
    accuracy.plot(trained, places, "o", color="white", markeredgecolor="black", markersize=4)
    accuracy.set(xlabel="personal accuracy, %", xlim=(0, 100))
    accuracy.set_yticks(places, list(groups))
    # On a logarithmic scale, a bar's length would mean nothing.
    cost.scatter([fmean(map(sent, runs)) / 1e6 for runs in groups.values()], places, color=colors, s=25)
    cost.set(xlabel="MB a round", xscale="log")
    for ax in (accuracy, cost):
        ax.grid(axis="y", visible=False)


if __name__ == "__main__":
    main()
