"""A task's arrays on the device: one copy of the data set, with a flat index of the clients' examples."""

import hashlib
from dataclasses import replace
from typing import Generic, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core.algorithm import ClientData, ClientIndex, Task
from fedjax_masks.simulation.lanes import A, Lanes
from fedjax_masks.simulation.mapping import Block


class Examples(NamedTuple, Generic[A]):
    """The data set of a program; lanes point to the clients' parts of ``rows``.

    Attributes:
      inputs: ``[num_examples, *input_shape]``.
      labels: ``int32[num_examples]``.
      rows: ``int32[total + slack]``: the flat index of the clients' examples. The slack lets every client's
        slice have the length of the longest slice.
    """

    inputs: A
    labels: A
    rows: A


def _examples(inputs: np.ndarray, labels: np.ndarray, index: ClientIndex, slack: int) -> Examples[jax.Array]:
    # dynamic_slice moves a slice that ends outside the array: without slack, it would hold other examples.
    return Examples(
        jnp.asarray(inputs),
        jnp.asarray(labels, jnp.int32),
        jnp.pad(jnp.asarray(index.rows, jnp.int32), (0, slack)),
    )


def capacity(task: Task) -> int:
    """The number of training examples of the largest client; at least 1."""
    return max(1, int(np.max(task.train.sizes)))


def equal_size(task: Task) -> np.int32 | None:
    """The number of training examples of every client; None where numbers differ."""
    sizes = np.asarray(task.train.sizes)
    return np.int32(sizes[0]) if sizes[0] > 0 and np.all(sizes == sizes[0]) else None


def train_examples(task: Task) -> Examples[jax.Array]:
    """The training data, with slack for slices of :func:`capacity` examples."""
    return _examples(task.inputs, task.labels, task.train, capacity(task))


def test_examples(task: Task) -> Examples[jax.Array]:
    """The test data, with slack for a client without test examples."""
    return _examples(task.test_inputs, task.test_labels, task.test, 1)


def with_shuffled_test(task: Task) -> Task:
    """The task, with its test set and each client's part of it in an order that depends on content alone.

    Batch statistics make an accuracy depend on the division into batches. In this order, accuracies do not
    depend on the order of the test set or on the numbers of the clients.
    """
    order = np.argsort(_digests(task.test_inputs, task.test_labels), kind="stable")
    position = np.empty(len(order), np.int32)
    position[order] = np.arange(len(order), dtype=np.int32)
    rows, clients = position[task.test.rows], np.repeat(np.arange(task.num_clients), task.test.sizes)
    return replace(
        task,
        test_inputs=task.test_inputs[order],
        test_labels=task.test_labels[order],
        # Each client's part is in the same order as the test set.
        test=task.test._replace(rows=rows[np.lexsort((rows, clients))]),
    )


def _digests(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A digest of each example, ``uint64[n]``; equal examples have equal digests."""
    labels = np.asarray(labels, np.int32)
    digests = [
        hashlib.blake2b(x.tobytes() + y.tobytes(), digest_size=8).digest() for x, y in zip(inputs, labels)
    ]
    return np.frombuffer(b"".join(digests), np.uint64)


def client_data(
    examples: Examples[jax.Array], lane: Lanes[jax.Array], block: Block, length: int
) -> ClientData:
    """One client's view of the training data.

    Args:
      examples: The training data.
      lane: The client's lane, scalars.
      block: The client's block.
      length: The capacity, static.
    """
    rows = jax.lax.dynamic_slice(examples.rows, (lane.offsets,), (length,))
    return ClientData(examples.inputs, examples.labels, rows, lane.sizes, block.longest, block.tier)
