"""Runs as they lie on disk, finished or still running."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_masks.errors import UserError

MEGABYTE = 1e6
_CONFIG = "config.json"


class RunRecord(NamedTuple):
    """One run.

    Attributes:
      name: What the run is called: its directory's name.
      config: The complete configuration, nested as in ``config.json``.
      records: One flat mapping per evaluated round, in the order of rounds; ``round`` is the
        number of rounds completed, ``extra`` holds the algorithm's own figures.
      summary: ``summary.json``; empty while the run has not finished.
    """

    name: str
    config: dict[str, Any]
    records: list[dict[str, Any]]
    summary: dict[str, Any]


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
    config = _read_object(path / _CONFIG)
    metrics, summary = path / "metrics.jsonl", path / "summary.json"
    return RunRecord(
        name=path.resolve().name,
        config=config,
        records=_read_records(metrics) if metrics.is_file() else [],
        summary=_read_object(summary) if summary.is_file() else {},
    )


def load_runs(paths: Sequence[str | Path]) -> list[RunRecord]:
    """Reads runs, and all runs in directories of runs, at any depth.

    A run is called by its directory; runs of one name also by as many of the directories above it
    as tell them apart.

    Args:
      paths: Run directories, and directories that contain some.

    Returns:
      The runs, each once, in the order of ``paths`` and within one by path.

    Raises:
      ValueError: There is no run, or one is damaged.
    """
    found = dict.fromkeys(run for path in paths for run in _run_directories(Path(path).resolve()))
    if not found:
        raise UserError("run: none given; accepted are one or more run directories, or directories of runs")
    return [load_run(path)._replace(name=name) for path, name in zip(found, _names(list(found)))]


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


def column(run: RunRecord, key: str) -> np.ndarray:
    """One figure over the evaluated rounds: ``float64[evaluations]``.

    Args:
      run: The run.
      key: A key of the records or of their ``extra``.

    Returns:
      The values; NaN where the figure is absent or does not apply.

    >>> run = RunRecord("a", {}, [{"round": 1, "density": None}, {"round": 2, "density": 0.5}], {})
    >>> column(run, "density").tolist()
    [nan, 0.5]
    """
    values = [record.get(key, (record.get("extra") or {}).get(key)) for record in run.records]
    return np.array([number(value) for value in values], np.float64)


def last(run: RunRecord, key: str) -> float | None:
    """The last finite value of a figure, or None."""
    values = column(run, key)
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else None


def number(value: Any) -> float:
    """A JSON value as a float; NaN for what is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def rounds_done(run: RunRecord) -> int:
    """Rounds completed at the last evaluation."""
    return int(last(run, "round") or 0)


def total_bytes(run: RunRecord) -> np.ndarray:
    """Bytes sent so far by all clients and the server, at each evaluation: ``float64[evaluations]``."""
    return column(run, "bytes_up_total") + column(run, "bytes_down_total")


def per_client_round(run: RunRecord, key: str) -> float | None:
    """A total's share of one client in one round: ``per_client_round(run, "bytes_up_total")``.

    The mean is over all rounds, not only the evaluated ones, so that algorithms whose rounds
    differ in kind are charged what they really spent.
    """
    total, rounds = last(run, key), rounds_done(run)
    sizes = column(run, "cohort_size")
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    cohort = float(sizes.mean()) if sizes.size else number(run.config.get("cohort"))
    if total is None or rounds == 0 or not cohort > 0:
        return None
    return total / (rounds * cohort)


def client_accuracy(run: RunRecord) -> np.ndarray:
    """Each client's personal accuracy at the end, ascending: ``float64[clients with test data]``."""
    values = np.array([number(value) for value in run.summary.get("client_accuracy") or []], np.float64)
    return np.sort(values[np.isfinite(values)])


def layer_densities(run: RunRecord) -> dict[str, np.ndarray]:
    """Mask density of each layer over the evaluated rounds: layer to ``float64[evaluations]``."""
    keys = dict.fromkeys(key for record in run.records for key in record.get("extra") or {})
    found = {key.removeprefix("density/"): column(run, key) for key in keys if key.startswith("density/")}
    return {layer: values for layer, values in found.items() if np.isfinite(values).any()}


def setting(run: RunRecord, section: str, key: str) -> Any:
    """One value of a section of the configuration, or None."""
    inner = run.config.get(section)
    return inner.get(key) if isinstance(inner, Mapping) else None


def data_settings(run: RunRecord) -> dict[str, Any]:
    """Which data and how divided: what runs must share to be compared; without seeds and folders."""
    settings = run.config.get("data")
    if not isinstance(settings, Mapping):
        return {}
    apart = ("seed", "dir", "cache_dir")
    # Runs from before there were these keys are runs with their defaults.
    defaults = {"scale": "auto", "channels": "auto", "relabel": False, "classes": None}
    return {k: v for k, v in settings.items() if k not in apart and (k, v) not in defaults.items()}


def data_title(run: RunRecord) -> str:
    """The data set and its partition, in words."""
    return f"{setting(run, 'data', 'name')}, {setting(run, 'data', 'partition') or 'iid'}"


def algorithm_name(run: RunRecord) -> str:
    """The algorithm's name; the run's own where the configuration does not say."""
    return str(setting(run, "algorithm", "name") or run.name)


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested configuration under dotted keys.

    >>> flatten({"data": {"name": "digits"}, "seed": 0})
    {'data.name': 'digits', 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


def _read_object(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
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
            by_round[int(record["round"])] = record
        except (ValueError, TypeError, KeyError) as error:
            if index == len(lines) - 1:
                break
            place = f"run file {str(path)!r}: line {index + 1}"
            raise UserError(f"{place} is damaged; accepted is one JSON object with a round") from error
    return [by_round[key] for key in sorted(by_round)]
