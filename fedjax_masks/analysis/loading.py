"""Run directories on disk, of finished and of running runs."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedjax_masks.analysis.records import RunRecord
from fedjax_masks.analysis.setup import with_setup
from fedjax_masks.core.errors import UserError

_CONFIG = "config.json"


def load_run(path: str | Path) -> RunRecord:
    """Reads a run directory.

    A run that is still running, or was killed, is read as far as it got: a last line of
    ``metrics.jsonl`` that was cut off is left out. Where a resumed run wrote a round twice,
    the later line counts.

    Args:
      path: A directory with ``config.json`` and, as far as they exist, ``metrics.jsonl`` and
        ``summary.json``.

    Returns:
      The run.

    Raises:
      ValueError: The directory is not a run, or one of its files is damaged.
    """
    path = Path(path)
    if not (path / _CONFIG).is_file():
        what = f"no {_CONFIG} in it" if path.is_dir() else "no such directory"
        raise UserError(f"run={str(path)!r}: {what}; accepted is the directory of a run, as named by --out")
    config = read_object(path / _CONFIG)
    metrics, summary = path / "metrics.jsonl", path / "summary.json"
    return RunRecord(
        name=os.path.basename(os.path.realpath(path)),
        config=config,
        records=_read_records(metrics) if metrics.is_file() else [],
        summary=read_object(summary) if summary.is_file() else {},
    )


def load_runs(paths: Sequence[str | Path], *, setup_bytes: bool = False) -> list[RunRecord]:
    """Reads runs, and all runs in directories of runs, at any depth.

    A run is called by its directory; runs of one name also by as many of the directories above it
    as tell them apart.

    Args:
      paths: Run directories, and directories that contain some.
      setup_bytes: Count among the bytes what devices get before the first round, see :func:`with_setup`.

    Returns:
      The runs, each once, in the order of ``paths`` and within one by path.

    Raises:
      ValueError: There is no run, or one is damaged.
    """
    found = dict.fromkeys(run for path in paths for run in _run_directories(Path(os.path.realpath(path))))
    if not found:
        raise UserError("run: none given; accepted are one or more run directories, or directories of runs")
    runs = [load_run(path)._replace(name=name) for path, name in zip(found, _names(list(found)))]
    return [with_setup(run) for run in runs] if setup_bytes else runs


def _run_directories(path: Path) -> list[Path]:
    """The directory itself where it is a run or holds none; else all runs below it, which hold no others."""
    if (path / _CONFIG).is_file():
        return [path]
    below = []
    for folder, inner, files in os.walk(path):
        inner.sort()
        if _CONFIG in files:
            below.append(Path(folder))
            inner.clear()
    return below or [path]


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are all different."""
    depth = [1] * len(paths)
    while True:
        names = ["/".join(path.parts[-n:]) for path, n in zip(paths, depth)]
        if len(set(names)) == len(names):
            return names
        depth = [n + (names.count(name) > 1) for name, n in zip(names, depth)]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      UserError: The file cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"run file {str(path)!r}: cannot be read as JSON; {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"run file {str(path)!r}: holds a {type(value).__name__}; accepted is a JSON object")
    return value


def _read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` by round, without a last line that was cut off."""
    lines = path.read_bytes().splitlines()
    by_round: dict[int, dict[str, Any]] = {}
    for index, line in enumerate(lines):
        try:
            record = json.loads(line)
            if not (isinstance(record["round"], int) and 0 <= record["round"] < 2**53):
                raise ValueError
            if not isinstance(record.get("extra") or {}, dict):
                raise ValueError
            by_round[record["round"]] = record
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if index == len(lines) - 1:
                break
            place = f"run file {str(path)!r}: line {index + 1}"
            raise UserError(f"{place} is damaged; accepted is one JSON object with a round") from error
    return [by_round[key] for key in sorted(by_round)]
