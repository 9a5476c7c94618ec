"""What a person at a terminal sees of a run."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fedjax_masks.runner import Chunk


@contextmanager
def progress(title: str, *, done: int, rounds: int, quiet: bool) -> Iterator[Callable[[Chunk], None]]:
    """Shows the progress of a run on stderr; silent when that is no terminal.

    Args:
      title: Shown in front.
      done: Rounds done before.
      rounds: Rounds of the whole run.
      quiet: Silent in any case.

    Yields:
      To be called at the end of each chunk.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda chunk: None
        return
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
        task = bar.add_task(title, total=rounds, completed=done, speed="", status="")

        def show(chunk: Chunk) -> None:
            bar.update(task, completed=chunk.totals.round)
            speed = bar.tasks[0].speed
            bar.update(task, speed=f"{speed:.3g}/s" if speed else "")
            if chunk.record is not None:
                bar.update(task, status=describe(chunk))

        yield show


def describe(chunk: Chunk) -> str:
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
