"""Bytes that one client and the server exchange in a round, counted from the payloads."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from fedjax_masks.communication import size
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, PyTree, Round, State, Task
from fedjax_masks.data.tasks import rows_of


class Exchange(NamedTuple):
    """Sizes in bytes; a fraction of a byte is a number of bits.

    Attributes:
      up: Bytes from the client to the server.
      down: Bytes from the server to the client.
    """

    up: float
    down: float


class Count(Protocol):
    """Counts the exchange of one client in one round."""

    def __call__(self, state: State, *, client: int = 0, tier: int = 0, index: int = 0) -> Exchange:
        """Counts one exchange.

        Args:
          state: The state before the round.
          client: The number of the client.
          tier: The client's tier.
          index: The number of the round, from 0.
        """
        ...


def counter(algorithm: FederatedAlgorithm, task: Task) -> Count:
    """Makes a function that counts exchanges; training runs only as far as sizes depend on its results.

    Args:
      algorithm: The algorithm.
      task: The data; all clients have equally many examples.
    """

    def payloads(
        state: State, data: ClientData, client: jax.Array, index: jax.Array
    ) -> tuple[PyTree, PyTree]:
        round = Round(jax.random.key(0), index)
        client_state, profile = (jax.tree.map(lambda leaf: leaf[client], tree) for tree in state[1:])
        message = algorithm.send(round, state.server, profile)
        return algorithm.train(round, message, client_state, data)[1], message

    @jax.jit
    def traced_sizes(
        state: State, data: ClientData, client: jax.Array, index: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Sizes that depend on values; XLA leaves out the part of training that they do not need."""
        upload, message = payloads(state, data, client, index)
        dialogue = size.total_dialogue(upload)
        bits = size.traced_bits(upload), size.traced_bits(message)
        return (*bits, dialogue.up, dialogue.down) if dialogue is not None else bits

    def count(state: State, *, client: int = 0, tier: int = 0, index: int = 0) -> Exchange:
        rows = jnp.asarray(rows_of(task.train, client))
        number = jnp.int32(len(rows))
        inputs, labels = jnp.asarray(task.inputs), jnp.asarray(task.labels)
        data = ClientData(inputs, labels, rows, number, number, jnp.int32(tier))
        arguments = state, data, jnp.int32(client), jnp.int32(index)
        upload, message = jax.eval_shape(payloads, *arguments)
        bits = [int(value) for value in traced_sizes(*arguments)]
        up = size.static_bits(upload) + sum(bits[::2])
        down = size.static_bits(message) + sum(bits[1::2])
        return Exchange(up / 8, down / 8)

    return count
