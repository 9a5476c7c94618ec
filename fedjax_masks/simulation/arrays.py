"""A task's arrays as they lie on the device: once, flat."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.algorithm import ClientData, ClientIndex, Task
from fedjax_masks.simulation.layout import Block, Rows


class Examples(NamedTuple):
    """A data set as a program gets it, or its shapes; who owns which part of ``rows`` is known to the host.

    Attributes:
      inputs: ``[num_examples, *input_shape]``.
      labels: ``int32[num_examples]``.
      rows: ``int32[total + slack]``: the flat index; the slack lets every client's slice have
        the length of the longest.
    """

    inputs: Any
    labels: Any
    rows: Any


def _examples(inputs: np.ndarray, labels: np.ndarray, index: ClientIndex, slack: int) -> Examples:
    return Examples(
        jnp.asarray(inputs),
        jnp.asarray(labels, jnp.int32),
        jnp.pad(jnp.asarray(index.rows, jnp.int32), (0, slack)),
    )


def capacity(task: Task) -> int:
    """The number of training examples of the largest client; at least 1."""
    return max(1, int(np.max(task.train.sizes)))


def train_examples(task: Task) -> Examples:
    """The training data, with slack for slices of :func:`capacity` rows."""
    return _examples(task.inputs, task.labels, task.train, capacity(task))


def test_examples(task: Task, batch: int) -> Examples:
    """The test data, with slack for one batch."""
    return _examples(task.test_inputs, task.test_labels, task.test, batch)


def client_data(examples: Examples, row: Rows, block: Block, length: int) -> ClientData:
    """One client's view of the training data.

    Args:
      examples: The training data.
      row: The client, scalars.
      block: The block that it runs in.
      length: The capacity, static.
    """
    rows = jax.lax.dynamic_slice(examples.rows, (row.offsets,), (length,))
    return ClientData(examples.inputs, examples.labels, rows, row.sizes, block.longest, block.tier)
