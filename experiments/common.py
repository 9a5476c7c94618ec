"""What the experiments share: files of results that are only ever appended to, and intervals."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import t as student


def lines(path: Path) -> list[dict]:
    """The results in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, line: dict) -> None:
    """Adds a result to a file."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def interval(values: Sequence[float], digits: int = 1) -> str:
    """Mean and 95 % confidence interval; the bare value of a single one."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else "n/a"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.{digits}f} ± {half:.{digits}f}"
