"""Tasks: data sets that a partition divides among clients."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from fedjax_masks.core.errors import UserError
from fedjax_masks.core.messages import warn
from fedjax_masks.core.task import ClientIndex, Task
from fedjax_masks.data import skew, specs
from fedjax_masks.data.arrays import ArrayOptions, check_arrays
from fedjax_masks.data.examples import Source
from fedjax_masks.data.inputs import Channels
from fedjax_masks.data.labels import MAX_CLASSES
from fedjax_masks.data.scaling import Scale, scale_inputs
from fedjax_masks.data.sources import load_source


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
      name: The data set, see :data:`~fedjax_masks.data.DATASETS`.
      clients: The number of clients; by default 100, or all of the data set with ``natural``.
      partition: The division among clients, see :data:`~fedjax_masks.data.PARTITIONS`.
      data_dir: The folder of prepared tensorflow-datasets; without it, missing ones are downloaded.
      cache_dir: The folder of decoded arrays (``$FEDJAX_MASKS_CACHE``, ``~/.cache/fedjax_masks``).
      seed: The partition's seed, independent of the model's.
      examples_per_client: The largest number of training examples per client, chosen at random.
      test_per_client: The largest number of test examples per client, chosen at random.
      scale: The scale of inputs: ``auto``, ``none``, ``minmax`` or ``standardize``; see
        :func:`fedjax_masks.data.scaling.scale_inputs`.
      channels: The position of images' channels, see :class:`fedjax_masks.data.arrays.ArrayOptions`.
      relabel: Whether any labels are numbered anew, in sorted order.
      classes: The number of classes, some of which may have no examples; None counts the labels.

    Raises:
      UserError: There is no such data set or partition, or it cannot serve so many clients.
    """
    spec = specs.parse(partition)  # before anything is read or downloaded
    options = _options(scale, channels, relabel, classes)
    source = load_source(name, data_dir=data_dir, cache_dir=cache_dir, options=options)
    source = scale_inputs(source, scale)
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
      clients: The number of clients; by default 100, or all of the data set with ``natural``.
      partition: The division among clients, see :data:`~fedjax_masks.data.PARTITIONS`.
      client_train: ``[num]`` natural client ids, integers or strings, for ``natural``.
      client_test: The same for the test examples.
      name: The data set's name.
      seed: The partition's seed.
      examples_per_client: The largest number of training examples per client, chosen at random.
      test_per_client: The largest number of test examples per client, chosen at random.
      scale: The scale of inputs: ``auto``, ``none``, ``minmax`` or ``standardize``; see
        :func:`fedjax_masks.data.scaling.scale_inputs`.
      channels: The position of images' channels, see :class:`fedjax_masks.data.arrays.ArrayOptions`.
      relabel: Whether any labels are numbered anew, in sorted order.
      classes: The number of classes, some of which may have no examples; None counts the labels.

    Raises:
      UserError: An array is not as described, or the partition is impossible.
    """
    arrays = {"x_train": inputs, "y_train": labels, "x_test": test_inputs, "y_test": test_labels}
    ids = {"client_train": client_train, "client_test": client_test}
    arrays |= {key: value for key, value in ids.items() if value is not None}
    options = _options(scale, channels, relabel, classes)
    source = scale_inputs(check_arrays(name, arrays, options), scale)
    return _divide(source, specs.parse(partition), clients, seed, examples_per_client, test_per_client)


def index_of(rows: Sequence[np.ndarray]) -> ClientIndex:
    """Packs each client's rows into one flat, ragged index of ``int32``."""
    sizes = np.array([len(part) for part in rows], np.int32)
    offsets = (np.cumsum(sizes) - sizes).astype(np.int32)
    return ClientIndex(np.concatenate(list(rows)).astype(np.int32), offsets, sizes)


def rows_of(index: ClientIndex, client: int) -> np.ndarray:
    """The rows of one client: ``int32[size]``."""
    start = index.offsets[client]
    return index.rows[start : start + index.sizes[client]]


def label_histogram(task: Task) -> np.ndarray:
    """The number of training examples of each class per client: ``int64[num_clients, num_classes]``.

    >>> label_histogram(load_task("digits", clients=50, partition="shards:2")).sum(1).tolist()[:3]
    [29, 29, 28]
    """
    owner = np.repeat(np.arange(task.num_clients), task.train.sizes)
    cells = owner * task.num_classes + task.labels[task.train.rows]
    return np.bincount(cells, minlength=task.num_clients * task.num_classes).reshape(-1, task.num_classes)


def _options(scale: Scale, channels: Channels, relabel: bool, classes: int | None) -> ArrayOptions:
    for key, value, choices in (("scale", scale, Scale), ("channels", channels, Channels)):
        if value not in get_args(choices):
            raise UserError(f"{key}={value!r}: must be one of {', '.join(get_args(choices))}")
    _check_number("classes", classes, 1, MAX_CLASSES)
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
    train_examples, test_examples = skew.apply(rng, source, rows, test, spec.modifiers)
    return Task(
        source.name,
        train_examples.inputs,
        train_examples.labels,
        test_examples.inputs,
        test_examples.labels,
        index_of(rows),
        index_of(test),
        source.num_classes,
        spec.text,
    )


def _default_clients(source: Source, spec: specs.Spec) -> int:
    if spec.name == "natural":
        # Without ids any number will do: the partition refuses such data itself.
        return 1 if source.train.clients is None else len(np.unique(source.train.clients))
    return 100


def _at_most(rng: np.random.RandomState, rows: list[np.ndarray], limit: int | None) -> list[np.ndarray]:
    if limit is None:
        return rows
    return [rng.permutation(part)[:limit] if len(part) > limit else part for part in rows]


def _check_number(key: str, value: int | None, low: int, high: int | None = None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"{key}={value!r}: must be an integer")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        reason = "" if high is None or key != "clients" else ", the number of training examples"
        raise UserError(f"{key}={value}: must be {bounds}{reason}")


def _check_tested(name: str, text: str, test: list[np.ndarray]) -> None:
    """Logs the number of clients without test examples; refuses a division in which none has any."""
    empty = [client for client, part in enumerate(test) if not len(part)]
    if len(empty) == len(test):
        raise UserError(
            f"partition={text!r}: must give some client test examples, and gives none; provide client_test "
            "with ids of client_train, or test examples of the training classes, or choose another partition"
        )
    if empty:
        warn(
            f"data set '{name}', partition '{text}': no test examples for {len(empty)} of {len(test)} "
            f"clients (the first is {empty[0]}), so no personal accuracy for them"
        )
