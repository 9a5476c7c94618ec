"""Readers of run directories, of finished and of running runs."""

import os
from collections.abc import Sequence
from pathlib import Path

from fedjax_masks.analysis.records import RunRecord
from fedjax_masks.analysis.setup import with_setup
from fedjax_masks.core.errors import UserError
from fedjax_masks.experiment.run_directory import CONFIG, METRICS, SUMMARY, read_object, read_rounds


def load_run(path: str | Path) -> RunRecord:
    """Reads a run directory.

    The run may be unfinished: an incomplete last line of ``metrics.jsonl`` is left out. Where a resumed run
    wrote a round twice, the later line counts.

    Args:
      path: A directory with ``config.json``, and with ``metrics.jsonl`` and ``summary.json`` if they exist.

    Returns:
      The run.

    Raises:
      UserError: The directory is not a run, or one of its files is damaged.
    """
    path = Path(path)
    if not (path / CONFIG).is_file():
        problem = f"there is no {CONFIG} in it" if path.is_dir() else "there is no such directory"
        raise UserError(f"run={str(path)!r}: must be the directory of a run, as --out names it; {problem}")
    config = read_object(path / CONFIG)
    metrics, summary = path / METRICS, path / SUMMARY
    return RunRecord(
        name=os.path.basename(os.path.realpath(path)),
        config=config,
        records=read_rounds(metrics) if metrics.is_file() else [],
        summary=read_object(summary) if summary.is_file() else {},
    )


def load_runs(paths: Sequence[str | Path], *, setup_bytes: bool = False) -> list[RunRecord]:
    """Reads runs, and all runs in directories of runs, at any depth.

    The name of a run is that of its directory. Where several runs have the same, their names begin with as
    many parent directories as make them different.

    Args:
      paths: Run directories, and directories that contain some.
      setup_bytes: Whether bytes include those that devices receive before the first round, see
        :func:`~fedjax_masks.analysis.setup.with_setup`.

    Returns:
      The runs, each once, in the order of ``paths`` and within one of them by path.

    Raises:
      UserError: There is no run, or one is damaged.
    """
    folders = list(dict.fromkeys(run for path in paths for run in _run_directories(path)))
    if not folders:
        raise UserError("run: must be one or more run directories, or directories of runs; name at least one")
    runs = [load_run(path)._replace(name=name) for path, name in zip(folders, _names(folders))]
    return [with_setup(run) for run in runs] if setup_bytes else runs


def _run_directories(root: str | Path) -> list[Path]:
    """The run directories at or below a directory; without any, the directory itself.

    A run directory inside of another one does not count.
    """
    path = Path(os.path.realpath(root))
    if (path / CONFIG).is_file():
        return [path]
    below = []
    for folder, subfolders, files in os.walk(path):
        subfolders.sort()
        if CONFIG in files:
            below.append(Path(folder))
            subfolders.clear()
    return below or [path]


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ from one another."""
    depth = [1] * len(paths)
    while True:
        names = ["/".join(path.parts[-n:]) for path, n in zip(paths, depth)]
        if len(set(names)) == len(names):
            return names
        depth = [n + (names.count(name) > 1) for name, n in zip(names, depth)]
