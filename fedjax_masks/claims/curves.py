"""Accuracy by bytes, from lines of ``collect.py --curves`` or of ``adp_rounds.py`` in ``experiments``."""

import math

from fedjax_masks.claims.result_files import Line


def bytes_to(line: Line, target: float) -> float:
    """Bytes up to the first evaluation whose accuracy reached the target; infinity where none did.

    >>> bytes_to({"evaluations": {"global_accuracy": [0.2, 0.4, 0.3], "bytes": [5, 10, 15]}}, 0.3)
    10
    """
    return next((sent for accuracy, sent in _curve(line) if accuracy >= target), math.inf)


def best_accuracy(line: Line) -> float:
    """The highest accuracy of all evaluations, in per cent."""
    return 100 * max(accuracy for accuracy, _ in _curve(line))


def _curve(line: Line) -> list[tuple[float, int]]:
    """Accuracy and bytes at each evaluation."""
    if "evaluations" in line:
        evaluations = line["evaluations"]
        return list(zip(evaluations["global_accuracy"], evaluations["bytes"], strict=True))
    each = line["bytes_up"] + line["bytes_down"]
    return [(accuracy, rounds * each) for rounds, accuracy in enumerate(line["accuracy"], 1)]
