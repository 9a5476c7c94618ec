"""What one client handles in a round, found by tracing and without running anything."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from fedjax_masks import work
from fedjax_masks.algorithm import FederatedAlgorithm, State, Task
from fedjax_masks.simulation import arrays
from fedjax_masks.simulation.layout import Block, Rows


class Shapes(NamedTuple):
    """Shapes of everything that one client handles.

    Attributes:
      state: The simulation's, with the states of all clients.
      message: What the server sends to one client.
      upload: What one client sends.
      metrics: The names of its metrics, sorted.
    """

    state: State
    message: Any
    upload: Any
    metrics: list[str]


def trace_client(
    make_algorithm: Callable[[Any], FederatedAlgorithm],
    values: Any,
    task: Task,
    key: chex.PRNGKey,
    examples: arrays.Examples,
) -> tuple[Callable[[Any], FederatedAlgorithm], Shapes]:
    """Traces one client's round, for all values of some options at once.

    Args:
      make_algorithm: ``(values) -> FederatedAlgorithm``.
      values: The options' values or shapes, any pytree; ``()`` where there are none.
      task: Data and clients.
      key: A key like the simulation's.
      examples: The training data.

    Returns:
      ``make_algorithm``, in whose algorithms training is not traced again; and the shapes.
    """
    state = jax.eval_shape(lambda values, key: make_algorithm(values).init(key, task), values, key)
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    message = jax.eval_shape(
        lambda values, *sent: make_algorithm(values).send(*sent), values, state.server, scalar
    )
    client = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), state.clients)
    data = jax.eval_shape(
        lambda e, s: arrays.client_data(e, Rows(s, s, s, s, s), Block(s, s), arrays.capacity(task)),
        examples,
        scalar,
    )
    arguments = (values, key, state.common, message, client, data)
    train = work.count(lambda values, *args: make_algorithm(values).train(*args), *arguments)
    _, upload, metrics = train.out

    def make(values: Any) -> FederatedAlgorithm:
        return make_algorithm(values)._replace(train=partial(train.call, values))

    return make, Shapes(state, message, upload, sorted(metrics))
