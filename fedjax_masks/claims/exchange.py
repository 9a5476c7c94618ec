"""What one client and the server send each other in a round, counted from their payloads."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_masks.communication import payload
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, State, Task
from fedjax_masks.data.tasks import rows_of


class Exchange(NamedTuple):
    """Sizes in bytes; fractions of one are bits.

    Attributes:
      up: From the client to the server.
      down: From the server to the client.
    """

    up: float
    down: float


def counter(algorithm: FederatedAlgorithm, task: Task) -> Callable[..., Exchange]:
    """Counts rounds of single clients, which train only as far as sizes depend on what they learn.

    Args:
      algorithm: The algorithm.
      task: The data; all clients have equally many examples.

    Returns:
      ``count(state, *, client=0, tier=0)``: by the state before the round, whose round it is, and the
      tier of that client.
    """

    def payloads(state: State, data: ClientData, client: jax.Array) -> tuple[Any, Any]:
        message = algorithm.send(state.server, client)
        own = jax.tree.map(lambda rows: rows[client], state.clients)
        return algorithm.train(jax.random.key(0), state.common, message, own, data)[1], message

    @jax.jit
    def varying(*arguments: Any) -> list[jax.Array]:
        """Of training, no more is compiled than this needs."""
        upload, message = payloads(*arguments)
        return [payload.traced_bits(upload), payload.traced_bits(message), *payload.passed_bits(upload)]

    def count(state: State, *, client: int = 0, tier: int = 0) -> Exchange:
        rows = jnp.asarray(rows_of(task.train, client))
        size = jnp.int32(len(rows))
        examples = jnp.asarray(task.inputs), jnp.asarray(task.labels)
        arguments = state, ClientData(*examples, rows, size, size, jnp.int32(tier)), jnp.int32(client)
        upload, message = map(payload.static_bits, jax.eval_shape(payloads, *arguments))
        up, down, passed_up, passed_down = map(int, varying(*arguments))
        return Exchange((upload + up + passed_up) / 8, (message + down + passed_down) / 8)

    return count
