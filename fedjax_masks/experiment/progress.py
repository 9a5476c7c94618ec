"""Progress of a run's rounds, for people: a bar on a terminal, plain lines where there is none."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedjax_masks.core.progress import Show, is_silent, lines, on_terminal, say

if TYPE_CHECKING:
    from fedjax_masks.experiment.loop import Chunk


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
    if quiet or is_silent() or done >= rounds:
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
