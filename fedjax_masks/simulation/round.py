"""One round of federated learning, and a chunk of rounds, as traced programs."""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.communication import size, visitor
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import FederatedAlgorithm, Round, Stack, State
from fedjax_masks.core.info import metrics_of
from fedjax_masks.costs.clock import Clock, read_clock
from fedjax_masks.simulation.arrays import Examples, client_data
from fedjax_masks.simulation.mapping import (
    Block,
    OfClients,
    Rows,
    map_clients,
    of_clients,
    with_clients,
)
from fedjax_masks.simulation.packing import Packing
from fedjax_masks.simulation.plan import Plan


class ClientReport(NamedTuple):
    """What one client of a round leaves behind, besides its state.

    Two arrays and no more, because every array of a report costs compile time.

    Attributes:
      bits: uint32[2]: the parts of the upload's and of the message's bits that depend on data.
      values: float32[2 + number of metrics]: 1 if the client was dropped: its update was not finite,
        came too late, or never came; 1 if it trained: it had examples and its new state was kept; then
        its metrics, by name in alphabetical order.
    """

    bits: jax.Array
    values: jax.Array


class RoundReport(NamedTuple):
    """What is known of a round once it is over.

    Attributes:
      clients: One report per row.
      server: The server's own metrics, ``float32[]`` each.
    """

    clients: ClientReport
    server: dict[str, jax.Array]


_SERVER = 2**32 - 1
"""Stands for the server where clients are told apart by their ids, and where a client's keys are."""


def simulation_keys(seed: Any) -> tuple[chex.PRNGKey, chex.PRNGKey]:
    """The keys of the initial state, and of all rounds."""
    init_key, rounds_key = jax.random.split(jax.random.key(seed))
    return init_key, rounds_key


def round_key(key: chex.PRNGKey, index: jax.Array | int) -> chex.PRNGKey:
    """The key of round ``index`` of the simulation with root key ``key``."""
    return jax.random.fold_in(key, index)


def client_key(key: chex.PRNGKey, client_id: jax.Array | int) -> chex.PRNGKey:
    """A client's key in the round with key ``key``; it does not depend on the client's place."""
    return jax.random.fold_in(key, client_id)


class Setting(NamedTuple):
    """The static choices of a simulation that its programs close over."""

    algorithm: FederatedAlgorithm
    plan: Plan
    capacity: int
    poison: bool = False
    clock: Clock | None = None
    packing: Packing | None = None
    server_trains: bool = False


def _client_step(setting: Setting, shared: Any, row: Rows, block: Block, own: OfClients) -> Any:
    """Message, training, upload and reception of one client; see :func:`map_clients`."""
    algorithm = setting.algorithm
    as_received = visitor.poison if setting.poison else lambda tree: tree
    round, server, examples, fleet = shared

    state, profile = own if setting.packing is None else setting.packing.unpack(own.clients)
    round = round._replace(key=client_key(round.key, row.ids))
    message = algorithm.send(round, server, profile)
    data = client_data(examples, row, block, setting.capacity)
    new_state, upload, info = algorithm.train(round, as_received(message), state, data)

    bits = jnp.stack([size.traced_bits(upload), size.traced_bits(message)])
    metrics, talk = metrics_of(info), size.total_dialogue(upload)
    if talk is not None:
        metrics |= {"messages": talk.messages, "server_flops": talk.flops}
    late = gone = jnp.asarray(False)
    if setting.clock is not None:
        readings = read_clock(setting.clock, fleet, row.ids, round.key, bits, talk, metrics)
        late, gone, metrics = readings["late"], readings["lost"] | readings["away"], {**metrics, **readings}
    if talk is not None:
        bits += jnp.where(gone, 0, jnp.stack([talk.up, talk.down]))
    values = [jnp.asarray(metrics[name], jnp.float32) for name in sorted(metrics)]
    metrics = jnp.stack(values) if values else jnp.zeros(0, jnp.float32)
    finite = trees.all_finite((upload, metrics))
    arrives = finite & ~late & ~gone
    weight = jnp.where(arrives, row.sizes, 0).astype(jnp.float32)
    profile, contribution, sound = _receive(setting, round, server, profile, as_received(upload), weight)
    arrives &= sound
    sane = finite & ~gone
    own = OfClients(trees.where(sane, new_state, state), profile)
    own = own if setting.packing is None else OfClients(setting.packing.pack(own), ())
    fate = jnp.stack([~arrives, sane & (row.sizes > 0)])
    report = ClientReport(bits, jnp.concatenate([fate.astype(jnp.float32), metrics]))
    total = jax.tree.map(lambda node: Stack(()) if _is_stack(node) else node, contribution, is_leaf=_is_stack)
    # A weight of 0 does not silence a NaN: what did not arrive must not be there at all.
    counts = sound & (weight > 0)
    contribution = trees.where(counts, contribution, trees.zeros_like(contribution))
    stacked = jax.tree.map(lambda node: node if _is_stack(node) else (), contribution, is_leaf=_is_stack)
    return (counts, total), (own, report, stacked)


def _is_stack(node: Any) -> bool:
    return isinstance(node, Stack)


def _receive(
    setting: Setting, round: Round, server: Any, profile: Any, upload: Any, weight: jax.Array
) -> tuple[Any, Any, jax.Array]:
    """The server's reception of one upload.

    Returns:
      The client's profile; the contribution, which counts only if the upload arrived; and whether the
      contribution is finite, where the server trains to make it.
    """
    receive, arrived = setting.algorithm.receive, weight > 0
    arguments = (round, server, profile, upload, weight)
    if not setting.server_trains:
        new, contribution = receive(*arguments)
        return trees.where(arrived, new, profile), contribution, jnp.asarray(True)
    _, shapes = jax.eval_shape(receive, *arguments)
    nothing = trees.zeros_like(shapes)
    profile, contribution = jax.lax.cond(arrived, lambda: receive(*arguments), lambda: (profile, nothing))
    return profile, contribution, trees.all_finite(contribution)


def round_step(
    setting: Setting, state: State, examples: Examples, rows: Rows, round: Round, fleet: Any = ()
) -> tuple[State, RoundReport]:
    """One round.

    Args:
      setting: Static choices.
      state: The simulation's state.
      examples: The training data.
      rows: The cohort, distinct clients laid out under the plan.
      round: The round, with the key that those of all its clients derive from.
      fleet: What the setting's clock runs by.

    Returns:
      The new state, and the round's report.
    """
    own = of_clients(state)
    before = jax.tree.map(lambda a: a.at[rows.at].get(mode="clip"), own)

    def function(*args: Any) -> Any:
        return _client_step(setting, *args)

    shared = (round, state.server, examples, fleet)
    total, (after, report, stacked) = map_clients(function, shared, rows, before, setting.plan)
    total = jax.tree.map(lambda a, b: b if _is_stack(a) else a, total, stacked, is_leaf=_is_stack)
    arrived = (report.values[:, 0] == 0) & (rows.sizes > 0)
    server_round = round._replace(key=client_key(round.key, _SERVER))
    server, info = setting.algorithm.merge(server_round, state.server, total)
    server = _or_kept(jnp.any(arrived), server, state.server)
    own = jax.tree.map(lambda a, rows_of_a: a.at[rows.at].set(rows_of_a, mode="drop"), own, after)
    metrics = {} if info is None else metrics_of(info)
    metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
    return with_clients(state._replace(server=server), own), RoundReport(report, metrics)


def _or_kept(condition: jax.Array, new: Any, old: Any) -> Any:
    """Where nobody's upload arrived, nothing moves the server; parts that never change are not selected."""
    return jax.tree.map(lambda a, b: b if a is b else jnp.where(condition, a, b), new, old)


def run_chunk(
    setting: Setting,
    state: State,
    examples: Examples,
    key: chex.PRNGKey,
    first: jax.Array,
    num_rounds: jax.Array,
    cohorts: Rows,
    fleet: Any = (),
) -> tuple[State, RoundReport]:
    """Runs ``num_rounds`` rounds from round ``first`` on.

    The number of rounds is traced, so that one program serves every number.

    Args:
      setting: Static choices.
      state: The simulation's state.
      examples: The training data.
      key: The simulation's key.
      first: ``int32[]``: the number of the first round.
      num_rounds: ``int32[]``: at most ``chunk``.
      cohorts: ``int32[chunk, rows]`` each: the rounds' cohorts.
      fleet: What the setting's clock runs by.

    Returns:
      The state, and reports ``[chunk, ...]`` of which the first ``num_rounds`` hold.
    """
    (chunk, _) = cohorts.ids.shape

    @jax.jit  # traced once, for the shapes as for the loop
    def one_round(state: State, step: jax.Array) -> tuple[State, RoundReport]:
        rows = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, step, keepdims=False), cohorts)
        index = first + step
        return round_step(setting, state, examples, rows, Round(round_key(key, index), index), fleet)

    _, report = jax.eval_shape(one_round, state, first)
    shape = jax.tree.map(lambda a: jax.ShapeDtypeStruct((chunk, *a.shape), a.dtype), report)

    def body(step: jax.Array, carry: Any) -> Any:
        state, history = carry
        state, news = one_round(state, step)
        put = partial(jax.lax.dynamic_update_index_in_dim, index=step, axis=0)
        return state, jax.tree.map(put, history, news)

    return jax.lax.fori_loop(0, num_rounds, body, (state, trees.zeros_like(shape)))
