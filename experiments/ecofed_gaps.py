"""Prints EcoFed's accuracy by cut and source of pre-training, and its differences to LGL and to FedAvg.

    python experiments/ecofed_gaps.py experiments/results/ecofed_vgg_conv*.jsonl

Differences are paired by seed; the intervals are 95 % confidence intervals over the seeds. FedAvg has no cut
and belongs to all of them; SplitFed gives the same model as FedAvg, whatever the cut.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import by_setting, markdown, read_lines, setting

from fedjax_masks.claims.result_files import gaps
from fedjax_masks.core.intervals import interval

_BASELINES = {"above LGL, points": "lgl", "above FedAvg, points": "fedavg"}


def cut_of(run: dict[str, Any]) -> str | None:
    """The device's last stage; None for FedAvg."""
    return run["algorithm"].get("split")


def accuracy(run: dict[str, Any]) -> float:
    """The accuracy of the global model, in per cent."""
    return 100 * run["last_global_accuracy"]


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown, with one row per cut and setting."""
    rows = []
    for cut in sorted({cut_of(run) for run in runs} - {None}, key=str):
        of_cut = [run for run in runs if cut_of(run) in (cut, None)]
        for name, group in by_setting(of_cut).items():
            differences = (
                interval(gaps(of_cut, accuracy, setting, name, other)) if name != other else ""
                for other in _BASELINES.values()
            )
            accuracies = interval([accuracy(run) for run in group])
            rows.append([str(cut), name, accuracies, *differences, str(len(group))])
    return markdown(["cut", "setting", "global accuracy, %", *_BASELINES, "seeds"], rows)


if __name__ == "__main__":
    print(table([line for path in sys.argv[1:] for line in read_lines(Path(path))]))
