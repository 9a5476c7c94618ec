"""What a person at a terminal sees of a run."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    """Accuracy and megabytes so far, in a few words."""
    record = chunk.record or {}
    names = {"personal": "personal_accuracy_mean", "global": "global_accuracy"}
    parts = [f"{name} {record[key]:.1%}" for name, key in names.items() if record.get(key) is not None]
    megabytes = (chunk.totals.bytes_up + chunk.totals.bytes_down) / 1e6
    return ", ".join([*parts, f"{megabytes:.3g} MB"])
