"""Labelled examples, and a data set before it is divided among clients."""

from typing import NamedTuple

import numpy as np


class Examples(NamedTuple):
    """Labelled examples.

    Attributes:
      inputs: ``[num, *input_shape]``, uint8 (0 to 255) or floats, float32 once they are scaled; may be
        memory-mapped.
      labels: ``int32[num]``: the classes.
      clients: ``[num]``: the natural client of each example, integers or strings, or None.
    """

    inputs: np.ndarray
    labels: np.ndarray
    clients: np.ndarray | None = None


class Source(NamedTuple):
    """A data set before it is divided among clients.

    Attributes:
      name: The name under which it was requested.
      train: The training examples.
      test: The test examples.
      num_classes: The number of classes; every label is below it.
    """

    name: str
    train: Examples
    test: Examples
    num_classes: int


def hold_out(examples: Examples, *, fraction: float = 0.2) -> tuple[Examples, Examples]:
    """Splits off test examples, the same ones every time.

    The fraction is taken from each natural client where there are any, else from each class,
    so that no client and no class of two or more examples goes without.

    Returns:
      Training and test examples, both in their original order.
    """
    groups = examples.labels if examples.clients is None else examples.clients
    _, group = np.unique(groups, return_inverse=True)
    order = np.random.RandomState(0).permutation(len(group))
    order = order[np.argsort(group[order], kind="stable")]
    sizes = np.bincount(group)
    rank = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    quota = np.where(sizes > 1, np.maximum(1, np.rint(fraction * sizes)), 0)
    is_test = np.zeros(len(group), bool)
    is_test[order] = rank < np.repeat(quota, sizes)
    return _select(examples, ~is_test), _select(examples, is_test)


def _select(examples: Examples, mask: np.ndarray) -> Examples:
    clients = examples.clients
    return Examples(examples.inputs[mask], examples.labels[mask], None if clients is None else clients[mask])
