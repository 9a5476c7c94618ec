"""Storage of training data, on the device or on the host."""

import jax
import numpy as np

from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Task
from fedjax_masks.core.choices import DataPlace
from fedjax_masks.simulation import arrays
from fedjax_masks.simulation.arrays import Examples, train_examples
from fedjax_masks.simulation.lanes import Lanes
from fedjax_masks.simulation.memory import available_bytes
from fedjax_masks.simulation.storage import DataStorage, Put


def choose_data_storage(task: Task, place: DataPlace, *, max_clients: int, put: Put) -> DataStorage:
    """Makes the storage of training data.

    Args:
      task: Data and clients.
      place: The place; ``auto`` takes the host if all data need more than half of the device's free memory,
        and the data of ``max_clients`` clients need less than all data.
      max_clients: The largest number of clients that a program can get.
      put: ``(host arrays) -> device arrays``.
    """
    longest = arrays.capacity(task)
    shapes = _shapes(task, len(task.labels), len(task.train.rows) + longest)
    chunk_shapes = _shapes(task, max_clients * longest, max_clients * longest)
    available = available_bytes() if place == "auto" else None
    too_large = available is not None and trees.num_bytes(shapes) > available / 2
    smaller = trees.num_bytes(chunk_shapes) < trees.num_bytes(shapes)
    if place == "host" or (too_large and smaller):
        return host_data_storage(task, chunk_shapes, put=put)
    return device_data_storage(task, shapes, put=put)


def device_data_storage(task: Task, shapes: Examples[jax.ShapeDtypeStruct], *, put: Put) -> DataStorage:
    """Storage on the device: all data, from the first round on."""
    cache: list[Examples[jax.Array]] = []

    def load(state: tuple[()], ids: np.ndarray) -> Examples[jax.Array]:
        if not cache:
            cache.append(put(train_examples(task)))
        return cache[0]

    return DataStorage(shapes, load, prefetch=lambda state, ids: None, locate=lambda lanes, ids: lanes)


def host_data_storage(task: Task, shapes: Examples[jax.ShapeDtypeStruct], *, put: Put) -> DataStorage:
    """Storage on the host: the data of a chunk's clients go to the device before the chunk.

    Every client has space for the examples of the largest client.
    """
    longest, cache = arrays.capacity(task), {}

    def gather(ids: np.ndarray) -> Examples[jax.Array]:
        # The same shapes for every chunk, so that one program serves all chunks.
        inputs, labels = (np.zeros(like.shape, like.dtype) for like in (shapes.inputs, shapes.labels))
        for position, client in enumerate(ids):
            start, size = task.train.offsets[client], task.train.sizes[client]
            rows = task.train.rows[start : start + size]
            inputs[position * longest :][:size] = task.inputs[rows]
            labels[position * longest :][:size] = task.labels[rows]
        return put(Examples(inputs, labels, np.arange(len(labels), dtype=np.int32)))

    def load(state: tuple[()], ids: np.ndarray) -> Examples[jax.Array]:
        prefetch(state, ids)
        return cache.pop(ids.tobytes())

    def prefetch(state: tuple[()], ids: np.ndarray) -> None:
        key = ids.tobytes()
        if key not in cache:
            cache.clear()  # a prefetched chunk that did not follow
            cache[key] = gather(ids)

    def locate(lanes: Lanes[np.ndarray], ids: np.ndarray) -> Lanes[np.ndarray]:
        position = np.minimum(np.searchsorted(ids, lanes.ids), len(ids) - 1)
        return lanes._replace(offsets=(position * longest).astype(np.int32))

    return DataStorage(shapes, load, prefetch, locate)


def _shapes(task: Task, num_examples: int, num_rows: int) -> Examples[jax.ShapeDtypeStruct]:
    # Without x64, jax puts float64 arrays on a device as float32.
    dtype = jax.dtypes.canonicalize_dtype(task.inputs.dtype)
    labels, rows = (jax.ShapeDtypeStruct((number,), np.int32) for number in (num_examples, num_rows))
    return Examples(jax.ShapeDtypeStruct((num_examples, *task.input_shape), dtype), labels, rows)
