"""What the experiments share: files of results that are only ever appended to."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def lines(path: Path) -> list[dict]:
    """The results in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, line: dict) -> None:
    """Adds a result to a file."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def by_setting(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Runs by what they are seeds of: ``fedavg`` for ``fedavg-0`` and ``fedavg,seed=0,data.seed=1``."""
    settings: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        settings.setdefault(re.sub(r"((,(\w+\.)?seed=\d+)+|(?<!\de)-\d+)$", "", run["run"]), []).append(run)
    return settings
