"""A task's arrays as they lie on the device: once, flat."""

import hashlib
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core.algorithm import ClientData, ClientIndex, Task
from fedjax_masks.simulation.mapping import Block, Rows


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


def test_examples(task: Task) -> Examples:
    """The test data, with slack for a client without any."""
    return _examples(task.test_inputs, task.test_labels, task.test, 1)


def with_shuffled_test(task: Task) -> Task:
    """The task with its test set, and each client's part of it, in an order that only their content decides.

    Batch statistics make an accuracy depend on which examples share a batch. In this order, it does not
    depend on the order of the test set, nor on the numbers of the clients.
    """
    order = np.argsort(_digests(task.test_inputs, task.test_labels), kind="stable")
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    rows, clients = place[task.test.rows], np.repeat(np.arange(task.num_clients), task.test.sizes)
    return replace(
        task,
        test_inputs=task.test_inputs[order],
        test_labels=task.test_labels[order],
        test=task.test._replace(rows=rows[np.lexsort((rows, clients))]),
    )


def _digests(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``uint64[n]``: a digest of each example; equal examples have equal ones."""
    labels = np.asarray(labels, np.int32)
    digests = [
        hashlib.blake2b(x.tobytes() + y.tobytes(), digest_size=8).digest() for x, y in zip(inputs, labels)
    ]
    return np.frombuffer(b"".join(digests), np.uint64)


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
