"""How training data reach the device: all at once, or before each chunk those of its clients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Task
from fedjax_masks.core.choices import DataPlace
from fedjax_masks.simulation.arrays import Examples, capacity, train_examples
from fedjax_masks.simulation.mapping import Rows
from fedjax_masks.simulation.memory import available_bytes
from fedjax_masks.simulation.storage import Put


class Supply(NamedTuple):
    """The place of training data, as a record of functions.

    :class:`~fedjax_masks.simulation.storage.Residence` has the same functions for clients' states.

    Attributes:
      shapes: Of what a program gets.
      load: ``((), ids) -> `` what a program gets for these clients; ``ids`` are sorted.
      point: ``(rows, ids)``: rows whose offsets point into it.
      prefetch: ``((), ids)``: announces whose data will be loaded next; called while the device computes.
    """

    shapes: Examples
    load: Callable[[Any, np.ndarray], Examples]
    point: Callable[[Rows, np.ndarray], Rows]
    prefetch: Callable[[Any, np.ndarray], Any]


def choose(task: Task, where: DataPlace, *, limit: int, put: Put) -> Supply:
    """The way that was asked for, or that suits.

    Args:
      task: Data and clients.
      where: Where the data lie between chunks; ``auto`` takes the host if they would take more than
        half of the device's free memory, and those of a chunk's clients less.
      limit: How many clients a program can get.
      put: Host arrays to where arrays lie.
    """
    room = capacity(task)
    shapes = _shapes(task, len(task.labels), len(task.train.rows) + room)
    streamed = _shapes(task, limit * room, limit * room)
    available = available_bytes() if where == "auto" else None
    outgrown = available is not None and trees.num_bytes(shapes) > available / 2
    smaller = trees.num_bytes(streamed) < trees.num_bytes(shapes)
    if where == "host" or (outgrown and smaller):
        return from_host(task, streamed, put=put)
    return resident(task, shapes, put=put)


def resident(task: Task, shapes: Examples, *, put: Put) -> Supply:
    """All training data lie on the device from the first round on."""
    held: list[Examples] = []

    def load(nothing: Any, ids: np.ndarray) -> Examples:
        if not held:
            held.append(put(train_examples(task)))
        return held[0]

    return Supply(shapes, load, point=lambda rows, ids: rows, prefetch=lambda nothing, ids: None)


def from_host(task: Task, shapes: Examples, *, put: Put) -> Supply:
    """Before each chunk, the data of its clients are gathered on the host, and go to the device.

    Every client has room for the largest one's examples.
    """
    room, held = capacity(task), {}

    def gather(ids: np.ndarray) -> Examples:
        inputs, labels = (np.zeros(like.shape, like.dtype) for like in (shapes.inputs, shapes.labels))
        for place, client in enumerate(ids):
            start, size = task.train.offsets[client], task.train.sizes[client]
            own = task.train.rows[start : start + size]
            inputs[place * room :][:size] = task.inputs[own]
            labels[place * room :][:size] = task.labels[own]
        return put(Examples(inputs, labels, np.arange(len(labels), dtype=np.int32)))

    def load(nothing: Any, ids: np.ndarray) -> Examples:
        prefetch(nothing, ids)
        return held.pop(ids.tobytes())

    def prefetch(nothing: Any, ids: np.ndarray) -> None:
        name = ids.tobytes()
        if name not in held:
            held.clear()  # prepared for a chunk that did not come
            held[name] = gather(ids)

    def point(rows: Rows, ids: np.ndarray) -> Rows:
        place = np.minimum(np.searchsorted(ids, rows.ids), len(ids) - 1)
        return rows._replace(offsets=(place * room).astype(np.int32))

    return Supply(shapes, load, point, prefetch)


def _shapes(task: Task, examples: int, rows: int) -> Examples:
    dtype = jax.dtypes.canonicalize_dtype(task.inputs.dtype)
    labels, indices = (jax.ShapeDtypeStruct((number,), np.int32) for number in (examples, rows))
    return Examples(jax.ShapeDtypeStruct((examples, *task.input_shape), dtype), labels, indices)
