"""Codecs on an algorithm's messages and uploads."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.communication.codecs import Codec, identity
from fedjax_masks.core import returns, trees
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, State, Task
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.types import PyTree
from fedjax_masks.transforms.wrapping import inner_models

_UP, _DOWN = 0x77697265, 0x646F776E  # far from the small integers that algorithms fold into their keys


class CodedClient(NamedTuple):
    """The state of a client behind codecs.

    Attributes:
      inner: The algorithm's own client state.
      codec: The state of the upload's codec, such as residuals.
    """

    inner: PyTree
    codec: PyTree


def with_codecs(
    algorithm: FederatedAlgorithm, *, up: Codec | None = None, down: Codec | None = None
) -> FederatedAlgorithm:
    """Puts codecs on an algorithm's uploads and messages; nothing else of it changes.

    Args:
      algorithm: Any algorithm.
      up: The codec of uploads; its state lives with the client. None is :func:`~.codecs.identity`.
      down: The codec of messages, without a state. None is :func:`~.codecs.identity`.

    Returns:
      An algorithm whose client state is a :class:`CodedClient`.

    Raises:
      UserError: ``down`` keeps a state; raised by ``send``.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> from fedjax_masks.communication import codecs
      >>> task = fm.load_task("digits", clients=4)
      >>> plain = fm.fedavg(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1))
      >>> run = fm.simulate(with_codecs(plain, up=codecs.quantize(8)), task, rounds=1, cohort=3)
      >>> record = run.records[-1]
      >>> 3.9 < record["bytes_down"] / record["bytes_up"] < 4
      True
    """
    algorithm = returns.with_checks(algorithm)
    up, down = up or identity(), down or identity()

    def init(key: chex.PRNGKey, task: Task) -> State:
        state = algorithm.init(key, task)
        like = jax.eval_shape(lambda: _first_upload(key, task, state))
        codec = trees.replicate(up.init(like), task.num_clients)
        return state._replace(clients=CodedClient(state.clients, codec))

    def _first_upload(key: chex.PRNGKey, task: Task, state: State) -> PyTree:
        round = Round(key, jnp.int32(0))
        client, profile = (jax.tree.map(lambda rows: rows[0], part) for part in state[1:])
        message = down.unpack(send(round, state.server, profile))
        return algorithm.train(round, message, client, _no_data(task))[1]

    def send(round: Round, server: PyTree, profile: PyTree) -> PyTree:
        message = algorithm.send(round, server, profile)
        state = down.init(message)
        if jax.tree.leaves(state):
            raise UserError(
                "wire.down: must be a codec without error feedback; the server keeps no residuals"
            )
        return down.pack(jax.random.fold_in(round.key, _DOWN), message, state)[0]

    def train(
        round: Round, message: PyTree, client: CodedClient, data: ClientData
    ) -> tuple[CodedClient, PyTree, Info]:
        inner, upload, info = algorithm.train(round, down.unpack(message), client.inner, data)
        packed, codec = up.pack(jax.random.fold_in(round.key, _UP), upload, client.codec)
        return CodedClient(inner, codec), packed, info

    def receive(
        round: Round, server: PyTree, profile: PyTree, upload: PyTree, weight: jax.Array
    ) -> tuple[PyTree, PyTree]:
        return algorithm.receive(round, server, profile, up.unpack(upload), weight)

    return algorithm._replace(
        init=init, send=send, train=train, receive=receive, predict=inner_models(algorithm.predict)
    )


def _no_data(task: Task) -> ClientData:
    """Zeros in the shapes of a client's data."""
    inputs = jnp.zeros(task.inputs.shape, task.inputs.dtype)
    labels = jnp.zeros(task.labels.shape, jnp.int32)
    rows = jnp.zeros(max(1, int(np.max(task.train.sizes))), jnp.int32)
    size: PyTree = jnp.zeros((), jnp.int32)
    return ClientData(inputs, labels, rows, size, size, size)
