"""Trackers of a run: records go to ``metrics.jsonl``, and to the backends that the user names."""

import json
import logging
import os
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedjax_masks.core.errors import UserError, unknown
from fedjax_masks.experiment.backends import BACKENDS, Record, Tracker

METRICS = "metrics.jsonl"
FILES = tuple(name for backend in BACKENDS.values() for name in backend.files)
"""Files in a run directory that belong to backends."""

_LOGGER = logging.getLogger("fedjax_masks")
_PATIENCE = 3  # failures in a row: each may have waited minutes for a server that is gone


def append(path: Path, text: str) -> None:
    """Appends to a file and makes sure that it is on disk."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def parse(text: str | None) -> tuple[str, ...]:
    """The backends that a user has named, joined by ``+``.

    Raises:
      UserError: One does not exist.

    >>> parse("tensorboard+wandb"), parse(None)
    (('tensorboard', 'wandb'), ())
    """
    names = tuple(dict.fromkeys(text.split("+"))) if text else ()
    for name in names:
        if name not in BACKENDS:
            raise unknown("log", name, BACKENDS)
    return names


def check(names: Sequence[str]) -> None:
    """Raises UserError where a backend's package or key is missing, or the backend cannot be reached."""
    for name in names:
        if find_spec(BACKENDS[name].package) is None:
            raise UserError(
                f"log={name!r}: the package {BACKENDS[name].package} is missing; "
                f"accepted after pip install 'fedjax_masks[{name}]'"
            )
    for name in names:
        with _refusals(name):
            BACKENDS[name].check()


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Turns the exceptions that a backend raises before the run into one line."""
    try:
        yield
    except Exception as error:  # each package has its own
        raise UserError(
            f"log={name!r}: must be reachable ({_line(error)}); {BACKENDS[name].remedy}"
        ) from error


def _line(error: Exception) -> str:
    return textwrap.shorten(str(error), 200) or type(error).__name__


@contextmanager
def tracking(names: Sequence[str], out: Path, *, config: Mapping[str, Any]) -> Iterator[Tracker]:
    """Opens the named backends, and closes them with the run's exit code.

    A backend that fails during the run is left out of what it could not take, and never ends the run.
    One that lacks rounds of ``metrics.jsonl``, since a killed process had not sent them, gets them now.

    Args:
      names: Keys of :data:`fedjax_masks.experiment.backends.BACKENDS`.
      out: The run directory; made for backends.
      config: The configuration as far as it is known.

    Yields:
      The tracker of all. Its ``log`` writes ``metrics.jsonl`` first.

    Raises:
      UserError: A backend cannot be opened.
    """
    check(names)
    opened: list[Tracker] = []
    code = 1
    try:
        for name in names:
            out.mkdir(parents=True, exist_ok=True)
            with _refusals(name):
                opened.append(_patient(name, BACKENDS[name].open(out, config)))
        for record in _logged(out / METRICS) if names else ():
            _each(opened, "log", record)
        yield _all(opened, out)
        code = 0
    except BaseException as error:
        code = exit_code(error)
        raise
    finally:
        _each(opened[::-1], "close", code)


def _all(opened: Sequence[Tracker], out: Path) -> Tracker:
    def log(record: Record) -> None:
        append(out / METRICS, json.dumps(record) + "\n")
        _each(opened, "log", record)

    return Tracker(log, lambda config: _each(opened, "describe", config), lambda code: None)


def _each(opened: Sequence[Tracker], method: str, argument: Any) -> None:
    for tracker in opened:
        getattr(tracker, method)(argument)


def exit_code(error: BaseException) -> int:
    """The exit code of a run that an exception ends: 128 plus the signal's number, or 1.

    >>> exit_code(SystemExit(143)), exit_code(KeyboardInterrupt()), exit_code(ValueError())
    (143, 130, 1)
    """
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
        return error.code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _patient(name: str, tracker: Tracker) -> Tracker:
    """A tracker whose failures are told and counted, and end no run."""
    failed = in_a_row = 0

    def attempt(call: Callable[[Any], None], argument: Any) -> None:
        nonlocal failed, in_a_row
        try:
            call(argument)
            in_a_row = 0
        except Exception as error:  # each package has its own
            if not failed:
                _LOGGER.warning("log=%r: failed, and the run goes on: %s", name, _line(error))
            failed, in_a_row = failed + 1, in_a_row + 1

    def log(record: Record) -> None:
        nonlocal failed
        if in_a_row < _PATIENCE:
            attempt(tracker.log, record)
        else:
            failed += 1

    def close(code: int) -> None:
        attempt(tracker.close, code)
        if failed > 1:
            _LOGGER.warning("log=%r: failed %d times; %s has every record", name, failed, METRICS)

    return Tracker(log, lambda config: attempt(tracker.describe, config), close)


def _logged(path: Path) -> list[Record]:
    """The records of an earlier process; a line that its end has cut off is none."""
    whole, _, _ = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except (ValueError, RecursionError):
        return []  # the run itself says that the file is damaged


def remove(out: Path, names: Sequence[str] = FILES) -> None:
    """Removes files of backends from a directory without a run."""
    for name in names:
        shutil.rmtree(out / name, ignore_errors=True)
        if (out / name).is_file():
            (out / name).unlink()
