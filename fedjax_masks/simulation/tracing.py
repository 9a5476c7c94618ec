"""What one client handles in a round, found by tracing and without running anything."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.extend import core

from fedjax_masks.core import flops, returns, work
from fedjax_masks.core.algorithm import FederatedAlgorithm, State, Task
from fedjax_masks.core.errors import UserError
from fedjax_masks.ops.norm import batch_statistics
from fedjax_masks.simulation import arrays
from fedjax_masks.simulation.mapping import Block, Rows


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
      ``make_algorithm``, in whose algorithms training is not traced again, and which have ``predict``
      where the global model normalises by the batch at hand; and the shapes.

    Raises:
      UserError: A function returns too little or too much, or training normalises by one example.
    """

    def checked(values: Any) -> FederatedAlgorithm:
        return returns.checked(make_algorithm(values))

    state = jax.eval_shape(lambda values, key: checked(values).init(key, task), values, key)
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    message = jax.eval_shape(lambda values, *sent: checked(values).send(*sent), values, state.server, scalar)
    client = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), state.clients)
    data = jax.eval_shape(
        lambda e, s: arrays.client_data(e, Rows(s, s, s, s, s), Block(s, s), arrays.capacity(task)),
        examples,
        scalar,
    )
    arguments = (values, key, state.common, message, client, data)
    train = work.count(lambda values, *args: checked(values).train(*args), *arguments)
    _check_batches(train.program)
    _, upload, metrics = train.out
    by_client = _normalises_by_batch(checked, values, state, data.inputs)

    def make(values: Any) -> FederatedAlgorithm:
        algorithm = checked(values)._replace(train=partial(train.call, values))
        return _with_global_predict(algorithm) if by_client else algorithm

    return make, Shapes(state, message, upload, sorted(metrics))


def _normalises_by_batch(
    make_algorithm: Callable[[Any], FederatedAlgorithm], values: Any, state: State, inputs: Any
) -> bool:
    """Whether all clients use the global model, and its logits for one example depend on the others."""

    def predict(values: Any, common: Any, server: Any, inputs: jax.Array) -> Any:
        algorithm = make_algorithm(values)
        if algorithm.predict is not None or algorithm.predict_global is None:
            return ()
        return algorithm.predict_global(common, server, inputs)

    inputs = jax.ShapeDtypeStruct((2, *inputs.shape[1:]), inputs.dtype)
    program = jax.make_jaxpr(predict)(values, state.common, state.server, inputs).jaxpr
    return any(flops.is_call(equation, batch_statistics) for equation in flops.equations(program))


def _with_global_predict(algorithm: FederatedAlgorithm) -> FederatedAlgorithm:
    """The algorithm, whose global model is every client's own: a batch then holds examples of one client."""
    predict = algorithm.predict_global
    assert predict is not None

    def of_client(common: Any, server: Any, client: Any, x: jax.Array) -> jax.Array:
        del client
        return predict(common, server, x)

    return algorithm._replace(predict=of_client, probes={})  # without ``predict``, probes are not evaluated


def _check_batches(program: core.Jaxpr) -> None:
    """Raises UserError for training that normalises one example by itself, which leaves nothing to learn."""
    for equation in flops.equations(program):
        if flops.is_call(equation, batch_statistics):
            inputs, statistics = (flops.shape_of(v[0]) for v in (equation.invars, equation.outvars))
            if inputs[0] == 1 and len(statistics) == 1:  # under a vmap the first axis is another
                raise UserError(
                    "norm='batch': must see two examples or more at a time, and training gives it one; "
                    "choose a larger batch_size, or norm='group'"
                )
