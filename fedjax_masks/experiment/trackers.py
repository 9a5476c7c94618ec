"""Trackers of a run: records go to ``metrics.jsonl``, and to the backends that the user names."""

import json
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from fedjax_masks.core.errors import UserError, unknown_name
from fedjax_masks.core.messages import warn
from fedjax_masks.experiment import disk
from fedjax_masks.experiment.backends import BACKENDS, Record, Tracker

METRICS = "metrics.jsonl"
FILES = tuple(name for backend in BACKENDS.values() for name in backend.files)
"""Files in a run directory that belong to backends."""

Argument = TypeVar("Argument")

_PATIENCE = 3  # failures in a row: each may have waited minutes for an absent server


def parse(text: str | None) -> tuple[str, ...]:
    """The names of backends in a text, where ``+`` joins them.

    Raises:
      UserError: There is no backend of a name.

    >>> parse("tensorboard+wandb"), parse(None)
    (('tensorboard', 'wandb'), ())
    """
    names = tuple(dict.fromkeys(text.split("+"))) if text else ()
    for name in names:
        if name not in BACKENDS:
            raise unknown_name("log", name, BACKENDS)
    return names


def check(names: Sequence[str]) -> None:
    """Raises UserError if a backend's package or key is missing, or the backend cannot be reached."""
    for name in names:
        package = BACKENDS[name].package
        if find_spec(package) is None:
            raise UserError(f"log={name!r}: must go with {package}; pip install 'fedjax_masks[{name}]'")
    for name in names:
        with _user_errors(name):
            BACKENDS[name].check()


@contextmanager
def _user_errors(name: str) -> Iterator[None]:
    """Turns the exceptions that a backend raises before the run into a UserError of one line."""
    try:
        yield
    except Exception as error:  # each package has its own
        text = f"log={name!r}: must be reachable ({_line(error)}); {BACKENDS[name].remedy}"
        raise UserError(text) from error


def _line(error: Exception) -> str:
    return textwrap.shorten(str(error), 200) or type(error).__name__


@contextmanager
def tracking(names: Sequence[str], out: Path, *, config: Mapping[str, Any]) -> Iterator[Tracker]:
    """Opens backends, and closes them with the run's exit code.

    A backend that fails during the run never ends the run. A backend that lacks rounds of ``metrics.jsonl``,
    because the process was killed before it sent them, gets them now.

    Args:
      names: Keys of :data:`fedjax_masks.experiment.backends.BACKENDS`.
      out: The run directory; created if there are backends.
      config: The configuration, as far as it is known before the data are loaded.

    Yields:
      One tracker for all backends. Its ``log`` writes ``metrics.jsonl`` first.

    Raises:
      UserError: A backend cannot be opened.
    """
    check(names)
    backends: list[Tracker] = []
    code = 1
    try:
        for name in names:
            out.mkdir(parents=True, exist_ok=True)
            with _user_errors(name):
                backends.append(_fault_tolerant(name, BACKENDS[name].open(out, config)))
        for record in _earlier_records(out / METRICS) if names else ():
            _each(backends, "log", record)
        yield _combine(backends, out)
        code = 0
    except BaseException as error:
        code = exit_code(error)
        raise
    finally:
        _each(backends[::-1], "close", code)


def _combine(backends: Sequence[Tracker], out: Path) -> Tracker:
    """One tracker that writes ``metrics.jsonl`` and calls those of all backends."""

    def log(record: Record) -> None:
        disk.append(out / METRICS, json.dumps(record) + "\n")
        _each(backends, "log", record)

    return Tracker(log, lambda config: _each(backends, "describe", config), lambda code: None)


def _each(backends: Sequence[Tracker], method: str, argument: object) -> None:
    for tracker in backends:
        getattr(tracker, method)(argument)


def exit_code(error: BaseException) -> int:
    """The exit code of a run that an exception ends: 128 plus the signal's number, or 1.

    >>> exit_code(SystemExit(143)), exit_code(KeyboardInterrupt()), exit_code(ValueError())
    (143, 130, 1)
    """
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
        return error.code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _fault_tolerant(name: str, tracker: Tracker) -> Tracker:
    """A tracker that logs and counts its failures instead of raising them."""
    failures = in_a_row = 0

    def attempt(call: Callable[[Argument], None], argument: Argument) -> None:
        nonlocal failures, in_a_row
        try:
            call(argument)
            in_a_row = 0
        except Exception as error:  # each package has its own
            if not failures:
                warn(f"log={name!r}: failed, and the run goes on: {_line(error)}")
            failures, in_a_row = failures + 1, in_a_row + 1

    def log(record: Record) -> None:
        nonlocal failures
        if in_a_row < _PATIENCE:
            attempt(tracker.log, record)
        else:
            failures += 1

    def close(code: int) -> None:
        attempt(tracker.close, code)
        if failures > 1:
            warn(f"log={name!r}: failed {failures} times; {METRICS} has every record")

    return Tracker(log, lambda config: attempt(tracker.describe, config), close)


def _earlier_records(path: Path) -> list[Record]:
    """The records of an earlier process, without a last line that was cut off."""
    lines, _, _ = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
    try:
        return [json.loads(line) for line in lines.splitlines()]
    except (ValueError, RecursionError):
        return []  # the resumption of the run refuses the damaged file


def remove(out: Path, names: Sequence[str] = FILES) -> None:
    """Removes files of backends from a directory without a run."""
    for name in names:
        shutil.rmtree(out / name, ignore_errors=True)
        if (out / name).is_file():
            (out / name).unlink()
