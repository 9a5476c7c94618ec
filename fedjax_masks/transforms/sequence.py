"""One algorithm after another: pre-training, then fine-tuning; a mask's search, then its use.

The two algorithms share clients and data and nothing else. A flag in the server's state, the same for all
clients, says which of them runs, so that a round computes and sends only what that algorithm does.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.communication.payload import AlreadyKnown, Conditional
from fedjax_masks.core import returns, trees, work
from fedjax_masks.core.algorithm import (
    ClientData,
    FederatedAlgorithm,
    Info,
    Merge,
    Predict,
    Receive,
    Round,
    State,
    Task,
    Train,
)
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.types import PyTree


class Both(NamedTuple):
    """The first algorithm's part, and the second's."""

    first: PyTree
    second: PyTree


class Server(NamedTuple):
    """The server's state.

    Attributes:
      later: ``bool[]``: whether the second algorithm has taken over.
      first: The first algorithm's state; it stays as it ended.
      second: The second's; its initial state until it takes over.
    """

    later: jax.Array
    first: PyTree
    second: PyTree


class Message(NamedTuple):
    """The server's message.

    Attributes:
      later: Whether this is a round of the second algorithm. Known: messages of the two tell them apart.
      first: The first algorithm's message, in its rounds.
      second: The second's, in its own.
    """

    later: AlreadyKnown
    first: Conditional
    second: Conditional


def then(
    first: FederatedAlgorithm,
    second: FederatedAlgorithm,
    *,
    done: Callable[[PyTree], jax.Array],
    handover: Callable[[PyTree, PyTree], PyTree],
) -> FederatedAlgorithm:
    """Runs one algorithm until it is done, and from the next round on another.

    Both see the number of the round in the whole simulation.

    Args:
      first: The algorithm that runs from round 0 on.
      second: The algorithm that takes over.
      done: ``(first_server) -> bool[]``: evaluated after each of the first algorithm's rounds.
      handover: ``(first_server, second_server) -> second_server``: makes the state that the second
        algorithm's server starts from, given its initial one.

    Returns:
      The algorithm. Clients and profiles hold a part of each. It has the models, and reports the metrics,
      that both have.

    Raises:
      UserError: The schedules of the two differ.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10)
      >>> model = fm.models.mlp(task, hidden=(16,))
      >>> start, finish = fm.fedavg(model, optax.sgd(0.1)), fm.fedavg(model, optax.adam(0.001))
      >>> algorithm = then(
      ...     start, finish, done=lambda _: jnp.array(True), handover=lambda server, _: server
      ... )
      >>> run = fm.simulate(algorithm, task, rounds=3, cohort=3)
    """
    if first.schedule != second.schedule:
        raise UserError("second.schedule: must equal first.schedule; replace one by the other")
    first, second = returns.with_checks(first), returns.with_checks(second)

    def init(key: chex.PRNGKey, task: Task) -> State:
        early_key, late_key = jax.random.split(key)
        early, late = first.init(early_key, task), second.init(late_key, task)
        return State(
            Server(jnp.asarray(False), early.server, late.server),
            Both(early.clients, late.clients),
            Both(early.profiles, late.profiles),
        )

    def send(round: Round, server: Server, profile: Both) -> Message:
        return Message(
            AlreadyKnown(server.later),
            Conditional(~server.later, first.send(round, server.first, profile.first)),
            Conditional(server.later, second.send(round, server.second, profile.second)),
        )

    models = {
        name: _predict_either(first.predict[name], second.predict[name])
        for name in first.predict
        if name in second.predict
    }
    train, receive = _train_either(first.train, second.train), _receive_either(first.receive, second.receive)
    merge = _merge_either(first.merge, second.merge, done, handover)
    return FederatedAlgorithm(init, send, train, receive, merge, models, first.schedule)


def _train_either(first: Train, second: Train) -> Train:
    def train(round: Round, message: Message, client: Both, data: ClientData) -> tuple[Both, Both, Info]:
        later = message.later.tree
        early = _call(first, round, message.first.tree, client.first, data)
        late = _call(second, round, message.second.tree, client.second, data)
        run_first, run_second = _aligned(early, late)
        nothing = Both(trees.zeros_like(early.out[1]), trees.zeros_like(late.out[1]))

        def train_first() -> tuple[Both, Both, Info]:
            state, upload, info = run_first()
            return client._replace(first=state), nothing._replace(first=upload), info

        def train_second() -> tuple[Both, Both, Info]:
            state, upload, info = run_second()
            return client._replace(second=state), nothing._replace(second=upload), info

        client, uploads, info = jax.lax.cond(later, train_second, train_first)
        return client, Both(Conditional(~later, uploads.first), Conditional(later, uploads.second)), info

    return train


def _receive_either(first: Receive, second: Receive) -> Receive:
    def receive(
        round: Round, server: Server, profile: Both, upload: Both, weight: jax.Array
    ) -> tuple[Both, Both]:
        early = (round, server.first, profile.first, upload.first.tree, weight)
        late = (round, server.second, profile.second, upload.second.tree, weight)
        shapes = jax.eval_shape(first, *early)[1], jax.eval_shape(second, *late)[1]
        nothing = Both(*map(trees.zeros_like, shapes))

        def receive_first() -> tuple[Both, Both]:
            row, contribution = first(*early)
            return profile._replace(first=row), nothing._replace(first=contribution)

        def receive_second() -> tuple[Both, Both]:
            row, contribution = second(*late)
            return profile._replace(second=row), nothing._replace(second=contribution)

        return jax.lax.cond(server.later, receive_second, receive_first)

    return receive


def _merge_either(
    first: Merge,
    second: Merge,
    done: Callable[[PyTree], jax.Array],
    handover: Callable[[PyTree, PyTree], PyTree],
) -> Merge:
    def merge(round: Round, server: Server, total: Both) -> tuple[Server, Info]:
        run_first, run_second = _aligned(
            _call(first, round, server.first, total.first),
            _call(second, round, server.second, total.second),
        )

        def merge_first() -> tuple[Server, Info]:
            state, info = run_first()
            later = jnp.asarray(done(state))
            start = trees.where(later, handover(state, server.second), server.second)
            return Server(later, state, start), info

        def merge_second() -> tuple[Server, Info]:
            state, info = run_second()
            return server._replace(second=state), info

        return jax.lax.cond(server.later, merge_second, merge_first)

    return merge


def _predict_either(first: Predict, second: Predict) -> Predict:
    def predict(server: Server, client: Both | None, x: jax.Array) -> jax.Array:
        halves = Both(None, None) if client is None else client
        return jax.lax.cond(
            server.later,
            lambda: second(server.second, halves.second, x),
            lambda: first(server.first, halves.first, x),
        )

    return predict


class _Call(NamedTuple):
    """A function with its arguments, whose last result is facts.

    Attributes:
      run: ``() -> results``; the facts include the work of all training inside.
      out: The shapes of the results.
    """

    run: Callable[[], Any]
    out: PyTree


def _call(function: Callable[..., Any], *arguments: PyTree) -> _Call:
    """A call of a function that may return None for no facts."""
    counted = work.count(function, *arguments)

    def run() -> PyTree:
        (*results, info), total = counted.call(*arguments)
        info = info or Info()
        return *results, info._replace(work=total) if counted.has_work else info

    return _Call(run, jax.eval_shape(run))


def _aligned(*calls: _Call) -> list[Callable[[], Any]]:
    """The calls, whose facts are restricted to those that all report; unreported work is 0."""
    infos = [call.out[-1] for call in calls]
    loss = all(info.loss is not None for info in infos)
    spends = any(info.work is not None for info in infos)
    names = set.intersection(*(set(info.extra) for info in infos))

    def align(call: _Call) -> Callable[[], PyTree]:
        def run() -> PyTree:
            *results, info = call.run()
            spent = (info.work or work.no_work()) if spends else None
            facts = Info(info.loss if loss else None, spent, {name: info.extra[name] for name in names})
            # Both branches must give one dtype, and records are float32 anyhow.
            return *results, jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), facts)

        return run

    return [align(call) for call in calls]
