"""What the experiments share: files of results that are only ever appended to."""

import json
from pathlib import Path


def lines(path: Path) -> list[dict]:
    """The results in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, line: dict) -> None:
    """Adds a result to a file."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
