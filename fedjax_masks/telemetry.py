"""Progress of long work, for people: a bar on a terminal, plain lines where there is none."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fedjax_masks.runner import Chunk

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


@contextmanager
def progress(
    title: str, *, done: int, rounds: int, quiet: bool, doing: str = "compiling"
) -> Iterator[Callable[["Chunk"], None]]:
    """Shows the progress of a run on stderr.

    Args:
      title: Shown in front.
      done: Rounds done before.
      rounds: Rounds of the whole run.
      quiet: Silent in any case.
      doing: What goes on before the first rounds are done; empty for nothing of note.

    Yields:
      To be called at the end of each chunk.
    """
    if quiet or _SILENT.get() or done >= rounds:
        yield lambda chunk: None
    elif on_terminal():
        with _bar(title, done, rounds, doing) as show:
            yield show
    else:
        if doing:
            say(f"{title}: {doing}")
        with lines(title, total=rounds, unit="rounds", done=done, doing=doing) as show_line:
            yield _first_and_last(show_line, rounds)


def _first_and_last(show: Show, rounds: int) -> Callable[["Chunk"], None]:
    """Lines for the first and the last chunk in any case."""
    known = False

    def note(chunk: "Chunk") -> None:
        nonlocal known
        ends = not known or chunk.totals.round == rounds
        show(chunk.totals.round, describe(chunk) if chunk.record is not None else "", now=ends)
        known = True

    return note


@contextmanager
def _bar(title: str, done: int, rounds: int, doing: str) -> Iterator[Callable[["Chunk"], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} rounds"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=rounds, completed=done, speed="", status=doing)

        def show(chunk: "Chunk") -> None:
            bar.update(task, completed=chunk.totals.round)
            speed = bar.tasks[0].speed
            bar.update(task, speed=f"{speed:.3g}/s" if speed else "")
            status = bar.tasks[0].fields["status"]
            told = "" if status == doing else status
            bar.update(task, status=told if chunk.record is None else describe(chunk))

        yield show


def describe(chunk: "Chunk") -> str:
    """Accuracy and megabytes so far, in a few words.

    The personal accuracy is that of the clients that have trained; where there are others, the mean over
    all clients stands behind it.
    """
    record = chunk.record or {}
    parts = ["diverged"] if record.get("diverged") else []
    if record.get("personal_accuracy_mean_seen") is not None:
        parts.append(f"personal {record['personal_accuracy_mean_seen']:.1%}{_rest(record)}")
    if record.get("global_accuracy") is not None:
        parts.append(f"global {record['global_accuracy']:.1%}")
    megabytes = (chunk.totals.bytes_up + chunk.totals.bytes_down) / 1e6
    return ", ".join([*parts, f"{megabytes:.3g} MB"])


def _rest(record: Mapping[str, Any]) -> str:
    """The mean over all clients, and how many have trained; nothing where all have."""
    seen, number = record["clients_seen"], record["num_clients"]
    if seen == number:
        return ""
    return f" (seen {seen} of {number} clients; all {record['personal_accuracy_mean']:.1%})"


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(4.2), duration(200), duration(9000)
    ('4 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.2g} h"
