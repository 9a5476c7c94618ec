"""The division of the data among the clients, in the terminal, as JSON and as a picture file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_masks.analysis.partition import Division, partition_figure
from fedjax_masks.analysis.style import drawing
from fedjax_masks.core.task import Task
from fedjax_masks.data import label_histogram

if TYPE_CHECKING:
    from rich.console import Console

_CLIENTS, _CLASSES = 20, 12


def partition_facts(task: Task, seed: int) -> dict[str, Any]:
    """Sizes and classes of all clients, ready for JSON.

    Args:
      task: The divided data.
      seed: The seed of the partition.
    """
    return {
        "data": task.name,
        "partition": task.partition,
        "seed": seed,
        "clients": task.num_clients,
        "input_shape": list(task.input_shape),
        "num_classes": task.num_classes,
        "train_sizes": task.train.sizes.tolist(),
        "test_sizes": task.test.sizes.tolist(),
        "train_classes": label_histogram(task).tolist(),
    }


def print_partition(task: Task, seed: int, console: "Console | None" = None) -> None:
    """Prints statistics of sizes and classes over all clients, then the first clients.

    Args:
      task: The divided data.
      seed: The seed of the partition.
      console: A rich console; standard output by default.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Console() if console is None else console
    counts = label_histogram(task)
    figures = {
        "training examples": counts.sum(1),
        "test examples": task.test.sizes,
        "classes": (counts > 0).sum(1),
        "share of the largest class, %": 100 * counts.max(1) / counts.sum(1),
    }
    spread = Table("", "smallest", "median", "mean", "largest", box=SIMPLE_HEAD, pad_edge=False)
    for title, values in figures.items():
        cells = (np.min(values), np.median(values), np.mean(values), np.max(values))
        spread.add_row(title, *(f"{cell:.4g}" if cell < 1000 else f"{cell:.0f}" for cell in cells))
    first = Table("client", "training", "test", "classes: examples", box=SIMPLE_HEAD, pad_edge=False)
    for client in range(min(_CLIENTS, task.num_clients)):
        classes = Text(_classes(counts[client]), overflow="fold")
        first.add_row(str(client), str(counts[client].sum()), str(task.test.sizes[client]), classes)
    for table in (spread, first):
        for column in table.columns[1:4]:
            column.justify = "right" if column.header != "classes: examples" else "left"
    out.print(_title(task, seed), markup=False, highlight=False)
    out.print(spread)
    out.print(first)
    if task.num_clients > _CLIENTS:
        out.print(f"The first {_CLIENTS} of {task.num_clients} clients; --json lists all.", highlight=False)


def save_partition(task: Task, seed: int, path: Path) -> None:
    """Draws the classes of the clients, as the report does, into a file.

    Args:
      task: The divided data.
      seed: The seed of the partition.
      path: The file; its suffix names a format of matplotlib.

    Raises:
      ValueError: matplotlib does not know the format.
    """
    with drawing():
        plot = partition_figure(
            [Division(f"{task.name}, {task.partition}, seed {seed}", label_histogram(task))]
        )
        assert plot is not None
        plot.figure.savefig(path, dpi=150)


def _title(task: Task, seed: int) -> str:
    clients = f"{task.num_clients} clients, {len(task.train.rows)} training examples"
    shape = " x ".join(map(str, task.input_shape))
    return f"{task.name} ({shape}, {task.num_classes} classes), {task.partition}, seed {seed}: {clients}"


def _classes(counts: np.ndarray) -> str:
    """The classes of a client with their numbers of examples, the largest first.

    >>> _classes(np.array([0, 3, 0, 20]))
    '3: 20, 1: 3'
    """
    order = [label for label in np.argsort(-counts, kind="stable") if counts[label]]
    entries = [f"{label}: {counts[label]}" for label in order[:_CLASSES]]
    return ", ".join(entries + [f"and {len(order) - _CLASSES} more"] * (len(order) > _CLASSES))
