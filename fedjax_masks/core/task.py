"""A federated learning problem: a data set and its division among clients. Needs NumPy alone."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class ClientIndex(NamedTuple):
    """The division of a data set's examples among clients, as a flat ragged array.

    Attributes:
      rows: ``int32[total]``: indices of the examples of client 0, then of client 1, and so on.
      offsets: ``int32[num_clients]``: the position in ``rows`` of each client's first example.
      sizes: ``int32[num_clients]``: the number of each client's examples.
    """

    rows: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True, eq=False)
class Task:
    """A federated learning problem: a data set and its division among clients.

    Attributes:
      name: The data set's name.
      inputs: ``[num_train, *input_shape]``, uint8 (0 to 255) or float32.
      labels: ``int32[num_train]``.
      test_inputs: ``[num_test, *input_shape]``: the global test set.
      test_labels: ``int32[num_test]``.
      train: Each client's examples in ``inputs``.
      test: Each client's examples in ``test_inputs``, with the label distribution of its training data.
      num_classes: Number of classes.
      partition: The partition in the user's notation (``"shards:2"``).
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    train: ClientIndex
    test: ClientIndex
    num_classes: int
    partition: str = "iid"

    @property
    def num_clients(self) -> int:
        return len(self.train.sizes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.inputs.shape[1:]
