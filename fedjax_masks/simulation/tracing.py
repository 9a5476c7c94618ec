"""Traces of one client's round, without running anything: shapes, work, and checks."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from fedjax_masks.communication import size
from fedjax_masks.core import flops, returns, trees, work
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, PyTree, Round, State, Task, Work
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.info import metrics_of
from fedjax_masks.ops.norm import batch_statistics
from fedjax_masks.simulation import arrays
from fedjax_masks.simulation.lanes import Lanes
from fedjax_masks.simulation.mapping import Block

Options = Mapping[str, Any]
"""Values of numeric options, which may be traced scalars, or their shapes."""

MakeAlgorithm = Callable[[Options], FederatedAlgorithm]
"""``(options) -> algorithm``."""


class Shapes(NamedTuple):
    """The shapes of a simulation's state and of one client's messages.

    Attributes:
      state: The simulation's state, with the states of all clients.
      message: The server's message to one client.
      upload: One client's upload.
      metrics: The names of a client's metrics, sorted.
      server_trains: Whether the server trains while it receives an upload.
    """

    state: State
    message: PyTree
    upload: PyTree
    metrics: list[str]
    server_trains: bool


def trace_client(
    make_algorithm: MakeAlgorithm,
    options: Options,
    task: Task,
    key: chex.PRNGKey,
    examples: arrays.Examples,
    equal_size: np.int32 | None = None,
) -> tuple[MakeAlgorithm, Shapes]:
    """Traces one client's round, for all values of some options at once.

    Args:
      make_algorithm: ``(options) -> FederatedAlgorithm``.
      options: Values or shapes of options; empty without options.
      task: Data and clients.
      key: A key of the simulation's type.
      examples: The training data, or their shapes.
      equal_size: The number of examples of every client, as a constant of the program; None where numbers
        differ.

    Returns:
      ``make_algorithm``, and the shapes. The new ``make_algorithm`` does not trace training again. The facts
      of its algorithms include the work of all loops. Where the global model normalizes by the current batch,
      its algorithms have the model ``"personal"``, so that a batch holds examples of one client.

    Raises:
      UserError: A function returns too little or too much, or training normalizes by one example.
    """

    def make_checked(options: Options) -> FederatedAlgorithm:
        return returns.with_checks(make_algorithm(options), task.num_clients)

    round = Round(key, jax.ShapeDtypeStruct((), jnp.int32))  # pyright: ignore[reportArgumentType]
    state = jax.eval_shape(lambda options, key: make_checked(options).init(key, task), options, key)
    client, profile = (
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), states)
        for states in (state.clients, state.profiles)
    )
    message = jax.eval_shape(
        lambda options, *args: make_checked(options).send(*args), options, round, state.server, profile
    )
    data = _data_shapes(task, examples)
    # Training is traced once: the program serves shapes, checks, the count of work, and all later calls.
    train = work.count(
        lambda options, round, message, client, data: make_checked(options).train(
            round, message, client, _with_size(data, equal_size)
        ),
        *(options, round, message, client, data),
    )
    _check_batches(train.program)
    _, upload, info = train.result
    weight = jax.ShapeDtypeStruct((), jnp.float32)
    receive = work.count(
        lambda options, *args: make_checked(options).receive(*args),
        *(options, round, state.server, profile, upload, weight),
    )
    by_client = _normalizes_by_batch(make_checked, options, state, data.inputs)

    def make(options: Options) -> FederatedAlgorithm:
        algorithm = _with_work(make_checked(options), options, train, receive)
        return _with_global_predict(algorithm) if by_client else algorithm

    metrics = metrics_of(info._replace(work=work.no_work()) if train.has_work else info)
    dialogue = () if size.total_dialogue(upload) is None else ("messages", "server_flops")
    return make, Shapes(state, message, upload, sorted((*metrics, *dialogue)), receive.has_work)


def _data_shapes(task: Task, examples: arrays.Examples) -> ClientData:
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    return jax.eval_shape(
        lambda examples, s: arrays.client_data(
            examples, Lanes(s, s, s, s, s), Block(s, s), arrays.capacity(task)
        ),
        examples,
        scalar,
    )


def _with_size(data: ClientData, equal_size: np.int32 | None) -> ClientData:
    """The data with a constant number of examples, if there is one."""
    if equal_size is None:
        return data
    size: Any = equal_size
    return data._replace(size=size, longest=size)


def _with_work(
    algorithm: FederatedAlgorithm, options: Options, train: work.WorkCount, receive: work.WorkCount
) -> FederatedAlgorithm:
    """The algorithm, with the work of all its loops in its facts; the server's work includes ``receive``."""

    def train_with_work(*args: PyTree) -> tuple[PyTree, PyTree, Info]:
        (client, upload, info), client_work = train.call(options, *args)
        return client, upload, info._replace(work=client_work)

    def receive_with_work(*args: PyTree) -> tuple[PyTree, tuple[PyTree, Work]]:
        (profile, contribution), server_work = receive.call(options, *args)
        return profile, (contribution, server_work)

    plain_merge = algorithm.merge  # the name algorithm is bound to other algorithms below

    def merge_with_work(round: Round, server: PyTree, total: PyTree) -> tuple[PyTree, Info | None]:
        contribution, receive_work = total if receive.has_work else (total, work.no_work())
        merge = work.count(plain_merge, round, server, contribution)
        (server, info), merge_work = merge.call(round, server, contribution)
        if receive.has_work or merge.has_work:
            info = (info or Info())._replace(work=trees.add(receive_work, merge_work))
        return server, info

    if train.has_work:
        algorithm = algorithm._replace(train=train_with_work)
    else:
        algorithm = algorithm._replace(train=lambda *args: train.call(options, *args)[0])
    algorithm = algorithm._replace(merge=merge_with_work)
    return algorithm._replace(receive=receive_with_work) if receive.has_work else algorithm


def _normalizes_by_batch(
    make_algorithm: MakeAlgorithm, options: Options, state: State, inputs: jax.Array
) -> bool:
    """Whether clients use the global model, and its logits for an example depend on the batch."""

    def predict(options: Options, server: PyTree, inputs: jax.Array) -> PyTree:
        models = make_algorithm(options).predict
        return () if "personal" in models else models["global"](server, None, inputs)

    batch = jax.ShapeDtypeStruct((2, *inputs.shape[1:]), inputs.dtype)
    program = jax.make_jaxpr(predict)(options, state.server, batch).jaxpr
    return any(flops.is_call(equation, batch_statistics) for equation in flops.equations(program))


def _with_global_predict(algorithm: FederatedAlgorithm) -> FederatedAlgorithm:
    """The algorithm, with the global model as every client's own model."""
    predict = algorithm.predict["global"]

    def predict_personal(server: PyTree, client: PyTree, x: jax.Array) -> jax.Array:
        del client
        return predict(server, None, x)

    return algorithm._replace(predict={"global": predict, "personal": predict_personal})


def _check_batches(program: core.Jaxpr) -> None:
    """Checks that training does not normalize one example by itself, which would make all examples equal.

    Raises:
      UserError: It does.
    """
    for equation in flops.equations(program):
        if flops.is_call(equation, batch_statistics):
            inputs, statistics = (flops.shape_of(v[0]) for v in (equation.invars, equation.outvars))
            if inputs[0] == 1 and len(statistics) == 1:  # under a vmap, the first axis is the mapped one
                raise UserError(
                    "norm='batch': must see two examples or more at a time, and training gives it one; "
                    "choose a larger batch_size, or norm='group'"
                )
