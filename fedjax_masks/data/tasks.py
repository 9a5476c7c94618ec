"""From a data set and a partition to a :class:`~fedjax_masks.core.algorithm.Task`."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from fedjax_masks.core.algorithm import ClientIndex, Task
from fedjax_masks.data import skew, specs
from fedjax_masks.data.arrays import MOST_CLASSES, ArrayOptions, Channels, checked
from fedjax_masks.data.examples import Source
from fedjax_masks.data.scaling import Scale, scaled
from fedjax_masks.data.sources import load_source

_LOGGER = logging.getLogger("fedjax_masks")


def load_task(
    name: str,
    *,
    clients: int | None = None,
    partition: str = "iid",
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    examples_per_client: int | None = None,
    test_per_client: int | None = None,
    scale: Scale = "auto",
    channels: Channels = "auto",
    relabel: bool = False,
    classes: int | None = None,
) -> Task:
    """Loads a data set and divides it among clients.

    >>> task = load_task("digits", clients=50, partition="shards:2")
    >>> task.num_clients, task.input_shape, task.num_classes
    (50, (8, 8, 1), 10)

    Args:
      name: A data set: see :data:`~fedjax_masks.data.DATASETS`.
      clients: Number of clients; by default 100, or all there are with ``natural``.
      partition: How to divide: see :data:`~fedjax_masks.data.PARTITIONS`.
      data_dir: Where prepared tensorflow-datasets lie; nothing is downloaded when it is given.
      cache_dir: Where decoded arrays are kept (``$FEDJAX_MASKS_CACHE``, ``~/.cache/fedjax_masks``).
      seed: The partition's seed, independent of the model's.
      examples_per_client: At most so many training examples per client, chosen at random.
      test_per_client: At most so many test examples per client, chosen at random.
      scale: The scale of inputs: ``auto``, ``none``, ``minmax`` or ``standardize``; see
        :func:`fedjax_masks.data.scaling.scaled`.
      channels: Where images have their channels, see :class:`fedjax_masks.data.arrays.ArrayOptions`.
      relabel: Numbers any labels anew, in sorted order.
      classes: Number of classes, some of which may have no examples; None counts the labels.

    Raises:
      ValueError: If there is no such data set or partition, or it cannot serve so many clients.
    """
    spec = specs.parse(partition)  # before anything is read or downloaded
    options = _options(scale, channels, relabel, classes)
    source = load_source(name, data_dir=data_dir, cache_dir=cache_dir, options=options)
    source = scaled(source, scale)
    return _divide(source, spec, clients, seed, examples_per_client, test_per_client)


def task_from_arrays(
    inputs: np.ndarray,
    labels: np.ndarray,
    test_inputs: np.ndarray,
    test_labels: np.ndarray,
    *,
    clients: int | None = None,
    partition: str = "iid",
    client_train: np.ndarray | None = None,
    client_test: np.ndarray | None = None,
    name: str = "arrays",
    seed: int = 0,
    examples_per_client: int | None = None,
    test_per_client: int | None = None,
    scale: Scale = "auto",
    channels: Channels = "auto",
    relabel: bool = False,
    classes: int | None = None,
) -> Task:
    """Divides arrays among clients.

    Args:
      inputs: ``[num, height, width, channels]``, ``[num, height, width]`` or
        ``[num, features]``; uint8 (or integers from 0 to 255), floats, or bool.
      labels: ``[num]`` integers from 0, or from 1; bool; whole floats; strings with ``relabel``.
      test_inputs: Like ``inputs``.
      test_labels: Like ``labels``.
      clients: Number of clients; by default 100, or all there are with ``natural``.
      partition: How to divide: see :data:`~fedjax_masks.data.PARTITIONS`.
      client_train: ``[num]`` natural client ids, integers or strings, for ``natural``.
      client_test: The same of the test examples.
      name: What to call the data set.
      seed: The partition's seed.
      examples_per_client: At most so many training examples per client, chosen at random.
      test_per_client: At most so many test examples per client, chosen at random.
      scale: The scale of inputs: ``auto``, ``none``, ``minmax`` or ``standardize``; see
        :func:`fedjax_masks.data.scaling.scaled`.
      channels: Where images have their channels, see :class:`fedjax_masks.data.arrays.ArrayOptions`.
      relabel: Numbers any labels anew, in sorted order.
      classes: Number of classes, some of which may have no examples; None counts the labels.

    Raises:
      ValueError: If an array is not as described, or the partition is impossible.
    """
    arrays = {"x_train": inputs, "y_train": labels, "x_test": test_inputs, "y_test": test_labels}
    ids = {"client_train": client_train, "client_test": client_test}
    given = arrays | {key: value for key, value in ids.items() if value is not None}
    source = scaled(checked(name, given, _options(scale, channels, relabel, classes)), scale)
    return _divide(source, specs.parse(partition), clients, seed, examples_per_client, test_per_client)


def index_of(rows: Sequence[np.ndarray]) -> ClientIndex:
    """Packs each client's rows into one flat, ragged index of ``int32``."""
    sizes = np.array([len(mine) for mine in rows], np.int32)
    offsets = (np.cumsum(sizes) - sizes).astype(np.int32)
    return ClientIndex(np.concatenate(list(rows)).astype(np.int32), offsets, sizes)


def rows_of(index: ClientIndex, client: int) -> np.ndarray:
    """``int32[size]``: the rows of one client."""
    start = index.offsets[client]
    return index.rows[start : start + index.sizes[client]]


def label_histogram(task: Task) -> np.ndarray:
    """``int64[num_clients, num_classes]``: how many training examples of each class a client has.

    >>> label_histogram(load_task("digits", clients=50, partition="shards:2")).sum(1).tolist()[:3]
    [29, 29, 28]
    """
    owner = np.repeat(np.arange(task.num_clients), task.train.sizes)
    cells = owner * task.num_classes + task.labels[task.train.rows]
    return np.bincount(cells, minlength=task.num_clients * task.num_classes).reshape(-1, task.num_classes)


def _options(scale: Scale, channels: Channels, relabel: bool, classes: int | None) -> ArrayOptions:
    for key, value, accepted in (("scale", scale, Scale), ("channels", channels, Channels)):
        if value not in get_args(accepted):
            raise ValueError(f"{key}={value!r}: must be one of {', '.join(get_args(accepted))}")
    _check_number("classes", classes, 1, MOST_CLASSES)
    return ArrayOptions(channels, relabel, classes)


def _divide(
    source: Source,
    spec: specs.Spec,
    clients: int | None,
    seed: int,
    examples_per_client: int | None,
    test_per_client: int | None,
) -> Task:
    _check_number("seed", seed, 0, 2**32 - 1)
    _check_number("examples_per_client", examples_per_client, 1)
    _check_number("test_per_client", test_per_client, 1)
    clients = _default_clients(source, spec) if clients is None else clients
    _check_number("clients", clients, 1, None if spec.base.shared else len(source.train.labels))
    rng = np.random.RandomState(seed)
    rows = spec.base.divide(rng, source.train, clients, *spec.arguments)
    rows = _at_most(rng, rows, examples_per_client)
    test = _at_most(rng, spec.base.allot(rng, source.train, rows, source.test), test_per_client)
    _check_tested(source.name, spec.text, test)
    train, held = skew.apply(rng, source, rows, test, spec.modifiers)
    return Task(
        source.name,
        train.inputs,
        train.labels,
        held.inputs,
        held.labels,
        index_of(rows),
        index_of(test),
        source.num_classes,
        spec.text,
    )


def _default_clients(source: Source, spec: specs.Spec) -> int:
    if spec.name == "natural":
        # Without ids any number will do: the partition itself says that they are missing.
        return 1 if source.train.clients is None else len(np.unique(source.train.clients))
    return 100


def _at_most(rng: np.random.RandomState, rows: list[np.ndarray], limit: int | None) -> list[np.ndarray]:
    if limit is None:
        return rows
    return [rng.permutation(mine)[:limit] if len(mine) > limit else mine for mine in rows]


def _check_number(key: str, value: int | None, low: int, high: int | None = None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{key}={value!r}: an integer is accepted")
    if value < low or (high is not None and value > high):
        accepted = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(
            f"{key}={value}: {accepted} is accepted" + (" (training examples)" if key == "clients" else "")
        )


def _check_tested(name: str, text: str, test: list[np.ndarray]) -> None:
    """Says how many clients have no test examples; refuses a division in which none has any."""
    empty = [client for client, mine in enumerate(test) if not len(mine)]
    if len(empty) == len(test):
        raise ValueError(
            f"partition '{text}': no client would have test examples; accepted: client_test with ids of "
            "client_train, test examples of the classes that are trained, or another partition, such as iid"
        )
    if empty:
        said = "no test examples for %d of %d clients (the first is %d), so no personal accuracy of theirs"
        _LOGGER.warning(f"data set '%s', partition '%s': {said}", name, text, len(empty), len(test), empty[0])
