"""The directory of a run: its files, what may be written to it, and what a resume finds there.

Lines of ``metrics.jsonl`` and ``log.txt`` are appended and synced; all else is replaced atomically. A
checkpoint remembers how long the appended files were, so that a resume cuts off what came after it and
neither loses nor doubles a line.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from fedjax_masks.core.errors import UserError
from fedjax_masks.core.trees import flat
from fedjax_masks.experiment import checkpoint, lock, trackers
from fedjax_masks.experiment.config import Config, as_dict
from fedjax_masks.experiment.records import Record
from fedjax_masks.simulation.storage import WhereClients

CONFIG, SUMMARY, METRICS, LOG = "config.json", "summary.json", trackers.METRICS, "log.txt"
CHECKPOINTS, FIGURES, ROWS = "checkpoints", "figures", "clients.rows"
_LOGGER = logging.getLogger("fedjax_masks")
_NEEDED = ("round", "global_accuracy", "personal_accuracy_mean")  # of the records of a run to resume
_ENVIRONMENT = ("chosen_plan", "chosen_plan_reason", "chosen_storage", "fingerprints", "versions", "platform")


def check(out: Path) -> None:
    """Checks that a directory can be written to; writes nothing.

    Raises:
      UserError: It cannot.
    """
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise UserError(f"out={str(out)!r}: {existing} is read-only; accepted is a writable directory")
    if not existing.is_dir():
        raise UserError(f"out={str(out)!r}: must be a directory; {existing} is a file")


def open_directory(out: Path, config: Config, *, resume: bool) -> dict[str, Any]:
    """Checks that a run may be written to a directory; writes nothing.

    Returns:
      The ``config.json`` of the run to resume; empty where there is none yet.

    Raises:
      UserError: The directory holds another run, or something that is no run.
    """
    check(out)
    # A run killed before anything else leaves at most its lock, its trackers' files and the unfinished file.
    content = {path.name for path in out.iterdir()} - {lock.NAME} if out.exists() else set()
    if content and not resume:
        raise UserError(f"out={str(out)!r}: is not empty; --resume continues the run in it")
    for name in content & {CONFIG, METRICS, LOG, SUMMARY, ROWS}:
        if not (out / name).is_file():
            raise UserError(f"out={str(out / name)!r}: must be a file")
    if CHECKPOINTS in content and not (out / CHECKPOINTS).is_dir():
        raise UserError(f"out={str(out / CHECKPOINTS)!r}: must be a directory; mount or restore it to resume")
    if CONFIG in content:
        stored = _stored(out)
        _check_same(stored, config)
        return stored
    if content - {CONFIG + ".partial", *trackers.FILES}:
        raise UserError(f"out={str(out)!r}: holds no run to resume")
    return {}


def is_finished(out: Path) -> bool:
    """Whether a run's directory is complete."""
    return (out / SUMMARY).exists()


def rounds_saved(out: Path) -> int:
    """Rounds up to the last checkpoint of a run; 0 without one."""
    return max((int(step.name) for step in checkpoint.steps(out / CHECKPOINTS)), default=0)


def stored_values(out: Path) -> dict[str, Any]:
    """The flat configuration of the run in a directory.

    Raises:
      UserError: There is no run.
    """
    if not (out / CONFIG).exists():
        raise UserError(f"out={str(out)!r}: holds no run to resume")
    return flat({key: value for key, value in _stored(out).items() if key not in _ENVIRONMENT})


def check_fingerprints(stored: Mapping[str, Any], found: Mapping[str, str]) -> None:
    """Checks that a resumed run goes on with the data and parameters that it began with.

    Args:
      stored: The run's ``config.json``.
      found: Fingerprints by the key that names what has them.

    Raises:
      UserError: One differs.
    """
    for key, value in found.items():
        if stored["fingerprints"].get(key) != value:
            raise UserError(
                f"{key}={_shown(flat(stored).get(key))}: must hold what it held when the run began, and it "
                "has changed; restore it, or start again in another directory"
            )


def lengths(out: Path) -> dict[str, int]:
    """The lengths of the appended files, in bytes."""
    paths = (out / name for name in (METRICS, LOG))
    return {path.name: path.stat().st_size for path in paths if path.exists()}


def check_lengths(out: Path, at_checkpoint: Mapping[str, int]) -> None:
    """Raises UserError where an appended file is shorter than at the last checkpoint."""
    for name, now in {METRICS: 0, LOG: 0, **lengths(out)}.items():
        before = at_checkpoint.get(name, 0)
        if now < before:
            raise UserError(f"{name}: {before} bytes were there at the last checkpoint, {now} are left")


def cut(out: Path, at_checkpoint: Mapping[str, int] | None) -> None:
    """Cuts the appended files back to what they were at a checkpoint; without one, puts them aside."""
    for name, now in lengths(out).items():
        if at_checkpoint is None:
            aside = set_aside(out / name, "before")
            _LOGGER.warning("no checkpoint: starting at round 0; %s holds what was there", aside.name)
        elif now > at_checkpoint.get(name, 0):
            os.truncate(out / name, at_checkpoint.get(name, 0))


def set_aside(path: Path, suffix: str) -> Path:
    """Renames a file or a directory to a name that nobody has and nothing reads, ``NAME.SUFFIX``.

    Returns:
      The new path.
    """
    number, aside = 1, path.with_name(f"{path.name}.{suffix}")
    while aside.exists():
        number, aside = number + 1, path.with_name(f"{path.name}.{suffix}-{number + 1}")
    return path.rename(aside)


def read_records(out: Path, length: int) -> list[Record]:
    """The lines of ``metrics.jsonl`` within its first ``length`` bytes.

    Raises:
      UserError: They are not those of a run.
    """
    path = out / METRICS
    try:
        content = path.read_bytes()[:length] if path.exists() else b""
        found = [json.loads(line) for line in content.splitlines()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name}: is damaged: {error}") from None
    if not all(isinstance(record, dict) and {*_NEEDED} <= record.keys() for record in found):
        raise UserError(f"{path.name}: is damaged; accepted are the records of this run")
    return found


def _check_same(stored: Mapping[str, Any], config: Config) -> None:
    before, now = flat(stored), flat(json.loads(json.dumps(as_dict(config))))
    for key, value in now.items():
        if key not in before:
            raise UserError(f"{key}={_shown(value)}: must be a key of the run to resume; it began without")
        if before[key] != value:
            own = _shown(before[key])
            raise UserError(f"{key}={_shown(value)}: must be the run's own value to resume it, {own}")


def _stored(out: Path) -> dict[str, Any]:
    try:
        stored = json.loads((out / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"out={str(out)!r}: {CONFIG} cannot be read: {error}") from None
    if not isinstance(stored, dict):
        raise UserError(f"out={str(out)!r}: {CONFIG} is damaged; accepted is a JSON object")
    fingerprints = stored.get("fingerprints")
    well_formed = (
        ("chosen_plan", isinstance(stored.get("chosen_plan"), str), "text"),
        ("chosen_storage", stored.get("chosen_storage") in get_args(WhereClients), "device, mesh or host"),
        ("fingerprints", isinstance(fingerprints, dict), "a JSON object"),
    )
    for key, accepted, constraint in well_formed:
        if not accepted:
            raise UserError(
                f"{key}={_shown(stored.get(key))}: must be {constraint} in {out / CONFIG}, "
                "as this version writes it"
            )
    return stored


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
