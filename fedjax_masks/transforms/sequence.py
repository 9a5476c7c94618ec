"""One algorithm after another: pre-training, then fine-tuning; a mask's search, then its use.

The two share clients and data and nothing else. Which one runs is a scalar of the server's state,
the same for all clients, so that a round computes and sends what its own algorithm does.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.communication.payload import Known, When
from fedjax_masks.core import returns, trees, work
from fedjax_masks.core.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, PyTree, State, Task


class Both(NamedTuple):
    """What belongs to the first algorithm, and what to the second."""

    first: Any
    second: Any


class Server(NamedTuple):
    """The server's state.

    Attributes:
      later: ``bool[]``: whether the second algorithm has taken over.
      first: The first algorithm's state; it stays as it ended.
      second: The second's; until then as it is initialised.
    """

    later: jax.Array
    first: PyTree
    second: PyTree


class Message(NamedTuple):
    """What the server sends.

    Attributes:
      later: Which algorithm's round this is. Known: the algorithm's own messages tell them apart.
      first: The first algorithm's message, in its rounds.
      second: The second's, in its own.
    """

    later: Known
    first: When
    second: When


def then(
    first: FederatedAlgorithm,
    second: FederatedAlgorithm,
    *,
    done: Callable[[PyTree], jax.Array],
    handover: Callable[[PyTree, PyTree, PyTree], PyTree],
) -> FederatedAlgorithm:
    """Runs one algorithm until it is done, and from the next round on another.

    Args:
      first: Runs from round 0 on.
      second: Takes over.
      done: ``(first_server) -> bool[]``: asked after each of the first algorithm's rounds.
      handover: ``(first_common, first_server, second_server) -> second_server``: what the second
        algorithm's server starts from, given its initial state.

    Returns:
      The algorithm. Clients hold a state of each. It has a model, personal or global, where both
      have one, and reports the metrics that both report.

    Raises:
      ValueError: The two do not go together: in one alone uploads are reduced, one serves, or they differ
        in tiers or selection.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10)
      >>> model = fm.models.mlp(task, hidden=(16,))
      >>> start, finish = fm.fedavg(model, optax.sgd(0.1)), fm.fedavg(model, optax.adam(0.001))
      >>> algorithm = then(
      ...     start, finish, done=lambda _: jnp.array(True), handover=lambda common, server, _: server
      ... )
      >>> run = fm.simulate(algorithm, task, rounds=3, cohort=3)
    """
    if (first.reduce is None) != (second.reduce is None):
        raise ValueError("then: one of the algorithms reduces uploads; accepted is both, or neither")
    if (first.tiers, first.select) != (second.tiers, second.select):
        raise ValueError("then: the algorithms differ in tiers or selection; accepted are equal ones")
    if first.serve or second.serve:
        raise ValueError("then: one of the algorithms serves clients; accepted is one that only merges")

    first, second = returns.checked(first), returns.checked(second)

    def init(key: chex.PRNGKey, task: Task) -> State:
        early_key, late_key = jax.random.split(key)
        early, late = first.init(early_key, task), second.init(late_key, task)
        server = Server(jnp.asarray(False), early.server, late.server)
        return State(Both(early.common, late.common), server, Both(early.clients, late.clients))

    def send(server: Server, client_id: jax.Array) -> Message:
        return Message(
            Known(server.later),
            When(~server.later, first.send(server.first, client_id)),
            When(server.later, second.send(server.second, client_id)),
        )

    def train(
        key: chex.PRNGKey, common: Both, message: Message, client: Both, data: ClientData
    ) -> tuple[Both, Both, Metrics]:
        later = message.later.tree
        early_args = (key, common.first, message.first.tree, client.first, data)
        late_args = (key, common.second, message.second.tree, client.second, data)
        early, late = work.count(first.train, *early_args), work.count(second.train, *late_args)
        reported = early.out[2].keys() & late.out[2].keys()

        def run_first() -> tuple[Both, Both, Metrics]:
            mine, upload, metrics = early.call(*early_args)
            uploads = Both(upload, trees.zeros_like(late.out[1]))
            return client._replace(first=mine), uploads, {name: metrics[name] for name in reported}

        def run_second() -> tuple[Both, Both, Metrics]:
            mine, upload, metrics = late.call(*late_args)
            uploads = Both(trees.zeros_like(early.out[1]), upload)
            return client._replace(second=mine), uploads, {name: metrics[name] for name in reported}

        client, uploads, metrics = jax.lax.cond(later, run_second, run_first)
        return client, Both(When(~later, uploads.first), When(later, uploads.second)), metrics

    def reduce(upload: Both, weight: jax.Array) -> Both:
        early, late = first.reduce, second.reduce
        assert early is not None
        assert late is not None
        return Both(early(upload.first.tree, weight), late(upload.second.tree, weight))

    def merge(key: chex.PRNGKey, common: Both, server: Server, uploads: Both, cohort: Cohort) -> Server:
        if first.reduce is None:
            uploads = Both(uploads.first.tree, uploads.second.tree)

        def merge_first() -> Server:
            early = first.merge(key, common.first, server.first, uploads.first, cohort)
            over = done(early)
            late = trees.where(over, handover(common.first, early, server.second), server.second)
            return Server(over, early, late)

        def merge_second() -> Server:
            late = second.merge(key, common.second, server.second, uploads.second, cohort)
            return server._replace(second=late)

        return jax.lax.cond(server.later, merge_second, merge_first)

    def predict(common: Both, server: Server, client: Both, x: jax.Array) -> jax.Array:
        early, late = first.predict, second.predict
        assert early is not None
        assert late is not None
        return jax.lax.cond(
            server.later,
            lambda: late(common.second, server.second, client.second, x),
            lambda: early(common.first, server.first, client.first, x),
        )

    def predict_global(common: Both, server: Server, x: jax.Array) -> jax.Array:
        early, late = first.predict_global, second.predict_global
        assert early is not None
        assert late is not None
        return jax.lax.cond(
            server.later,
            lambda: late(common.second, server.second, x),
            lambda: early(common.first, server.first, x),
        )

    return FederatedAlgorithm(
        init,
        send,
        train,
        merge,
        reduce=first.reduce and reduce,
        predict=first.predict and second.predict and predict,
        predict_global=first.predict_global and second.predict_global and predict_global,
        tiers=first.tiers,
        select=first.select,
    )
