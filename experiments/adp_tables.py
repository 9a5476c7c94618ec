"""Tables of the results of ``adp_rounds.py``."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from common import markdown

from fedjax_masks.core.intervals import interval

ORDER = ("FedAvg", "FedProx", "FedNova", "SCAFFOLD")
TARGETS = (0.6, 0.65, 0.7, 0.75)

Line = dict[str, Any]


def round_tables(lines: Sequence[Line]) -> str:
    """Tables in Markdown: rounds to each target, megabytes to each target, accuracies."""
    groups: dict[tuple[str, bool], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["federation"], line["gates"]), []).append(line)
    order = sorted(groups, key=lambda group: (ORDER.index(group[0]), group[1]))
    by_label = {f"{name}, gates {'on' if gates else 'off'}": groups[name, gates] for name, gates in order}
    tables = [
        markdown(
            [corner, *(f"{target:.0%}" for target in TARGETS)],
            [[name, *(_cost(group, target, cost) for target in TARGETS)] for name, group in by_label.items()],
        )
        for corner, cost in {"rounds to": _rounds, "MB to": _megabytes}.items()
    ]
    headings = ["", "best accuracy, %", "train-test gap", "bytes per client and round, up", "seeds"]
    tables.append(markdown(headings, [[name, *_summary(group)] for name, group in by_label.items()]))
    return "\n\n".join(tables)


def compaction_tables(lines: Sequence[Line]) -> str:
    """A table in Markdown: compacted models by the share of examples that a channel must be active in."""
    headings = ["kept if active in", "accuracy, %", "whole model's", "MACs ÷ its own", "parameters ÷ its own"]
    groups: dict[float, list[Line]] = {}
    for line in lines:
        for entry in line["shares"]:
            groups.setdefault(entry["share"], []).append(entry)
    rows = [[f"{share:.0%} of examples", *_compaction(group)] for share, group in groups.items()]
    return markdown(headings, rows)


def _rounds(line: Line, target: float) -> int | None:
    """The first round after which the accuracy is at least the target."""
    return next((n for n, accuracy in enumerate(line["accuracy"], 1) if accuracy >= target), None)


def _megabytes(line: Line, target: float) -> float | None:
    """Megabytes that all clients sent and received until the first round that reached the target."""
    rounds = _rounds(line, target)
    return None if rounds is None else rounds * (line["bytes_up"] + line["bytes_down"]) / 1e6


def _cost(group: Sequence[Line], target: float, cost: Callable[[Line, float], float | None]) -> str:
    """A cost of the target over seeds; where some seeds never reached the target, their number instead."""
    values = [value for line in group if (value := cost(line, target)) is not None]
    return interval(values) if len(values) == len(group) else f"{len(values)} of {len(group)} seeds"


def _summary(group: Sequence[Line]) -> list[str]:
    gaps = [
        float(np.nanmean(np.subtract(line["client_train_accuracy"], line["client_test_accuracy"])))
        for line in group
    ]
    return [
        interval([100 * max(line["accuracy"]) for line in group]),
        interval(gaps, digits=3),
        f"{group[0]['bytes_up'] // 10:,}",
        str(len(group)),
    ]


def _compaction(group: Sequence[Line]) -> list[str]:
    accuracy, whole, macs, whole_macs, parameters = zip(
        *map(operator.itemgetter("accuracy", "whole_accuracy", "macs", "whole_macs", "parameters"), group)
    )
    return [
        interval([100 * value for value in accuracy]),
        interval([100 * value for value in whole]),
        interval([small / dense for small, dense in zip(macs, whole_macs)], digits=3),
        interval(parameters, digits=3),
    ]
