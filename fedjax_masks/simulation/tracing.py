"""What one client handles in a round, found by tracing and without running anything."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.extend import core

from fedjax_masks.communication import size
from fedjax_masks.core import flops, returns, trees, work
from fedjax_masks.core.algorithm import FederatedAlgorithm, Info, Round, State, Task
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.info import metrics_of
from fedjax_masks.ops.norm import batch_statistics
from fedjax_masks.simulation import arrays
from fedjax_masks.simulation.mapping import Block, Rows


class Shapes(NamedTuple):
    """Shapes of everything that one client handles.

    Attributes:
      state: The simulation's, with the states of all clients.
      message: The server's message to one client.
      upload: One client's upload.
      metrics: The names of its metrics, sorted.
      server_trains: Whether the server trains while it receives.
    """

    state: State
    message: Any
    upload: Any
    metrics: list[str]
    server_trains: bool


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
      ``make_algorithm``, in whose algorithms training is not traced again, whose facts tell all work that
      was done, and which have ``"personal"`` where the global model normalises by the minibatch at hand; and
      the shapes.

    Raises:
      UserError: A function returns too little or too much, or training normalises by one example.
    """

    def checked(values: Any) -> FederatedAlgorithm:
        return returns.with_checks(make_algorithm(values), task.num_clients)

    scalar: Any = jax.ShapeDtypeStruct((), jnp.int32)
    round = Round(key, scalar)
    state = jax.eval_shape(lambda values, key: checked(values).init(key, task), values, key)
    client, profile = (
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), rows)
        for rows in (state.clients, state.profiles)
    )
    message = jax.eval_shape(
        lambda values, *args: checked(values).send(*args), values, round, state.server, profile
    )
    data = jax.eval_shape(
        lambda e, s: arrays.client_data(e, Rows(s, s, s, s, s), Block(s, s), arrays.capacity(task)),
        examples,
        scalar,
    )
    train = work.count(
        lambda values, *args: checked(values).train(*args), values, round, message, client, data
    )
    _check_batches(train.program)
    _, upload, info = train.result
    weight = jax.ShapeDtypeStruct((), jnp.float32)
    receive = work.count(
        lambda values, *args: checked(values).receive(*args),
        *(values, round, state.server, profile, upload, weight),
    )
    by_client = _normalises_by_batch(checked, values, state, data.inputs)

    def make(values: Any) -> FederatedAlgorithm:
        algorithm = _with_work(checked(values), values, train, receive)
        return _with_global_predict(algorithm) if by_client else algorithm

    metrics = metrics_of(info._replace(work=work.no_work()) if train.has_work else info)
    talk = () if size.total_dialogue(upload) is None else ("messages", "server_flops")
    return make, Shapes(state, message, upload, sorted((*metrics, *talk)), receive.has_work)


def _with_work(
    algorithm: FederatedAlgorithm,
    values: Any,
    train: work.WorkCount,
    receive: work.WorkCount,
) -> FederatedAlgorithm:
    """The algorithm, with the work of all its loops in its facts: the server's includes ``receive``."""

    def train_counted(*args: Any) -> Any:
        (client, upload, info), done = train.call(values, *args)
        return client, upload, info._replace(work=done)

    def receive_counted(*args: Any) -> Any:
        (profile, contribution), done = receive.call(values, *args)
        return profile, (contribution, done)

    plain_merge = algorithm.merge

    def merge_counted(round: Round, server: Any, total: Any) -> Any:
        contribution, received = total if receive.has_work else (total, work.no_work())
        merge = work.count(plain_merge, round, server, contribution)
        (server, info), done = merge.call(round, server, contribution)
        if receive.has_work or merge.has_work:
            info = (info or Info())._replace(work=trees.add(received, done))
        return server, info

    if train.has_work:
        algorithm = algorithm._replace(train=train_counted)
    else:
        algorithm = algorithm._replace(train=lambda *args: train.call(values, *args)[0])
    algorithm = algorithm._replace(merge=merge_counted)
    return algorithm._replace(receive=receive_counted) if receive.has_work else algorithm


def _normalises_by_batch(
    make_algorithm: Callable[[Any], FederatedAlgorithm], values: Any, state: State, inputs: Any
) -> bool:
    """Whether all clients use the global model, and its logits for one example depend on the others."""

    def predict(values: Any, server: Any, inputs: jax.Array) -> Any:
        models = make_algorithm(values).predict
        return () if "personal" in models else models["global"](server, None, inputs)

    inputs = jax.ShapeDtypeStruct((2, *inputs.shape[1:]), inputs.dtype)
    program = jax.make_jaxpr(predict)(values, state.server, inputs).jaxpr
    return any(flops.is_call(equation, batch_statistics) for equation in flops.equations(program))


def _with_global_predict(algorithm: FederatedAlgorithm) -> FederatedAlgorithm:
    """The algorithm, whose global model is every client's own: a batch then holds examples of one client."""
    predict = algorithm.predict["global"]

    def of_client(server: Any, client: Any, x: jax.Array) -> jax.Array:
        del client
        return predict(server, None, x)

    return algorithm._replace(predict={"global": predict, "personal": of_client})


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
