"""Progress of long work, for people: a bar on a terminal, plain lines where there is none."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

# Lines come ten seconds apart at first, ever more rarely in a long run, and at least every ten minutes.
_SHORTEST, _LONGEST, _SHARE = 10.0, 600.0, 0.05
_SILENT: ContextVar[bool] = ContextVar("silent", default=False)


class Show(Protocol):
    """Told how far the work is."""

    def __call__(self, done: int, status: str = "", *, now: bool = False) -> None:
        """Takes note, and prints a line if one is due.

        Args:
          done: Units done.
          status: A few words; empty keeps the last ones.
          now: Print in any case.
        """


@contextmanager
def silence(asked: bool = True) -> Iterator[None]:
    """Prints no progress inside, if asked.

    >>> with silence():
    ...     say("unheard")
    """
    token = _SILENT.set(asked or _SILENT.get())
    try:
        yield
    finally:
        _SILENT.reset(token)


def say(text: str) -> None:
    """Prints a line on stderr, unless inside of :func:`silence`."""
    if not _SILENT.get():
        print(text, file=sys.stderr, flush=True)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")


def is_silent() -> bool:
    """Whether progress is inside of :func:`silence`."""
    return _SILENT.get()


def on_terminal() -> bool:
    """Whether stderr is a terminal on which lines can be written over.

    A shell command of a notebook's cell has a terminal that only collects them, and a variable of Jupyter.
    """
    elsewhere = "JPY_PARENT_PID" in os.environ or os.environ.get("TERM") == "dumb"
    return sys.stderr.isatty() and not elsewhere


class _Lines:
    """The lines of one piece of work, thrifty in time."""

    def __init__(self, title: str, total: int | None, unit: str, done: int, doing: str) -> None:
        self._title, self._total, self._unit, self._doing = title, total, unit, doing
        self._began = self._last = time.monotonic()
        self._first: tuple[int, float] | None = None  # the units done at the first news, and when
        self._done, self._status, self._lock = done, "", threading.Lock()

    def show(self, done: int, status: str = "", *, now: bool = False) -> None:
        with self._lock:
            self._first = (done, time.monotonic()) if self._first is None else self._first
            self._done, self._status = done, status or self._status
            if now or self.due():
                self._print()

    def remind(self) -> None:
        with self._lock:
            if self.due():
                self._print()

    def due(self) -> bool:
        now = time.monotonic()
        wait = min(max(_SHORTEST, _SHARE * (now - self._began)), _LONGEST)
        return now - self._last >= wait

    def _print(self) -> None:
        self._last = time.monotonic()
        passed = f"{duration(self._last - self._began)} so far"
        parts = [self._count(), *self._speed(), self._status] if self._first else [self._doing, passed]
        print(f"{self._title}: {', '.join(filter(None, parts))}", file=sys.stderr, flush=True)

    def _count(self) -> str:
        number = f"{self._done}/{self._total}" if self._total else str(self._done)
        return f"{number} {self._unit}".strip()

    def _speed(self) -> list[str]:
        """The rate since the first news, which alone came after a compilation, and the time left by it."""
        done, at = self._first or (0, 0.0)
        passed = self._last - at
        if self._done == done or passed <= 0:
            return []
        speed = (self._done - done) / passed
        left = [f"{duration((self._total - self._done) / speed)} left"] if self._total else []
        return [f"{speed:.3g}/s", *(left if self._done != self._total else [])]


@contextmanager
def lines(
    title: str, *, total: int | None = None, unit: str = "", done: int = 0, doing: str = ""
) -> Iterator[Show]:
    """Prints a line on stderr now and then, also while there is no news.

    Args:
      title: What the lines begin with.
      total: Units of the whole work, where that is known.
      unit: What they are.
      done: Units done before.
      doing: What goes on before the first news.

    Yields:
      To be called with news.
    """
    if _SILENT.get():
        yield lambda done, status="", *, now=False: None
        return
    written, ended = _Lines(title, total, unit, done, doing), threading.Event()

    def remind() -> None:
        while not ended.wait(1.0):
            written.remind()

    reminder = threading.Thread(target=remind, daemon=True, name="progress")
    reminder.start()
    try:
        yield written.show
    finally:
        ended.set()
        reminder.join()


@contextmanager
def working(text: str) -> Iterator[None]:
    """Says every now and then what takes so long; nothing in the first ten seconds.

    Args:
      text: What goes on.
    """
    with lines(text):
        yield


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(4.2), duration(200), duration(9000)
    ('4 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.2g} h"
