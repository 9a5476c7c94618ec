"""What sets the examples of clients apart beyond their labels: feature skew and corruption.

A modifier is written behind a partition, ``iid+noise:0.1`` or ``shards:2+corrupt_labels:0,3``.
Feature skew changes a client's training and test examples alike, and so needs clients that
share no test examples; corruption changes the training examples of chosen clients only, their
test examples stay clean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedjax_masks.data.examples import Examples, Source


def noise(
    rng: np.random.RandomState, inputs: np.ndarray, client: int, clients: int, sigma: float
) -> np.ndarray:
    """Adds Gaussian noise that grows with the client's number (NIID-Bench, section 4.2).

    The standard deviation is ``sigma * (client + 1) / clients``, in units of a pixel's full
    range for uint8 inputs and of the inputs themselves for floats.
    """
    drawn = rng.standard_normal(inputs.shape) * (sigma * (client + 1) / clients)
    if inputs.dtype == np.uint8:
        return np.clip(np.rint(inputs + 255 * drawn), 0, 255).astype(np.uint8)
    return (inputs + drawn).astype(inputs.dtype)


def rotation(rng: np.random.RandomState, inputs: np.ndarray, client: int, clients: int) -> np.ndarray:
    """Turns all images of client ``i`` by ``i mod 4`` right angles (Ghosh et al. 2020, section 6)."""
    del rng, clients
    if inputs.ndim != 4 or inputs.shape[1] != inputs.shape[2]:
        raise ValueError(
            f"partition modifier 'rotation': inputs are {list(inputs.shape[1:])}; accepted: square images"
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
    """Reads a number of at least 0, so small that noised inputs stay finite in float32."""
    value = float(text)
    if not 0 <= value <= 1e30:
        raise ValueError
    return value


@dataclass(frozen=True)
class Modifier:
    """A change to the examples of clients; one of ``skew`` and ``corrupt`` is given.

    Attributes:
      usage: How it is written.
      help: One line for people.
      skew: ``(rng, inputs, client, clients, *arguments) -> inputs``, of every client.
      corrupt: ``(rng, examples) -> examples``, of the training data of chosen clients.
      arguments: One reader per argument.
    """

    usage: str
    help: str
    skew: Callable[..., np.ndarray] | None = None
    corrupt: Callable[[np.random.RandomState, Examples], Examples] | None = None
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
    """Applies a partition's modifiers; the arrays of the source are copied, never written to."""
    train, held = source.train, source.test
    for modifier, arguments in modifiers:
        if modifier.corrupt is not None:
            train = _corrupt(rng, train, rows, modifier, arguments[0])
        else:
            _check_disjoint(modifier.usage, test)
            train = _skew(rng, train, rows, modifier, arguments)
            held = _skew(rng, held, test, modifier, arguments)
    return train, held


def _skew(
    rng: np.random.RandomState,
    examples: Examples,
    rows: list[np.ndarray],
    modifier: Modifier,
    arguments: tuple,
) -> Examples:
    inputs = np.array(examples.inputs)
    assert modifier.skew is not None
    for client, mine in enumerate(rows):
        inputs[mine] = modifier.skew(rng, inputs[mine], client, len(rows), *arguments)
    return examples._replace(inputs=inputs)


def _corrupt(
    rng: np.random.RandomState,
    train: Examples,
    rows: list[np.ndarray],
    modifier: Modifier,
    ids: tuple[int, ...],
) -> Examples:
    inputs, labels = np.array(train.inputs), np.array(train.labels)
    assert modifier.corrupt is not None
    for client in ids:
        if client >= len(rows):
            raise ValueError(
                f"partition modifier '{modifier.usage}': no client {client}; accepted: 0 to {len(rows) - 1}"
            )
        mine = rows[client]
        changed = modifier.corrupt(rng, Examples(inputs[mine], labels[mine]))
        inputs[mine], labels[mine] = changed.inputs, changed.labels
    return train._replace(inputs=inputs, labels=labels)


def _check_disjoint(usage: str, test: list[np.ndarray]) -> None:
    rows = np.concatenate(test)
    if len(np.unique(rows)) < len(rows):
        raise ValueError(
            f"partition modifier '{usage}': needs clients that share no test examples; "
            "accepted: with iid, or natural with test ids, and no more clients than test examples"
        )
