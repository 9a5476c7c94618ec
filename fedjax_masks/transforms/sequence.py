"""One algorithm after another: pre-training, then fine-tuning; a mask's search, then its use.

The two algorithms share clients and data and nothing else. A flag in the server's state, the same for all
clients, says which of them runs, so that a round computes and sends only what that algorithm does.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.communication.payload import AlreadyKnown, Conditional
from fedjax_masks.core import returns, trees, work
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Predict, Round, State, Task
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
      >>> task = fm.load_task("digits", clients=4)
      >>> model = fm.models.mlp(task, hidden=(16,))
      >>> start, finish = fm.fedavg(model, optax.sgd(0.1)), fm.fedavg(model, optax.adam(0.001))
      >>> algorithm = then(
      ...     start, finish, done=lambda _: jnp.array(True), handover=lambda server, _: server
      ... )
      >>> run = fm.simulate(algorithm, task, rounds=3, cohort=3)
    """
    if first.schedule != second.schedule:
        raise UserError("second.schedule: must equal first.schedule; replace one by the other")
    first, second = (
        checked._replace(train=_with_marks(checked.train), merge=_with_marks(checked.merge))
        for checked in map(returns.with_checks, (first, second))
    )

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

    def train(round: Round, message: Message, client: Both, data: ClientData) -> tuple[Both, Both, Info]:
        later = message.later.tree
        early = partial(first.train, round, message.first.tree, client.first, data)
        late = partial(second.train, round, message.second.tree, client.second, data)
        client, ((early_upload, early_info), (late_upload, late_info)) = _run_one(later, early, late, client)
        uploads = Both(Conditional(~later, early_upload), Conditional(later, late_upload))
        return client, uploads, _shared_facts(later, early_info, late_info)

    def receive(
        round: Round, server: Server, profile: Both, upload: Both, weight: jax.Array
    ) -> tuple[Both, Both]:
        early = partial(first.receive, round, server.first, profile.first, upload.first.tree, weight)
        late = partial(second.receive, round, server.second, profile.second, upload.second.tree, weight)
        profile, ((early_part,), (late_part,)) = _run_one(server.later, early, late, profile)
        return profile, Both(early_part, late_part)

    def merge(round: Round, server: Server, total: Both) -> tuple[Server, Info]:
        early = partial(first.merge, round, server.first, total.first)
        late = partial(second.merge, round, server.second, total.second)
        states, ((early_info,), (late_info,)) = _run_one(
            server.later, early, late, Both(server.first, server.second)
        )
        ends = ~server.later & done(states.first)
        start = jax.lax.cond(ends, handover, lambda _, state: state, *states)
        facts = _shared_facts(server.later, early_info, late_info)
        return Server(server.later | ends, states.first, start), facts

    names = [name for name in first.predict if name in second.predict]
    models = {name: _predict_either(first.predict[name], second.predict[name]) for name in names}
    return FederatedAlgorithm(init, send, train, receive, merge, models, first.schedule)


def _predict_either(first: Predict, second: Predict) -> Predict:
    def predict(server: Server, client: Both | None, x: jax.Array) -> jax.Array:
        halves = Both(None, None) if client is None else client
        return jax.lax.cond(
            server.later,
            lambda: second(server.second, halves.second, x),
            lambda: first(server.first, halves.first, x),
        )

    return predict


def _run_one(
    later: jax.Array,
    first: Callable[[], tuple[Any, ...]],
    second: Callable[[], tuple[Any, ...]],
    states: Both,
) -> tuple[Both, Both]:
    """Runs one of two functions, each ``() -> (state, *results)``.

    Args:
      later: ``bool[]``: whether to run the second.
      first: The first algorithm's function.
      second: The second algorithm's function.
      states: The states of the two before.

    Returns:
      The states after, of which one has changed, and the results of the two as tuples. The results of the
      function that does not run are zeros.
    """
    zeros = Both(*(trees.zeros_like(jax.eval_shape(function)[1:]) for function in (first, second)))

    def run_first() -> tuple[Both, Both]:
        state, *results = first()
        return states._replace(first=state), zeros._replace(first=tuple(results))

    def run_second() -> tuple[Both, Both]:
        state, *results = second()
        return states._replace(second=state), zeros._replace(second=tuple(results))

    return jax.lax.cond(later, run_second, run_first)


def _with_marks(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which marks the work that it states where none of its loops marks any.

    In a sequence, the engine counts the marks of the branch that is taken, and nothing else.
    """

    def run(*arguments: PyTree) -> tuple[Any, ...]:
        *results, info = function(*arguments)
        stated = info and info.work
        if stated and not work.count(function, *arguments).has_work:
            work.mark_work(jnp.zeros(()), stated)
        return *results, info

    return run


def _shared_facts(later: jax.Array, first: Info | None, second: Info | None) -> Info:
    """The facts of the algorithm that runs, restricted to those that both report."""
    early, late = first or Info(), second or Info()
    loss = None
    if early.loss is not None and late.loss is not None:
        loss = jnp.where(later, late.loss, early.loss)
    names = early.extra.keys() & late.extra.keys()
    return Info(loss, extra={name: jnp.where(later, late.extra[name], early.extra[name]) for name in names})
