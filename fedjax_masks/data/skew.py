"""Feature skew, and corruption of some clients' training examples.

A modifier is written behind a partition, ``iid+noise:0.1`` or ``shards:2+corrupt_labels:0,3``.
Feature skew changes a client's training and test examples alike, and so requires clients that
share no test examples. Corruption changes only the training examples of some clients; their
test examples stay clean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedjax_masks.core.errors import UserError
from fedjax_masks.data.examples import Examples, Source


def noise(
    rng: np.random.RandomState, inputs: np.ndarray, client: int, clients: int, sigma: float
) -> np.ndarray:
    """Adds Gaussian noise that grows with the client's number (NIID-Bench, section 4.2).

    The standard deviation is ``sigma * (client + 1) / clients``, in units of a pixel's full
    range for uint8 inputs and of the inputs themselves for floats.
    """
    deviations = rng.standard_normal(inputs.shape) * (sigma * (client + 1) / clients)
    if inputs.dtype == np.uint8:
        return np.clip(np.rint(inputs + 255 * deviations), 0, 255).astype(np.uint8)
    return (inputs + deviations).astype(inputs.dtype)


def rotation(rng: np.random.RandomState, inputs: np.ndarray, client: int, clients: int) -> np.ndarray:
    """Turns all images of client ``i`` by ``i mod 4`` right angles (Ghosh et al. 2020, section 6)."""
    del rng, clients
    if inputs.ndim != 4 or inputs.shape[1] != inputs.shape[2]:
        raise UserError(
            f"partition='rotation': must go with square images; the inputs are {list(inputs.shape[1:])}"
        )
    return np.rot90(inputs, client % 4, axes=(1, 2))


def shuffle_pixels(rng: np.random.RandomState, examples: Examples) -> Examples:
    """Moves the pixels of all images by one random permutation; channels stay together."""
    inputs = examples.inputs
    places = inputs.shape[1:-1] if inputs.ndim == 4 else inputs.shape[1:]
    order = rng.permutation(int(np.prod(places)))
    flat = inputs.reshape(len(inputs), len(order), -1)
    return examples._replace(inputs=flat[:, order].reshape(inputs.shape))


def shuffle_labels(rng: np.random.RandomState, examples: Examples) -> Examples:
    """Shuffles the labels among the examples."""
    return examples._replace(labels=rng.permutation(examples.labels))


def client_ids(text: str) -> tuple[int, ...]:
    """Reads client ids separated by commas."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise ValueError
    return tuple(map(int, parts))


def sigma(text: str) -> float:
    """Reads a number of at least 0, so small that inputs with noise stay finite in float32."""
    value = float(text)
    if not 0 <= value <= 1e30:
        raise ValueError
    return value


Skew = Callable[..., np.ndarray]
"""``(rng, inputs, client, clients, *arguments) -> inputs``: a change to the inputs of one client."""

Corrupt = Callable[[np.random.RandomState, Examples], Examples]
"""``(rng, examples) -> examples``: a change to the training examples of one client."""


@dataclass(frozen=True)
class Modifier:
    """A change to the examples of clients: either ``skew`` or ``corrupt``.

    Attributes:
      usage: The text form; capitals stand for arguments.
      help: One line of help.
      skew: A change that is applied to every client.
      corrupt: A change that is applied to the clients that the argument names.
      arguments: One reader per argument; a reader raises ValueError for text that it refuses.
    """

    usage: str
    help: str
    skew: Skew | None = None
    corrupt: Corrupt | None = None
    arguments: tuple[Callable[[str], Any], ...] = ()


#: Modifiers by name.
MODIFIERS: dict[str, Modifier] = {
    "noise": Modifier(
        "noise:SIGMA", "Gaussian noise up to SIGMA, more with each client", noise, None, (sigma,)
    ),
    "rotation": Modifier("rotation", "images turned by 0, 90, 180 or 270 degrees", rotation),
    "corrupt_pixels": Modifier(
        "corrupt_pixels:ID,...", "pixels of these clients permuted", None, shuffle_pixels, (client_ids,)
    ),
    "corrupt_labels": Modifier(
        "corrupt_labels:ID,...", "labels of these clients shuffled", None, shuffle_labels, (client_ids,)
    ),
}


def apply(
    rng: np.random.RandomState,
    source: Source,
    rows: list[np.ndarray],
    test: list[np.ndarray],
    modifiers: Sequence[tuple[Modifier, tuple[Any, ...]]],
) -> tuple[Examples, Examples]:
    """Applies a partition's modifiers; the arrays of the source are copied, never written to.

    Args:
      rng: The source of randomness.
      source: The data set.
      rows: Each client's rows of the training examples.
      test: Each client's rows of the test examples.
      modifiers: The modifiers, with their arguments.

    Returns:
      Training and test examples.

    Raises:
      UserError: A modifier does not fit the data or the partition.
    """
    train_examples, test_examples = source.train, source.test
    for modifier, arguments in modifiers:
        if modifier.corrupt is not None:
            (ids,) = arguments
            _check_ids(modifier.usage, ids, len(rows))
            corrupt = partial(modifier.corrupt, rng)
            train_examples = _corrupt(train_examples, [rows[client] for client in ids], corrupt)
        elif modifier.skew is not None:
            _check_disjoint(modifier.usage, test)
            skew = partial(modifier.skew, rng)
            train_examples = _skew(train_examples, rows, skew, arguments)
            test_examples = _skew(test_examples, test, skew, arguments)
    return train_examples, test_examples


def _skew(examples: Examples, rows: list[np.ndarray], skew: Skew, arguments: tuple[Any, ...]) -> Examples:
    inputs = np.array(examples.inputs)
    for client, part in enumerate(rows):
        inputs[part] = skew(inputs[part], client, len(rows), *arguments)
    return examples._replace(inputs=inputs)


def _corrupt(train: Examples, rows: list[np.ndarray], corrupt: Callable[[Examples], Examples]) -> Examples:
    inputs, labels = np.array(train.inputs), np.array(train.labels)
    for part in rows:
        noisy = corrupt(Examples(inputs[part], labels[part]))
        inputs[part], labels[part] = noisy.inputs, noisy.labels
    return train._replace(inputs=inputs, labels=labels)


def _check_ids(usage: str, ids: Sequence[int], clients: int) -> None:
    for client in ids:
        if client >= clients:
            raise UserError(f"partition='{usage}': must name clients from 0 to {clients - 1}, not {client}")


def _check_disjoint(usage: str, test: list[np.ndarray]) -> None:
    rows = np.concatenate(test)
    if len(np.unique(rows)) < len(rows):
        raise UserError(
            f"partition='{usage}': must go with clients that share no test examples; choose iid, or natural "
            "with client ids of test examples, and no more clients than test examples"
        )
