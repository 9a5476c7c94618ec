"""The directory of a run: names of its files, checks before writing, and readers.

Lines of ``metrics.jsonl`` and ``log.txt`` are appended and synced; all other files are replaced atomically.
A checkpoint holds the lengths of the appended files, so that a resumed run cuts off later lines and neither
loses nor repeats one.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from fedjax_masks.core.choices import StatePlace
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.messages import warn
from fedjax_masks.core.nested import flat
from fedjax_masks.experiment import lock, trackers
from fedjax_masks.experiment.config import Config, as_dict

CONFIG, SUMMARY, METRICS, LOG = "config.json", "summary.json", trackers.METRICS, "log.txt"
CHECKPOINTS, FIGURES, ROWS = "checkpoints", "figures", "clients.rows"
_STEP = re.compile(r"[0-9]{8,}")  # a complete checkpoint's name is its round
_RECORD_KEYS = {"round", "global_accuracy", "personal_accuracy_mean"}
_ENVIRONMENT = ("chosen_plan", "chosen_plan_reason", "chosen_storage", "fingerprints", "versions", "platform")


def check(out: Path) -> None:
    """Checks that a directory can be written to; writes nothing.

    Raises:
      UserError: The directory is read-only, or is no directory.
    """
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise UserError(f"out={str(out)!r}: must be writable; {existing} is read-only")
    if not existing.is_dir():
        raise UserError(f"out={str(out)!r}: must be a directory; {existing} is a file")


def open_directory(out: Path, config: Config, *, resume: bool) -> dict[str, Any]:
    """Checks that a run may be written to a directory; writes nothing.

    Returns:
      The ``config.json`` of the run to resume; empty for a new run.

    Raises:
      UserError: The directory holds another run, or files of something else.
    """
    check(out)
    # A run killed at its start leaves at most its lock, its trackers' files and an unfinished config.json.
    content = {path.name for path in out.iterdir()} - {lock.NAME} if out.exists() else set()
    if content and not resume:
        raise UserError(f"out={str(out)!r}: must be empty; --resume continues the run in it")
    for name in content & {CONFIG, METRICS, LOG, SUMMARY, ROWS}:
        if not (out / name).is_file():
            raise UserError(f"out={str(out / name)!r}: must be a file")
    if CHECKPOINTS in content and not (out / CHECKPOINTS).is_dir():
        raise UserError(f"out={str(out / CHECKPOINTS)!r}: must be a directory; mount or restore it to resume")
    if CONFIG in content:
        run_config = _read_config(out)
        _check_same(run_config, config)
        return run_config
    if content - {CONFIG + ".partial", *trackers.FILES}:
        raise UserError(f"out={str(out)!r}: must hold a run to resume, or be empty; it has no {CONFIG}")
    return {}


def is_finished(out: Path) -> bool:
    """Whether a run's directory is complete."""
    return (out / SUMMARY).exists()


def rounds_saved(out: Path) -> int:
    """The number of rounds before the last checkpoint of a run; 0 without a checkpoint."""
    return max((int(step.name) for step in steps(out / CHECKPOINTS)), default=0)


def steps(directory: Path) -> list[Path]:
    """The complete checkpoints in a directory of checkpoints, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _STEP.fullmatch(path.name) and path.is_dir())


def stored_values(out: Path) -> dict[str, Any]:
    """The flat configuration of the run in a directory.

    Raises:
      UserError: There is no run.
    """
    if not (out / CONFIG).exists():
        raise UserError(f"out={str(out)!r}: must hold a run to resume; it has no {CONFIG}")
    return flat({key: value for key, value in _read_config(out).items() if key not in _ENVIRONMENT})


def check_fingerprints(run_config: Mapping[str, Any], fingerprints: Mapping[str, str]) -> None:
    """Checks that a resumed run has the data, parameters and random numbers with which it began.

    Args:
      run_config: The run's ``config.json``.
      fingerprints: Digests of those at present, by the key that names them.

    Raises:
      UserError: A fingerprint differs; one that the run does not have, as it began long ago, does not.
    """
    for key, value in fingerprints.items():
        if run_config["fingerprints"].get(key, value) != value:
            demand = "be unchanged since the run began, and has changed; restore it"
            if key == "seed":
                demand = "give the random numbers with which the run began; restore JAX_DEFAULT_PRNG_IMPL"
            text = _text(flat(run_config).get(key))
            raise UserError(f"{key}={text}: must {demand}, or start again in another directory")


def lengths(out: Path) -> dict[str, int]:
    """The lengths of the appended files, in bytes."""
    paths = (out / name for name in (METRICS, LOG))
    return {path.name: path.stat().st_size for path in paths if path.exists()}


def check_lengths(out: Path, checkpoint_lengths: Mapping[str, int]) -> None:
    """Raises UserError if an appended file is shorter than at the last checkpoint."""
    for name, length in {METRICS: 0, LOG: 0, **lengths(out)}.items():
        minimum = checkpoint_lengths.get(name, 0)
        if length < minimum:
            raise UserError(
                f"{name}: must have at least the {minimum} bytes of the last checkpoint; it has {length}"
            )


def cut(out: Path, checkpoint_lengths: Mapping[str, int] | None) -> None:
    """Cuts the appended files to their lengths at a checkpoint; without a checkpoint, renames them."""
    for name, length in lengths(out).items():
        if checkpoint_lengths is None:
            path = rename_unused(out / name, "before")
            warn(f"no checkpoint: starting at round 0; {path.name} holds the earlier lines")
        elif length > checkpoint_lengths.get(name, 0):
            os.truncate(out / name, checkpoint_lengths.get(name, 0))


def rename_unused(path: Path, suffix: str) -> Path:
    """Renames a file or a directory to a new name that no reader looks for, ``NAME.SUFFIX``.

    Returns:
      The new path.
    """
    number, target = 1, path.with_name(f"{path.name}.{suffix}")
    while target.exists():
        number, target = number + 1, path.with_name(f"{path.name}.{suffix}-{number + 1}")
    return path.rename(target)


def read_records(out: Path, length: int) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` within its first ``length`` bytes.

    Raises:
      UserError: A line is no record of a run.
    """
    path = out / METRICS
    try:
        content = path.read_bytes()[:length] if path.exists() else b""
        records = [json.loads(line) for line in content.splitlines()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name}: must be lines of JSON, and is damaged: {error}") from None
    if not all(isinstance(record, dict) and record.keys() >= _RECORD_KEYS for record in records):
        raise UserError(f"{path.name}: must hold the records of this run, and is damaged")
    return records


def _check_same(run_config: Mapping[str, Any], config: Config) -> None:
    """Raises UserError if a run began with another configuration than it is to resume with."""
    values, new_values = flat(run_config), flat(json.loads(json.dumps(as_dict(config))))
    for key, value in new_values.items():
        if key not in values:
            raise UserError(f"{key}={_text(value)}: must be left out to resume the run, which began without")
        if values[key] != value:
            raise UserError(
                f"{key}={_text(value)}: must be {_text(values[key])}, the value with which the run began"
            )


def _read_config(out: Path) -> dict[str, Any]:
    """The ``config.json`` of a run, checked."""
    content = read_object(out / CONFIG)
    fingerprints = content.get("fingerprints")
    checks = (
        ("chosen_plan", isinstance(content.get("chosen_plan"), str), "text"),
        ("chosen_storage", content.get("chosen_storage") in get_args(StatePlace), "device, mesh or host"),
        ("fingerprints", isinstance(fingerprints, dict), "a JSON object"),
    )
    for key, is_valid, constraint in checks:
        if not is_valid:
            raise UserError(
                f"{key}={_text(content.get(key))}: must be {constraint} in {out / CONFIG}, "
                "as this version writes it"
            )
    return content


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      UserError: The file cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"file={str(path)!r}: must be readable as JSON; {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"file={str(path)!r}: must hold a JSON object, not a {type(value).__name__}")
    return value


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """The records of a run, finished or not, by round.

    A last line that was cut off is left out. If two lines have the same round, the later one counts.

    Args:
      path: The path of ``metrics.jsonl``.

    Raises:
      UserError: A line is damaged.
    """
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
            place = f"file={str(path)!r}: line {index + 1}"
            raise UserError(f"{place} must be a JSON object with a round, and is damaged") from error
    return [by_round[key] for key in sorted(by_round)]
