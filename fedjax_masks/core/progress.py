"""Progress lines on stderr for long work."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from fedjax_masks.core.messages import printable

# Seconds between lines: 5 % of the elapsed time, but at least ten seconds and at most ten minutes.
_SHORTEST, _LONGEST, _SHARE = 10.0, 600.0, 0.05
_SILENT: ContextVar[bool] = ContextVar("silent", default=False)


class Show(Protocol):
    """A callback that shows the progress of work."""

    def __call__(self, count: int, /, status: str = "", *, now: bool = False) -> None:
        """Stores the progress, and prints a line if a line is due.

        Args:
          count: Number of finished units.
          status: A few words; empty keeps the last status.
          now: Whether to print a line in any case.
        """


@contextmanager
def silence(active: bool = True) -> Iterator[None]:
    """Suppresses progress inside the context, if ``active``.

    >>> with silence():
    ...     say("not printed")
    """
    token = _SILENT.set(active or _SILENT.get())
    try:
        yield
    finally:
        _SILENT.reset(token)


def say(text: str) -> None:
    """Prints a line on stderr, except inside :func:`silence`."""
    if not _SILENT.get():
        _write(text)


def _write(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def in_notebook() -> bool:
    """Whether the process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")


def is_silent() -> bool:
    """Whether the current context is inside :func:`silence`."""
    return _SILENT.get()


def on_terminal() -> bool:
    """Whether stderr is a terminal that can overwrite lines.

    A shell command in a notebook's cell has a terminal that only collects lines; Jupyter sets a variable.
    """
    only_collects = "JPY_PARENT_PID" in os.environ or os.environ.get("TERM") == "dumb"
    return sys.stderr.isatty() and not only_collects


class _Lines:
    """The progress lines of one piece of work, with growing pauses between them."""

    def __init__(self, title: str, total: int | None, unit: str, start: int, phase: str) -> None:
        self._title, self._total, self._unit, self._phase = title, total, unit, phase
        self._start_time = self._last_time = time.monotonic()
        self._first: tuple[int, float] | None = None  # count and time of the first call of show
        self._count, self._status, self._lock = start, "", threading.Lock()

    def show(self, count: int, status: str = "", *, now: bool = False) -> None:
        with self._lock:
            self._first = (count, time.monotonic()) if self._first is None else self._first
            self._count, self._status = count, status or self._status
            if now or self._is_due():
                self._print()

    def remind(self) -> None:
        with self._lock:
            if self._is_due():
                self._print()

    def _is_due(self) -> bool:
        now = time.monotonic()
        pause = min(max(_SHORTEST, _SHARE * (now - self._start_time)), _LONGEST)
        return now - self._last_time >= pause

    def _print(self) -> None:
        self._last_time = time.monotonic()
        elapsed = f"{duration(self._last_time - self._start_time)} so far"
        parts = [self._progress(), *self._rate(), self._status] if self._first else [self._phase, elapsed]
        _write(f"{self._title}: {', '.join(filter(None, parts))}")

    def _progress(self) -> str:
        number = f"{self._count}/{self._total}" if self._total else str(self._count)
        return f"{number} {self._unit}".strip()

    def _rate(self) -> list[str]:
        """The rate and the remaining time. The time before the first call, a compilation, does not count."""
        first_count, first_time = self._first or (0, 0.0)
        seconds = self._last_time - first_time
        if self._count == first_count or seconds <= 0:
            return []
        rate = (self._count - first_count) / seconds
        remaining = [f"{duration((self._total - self._count) / rate)} left"] if self._total else []
        return [f"{rate:.3g}/s", *(remaining if self._count != self._total else [])]


@contextmanager
def lines(
    title: str, *, total: int | None = None, unit: str = "", start: int = 0, phase: str = ""
) -> Iterator[Show]:
    """Prints a line on stderr from time to time, also while the progress does not change.

    Args:
      title: The beginning of every line.
      total: Units of the whole work, where their number is known.
      unit: The name of the units.
      start: Units finished before.
      phase: The name of the work before the first call.

    Yields:
      A callback for the progress.
    """
    if _SILENT.get():
        yield lambda count, status="", *, now=False: None
        return
    output, end = _Lines(title, total, unit, start, phase), threading.Event()

    def remind() -> None:
        while not end.wait(1.0):
            output.remind()

    reminder = threading.Thread(target=remind, daemon=True, name="progress")
    reminder.start()
    try:
        yield output.show
    finally:
        end.set()
        reminder.join()


@contextmanager
def activity(text: str) -> Iterator[None]:
    """Names a long activity on stderr from time to time, after ten seconds at the earliest.

    Args:
      text: The name of the activity.
    """
    with lines(text):
        yield


def duration(seconds: float) -> str:
    """A time span for people.

    >>> duration(4.2), duration(200), duration(9000)
    ('4 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.2g} h"
