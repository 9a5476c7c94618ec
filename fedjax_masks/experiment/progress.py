"""Progress of a run's rounds: a bar on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fedjax_masks.core.progress import Show, is_silent, lines, on_terminal, say

if TYPE_CHECKING:
    from fedjax_masks.experiment.loop import Chunk


@contextmanager
def progress(
    title: str, *, start: int, rounds: int, quiet: bool, activity: str = "compiling"
) -> Iterator[Callable[["Chunk"], None]]:
    """Shows the progress of a run on stderr.

    Args:
      title: The text in front of the progress.
      start: Rounds before the first one that is shown.
      rounds: Rounds of the whole run.
      quiet: Whether nothing is shown.
      activity: The activity before the first chunk ends; empty for none.

    Yields:
      A function to call at the end of each chunk.
    """
    if quiet or is_silent() or start >= rounds:
        yield lambda chunk: None
    elif on_terminal():
        with _bar(title, start, rounds, activity) as show:
            yield show
    else:
        if activity:
            say(f"{title}: {activity}")
        with lines(title, total=rounds, unit="rounds", start=start, phase=activity) as show_line:
            yield _line_per_chunk(show_line, rounds)


def _line_per_chunk(show: Show, rounds: int) -> Callable[["Chunk"], None]:
    """A function that shows the first and the last chunk at once, and others when a line is due."""
    is_first = True

    def show_chunk(chunk: "Chunk") -> None:
        nonlocal is_first
        now = is_first or chunk.totals.round == rounds
        show(chunk.totals.round, describe(chunk) if chunk.record is not None else "", now=now)
        is_first = False

    return show_chunk


@contextmanager
def _bar(title: str, start: int, rounds: int, activity: str) -> Iterator[Callable[["Chunk"], None]]:
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
        task = bar.add_task(title, total=rounds, completed=start, speed="", status=activity)

        def show(chunk: "Chunk") -> None:
            bar.update(task, completed=chunk.totals.round)
            speed = bar.tasks[0].speed
            bar.update(task, speed=f"{speed:.3g}/s" if speed else "")
            status = bar.tasks[0].fields["status"]
            status = "" if status == activity else status
            bar.update(task, status=status if chunk.record is None else describe(chunk))

        yield show


def describe(chunk: "Chunk") -> str:
    """Accuracy and megabytes so far, in a few words.

    The personal accuracy is the mean over the clients that have trained; if there are others, the mean over
    all clients follows it.
    """
    record = chunk.record or {}
    parts = ["diverged"] if record.get("diverged") else []
    if record.get("personal_accuracy_mean_seen") is not None:
        parts.append(f"personal {record['personal_accuracy_mean_seen']:.1%}{_all_clients(record)}")
    if record.get("global_accuracy") is not None:
        parts.append(f"global {record['global_accuracy']:.1%}")
    megabytes = (chunk.totals.bytes_up + chunk.totals.bytes_down) / 1e6
    return ", ".join([*parts, f"{megabytes:.3g} MB"])


def _all_clients(record: Mapping[str, Any]) -> str:
    """The mean over all clients, and the number that have trained; nothing where all have."""
    clients, number = record["clients_seen"], record["num_clients"]
    if clients == number:
        return ""
    return f" (seen {clients} of {number} clients; all {record['personal_accuracy_mean']:.1%})"
