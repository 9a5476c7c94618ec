"""One round of federated learning, and a chunk of rounds, as traced programs."""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.communication import payload
from fedjax_masks.core import flops, trees
from fedjax_masks.core.algorithm import Cohort, FederatedAlgorithm, State
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


def _client_step(setting: Setting, shared: Any, row: Rows, block: Block, own: OfClients) -> Any:
    """Message, training and upload of one client, and what the server does; see :func:`map_clients`."""
    algorithm = setting.algorithm
    as_received = payload.poison if setting.poison else lambda tree: tree
    key, common, server, examples, fleet = shared

    state, kept = own if setting.packing is None else setting.packing.unpack(own.clients)
    message = algorithm.send(server, row.ids)
    data = client_data(examples, row, block, setting.capacity)
    key = client_key(key, row.ids)
    new_state, upload, metrics = algorithm.train(key, common, as_received(message), state, data)

    bits = jnp.stack([payload.traced_bits(upload), payload.traced_bits(message)])
    passed = jnp.stack(payload.passed_bits(upload))
    late = gone = jnp.asarray(False)
    if setting.clock is not None:
        readings = read_clock(setting.clock, fleet, row.ids, key, bits, passed, metrics)
        late, gone, metrics = readings["late"], readings["lost"] | readings["away"], {**metrics, **readings}
    bits += jnp.where(gone, 0, passed)
    told = [jnp.asarray(metrics[name], jnp.float32) for name in sorted(metrics)]
    metrics = jnp.stack(told) if told else jnp.zeros(0, jnp.float32)
    finite = trees.all_finite((upload, metrics))
    arrives = finite & ~late & ~gone
    # A weight of 0 does not silence a NaN: what is left out must not be there at all.
    upload = as_received(trees.where(arrives, upload, trees.zeros_like(upload)))
    if algorithm.serve is not None:
        wanted, key = arrives & (row.sizes > 0), client_key(key, _SERVER)
        kept, upload, sound = _serve(algorithm, key, common, server, kept, upload, wanted)
        arrives &= sound
    weight = jnp.where(arrives, row.sizes, 0).astype(jnp.float32)
    sane = finite & ~gone
    own = OfClients(trees.where(sane, new_state, state), kept)
    own = own if setting.packing is None else OfClients(setting.packing.pack(own), ())
    fate = jnp.stack([~arrives, sane & (row.sizes > 0)])
    report = ClientReport(bits, jnp.concatenate([fate.astype(jnp.float32), metrics]))
    if algorithm.reduce is None:
        return (), (own, report, upload)
    return algorithm.reduce(upload, weight), (own, report, ())


def _serve(
    algorithm: FederatedAlgorithm, key: Any, common: Any, server: Any, kept: Any, upload: Any, wanted: Any
) -> tuple[Any, Any, jax.Array]:
    """What the server does for one client, where that is wanted.

    Returns:
      What it keeps; what it has received, zeros where that was not wanted or is not finite; and whether
      it was finite.
    """
    assert algorithm.serve is not None
    served = flops.trace(algorithm.serve, key, common, server, kept, upload)
    nothing = trees.zeros_like(served.out[1])
    kept, received = jax.lax.cond(
        wanted, lambda: served.call(key, common, server, kept, upload), lambda: (kept, nothing)
    )
    sound = trees.all_finite(received)
    return kept, trees.where(sound, received, nothing), sound


def round_step(
    setting: Setting, state: State, examples: Examples, rows: Rows, key: chex.PRNGKey, fleet: Any = ()
) -> tuple[State, RoundReport]:
    """One round.

    Args:
      setting: Static choices.
      state: The simulation's state.
      examples: The training data.
      rows: The cohort, distinct clients laid out under the plan.
      key: The round's key.
      fleet: What the setting's clock runs by.

    Returns:
      The new state, and the round's report.
    """
    own = of_clients(state)
    before = jax.tree.map(lambda a: a.at[rows.at].get(mode="clip"), own)
    shared = (key, state.common, state.server, examples, fleet)

    def function(*args: Any) -> Any:
        return _client_step(setting, *args)

    total, (after, report, uploads) = map_clients(function, shared, rows, before, setting.plan)
    received = uploads if setting.algorithm.reduce is None else total
    dropped = report.values[:, 0] > 0
    cohort = Cohort(rows.ids, jnp.where(dropped, 0, rows.sizes).astype(jnp.float32))
    key = client_key(key, _SERVER)
    server = setting.algorithm.merge(key, state.common, state.server, received, cohort)
    own = jax.tree.map(lambda a, rows_of_a: a.at[rows.at].set(rows_of_a, mode="drop"), own, after)
    told = {} if setting.algorithm.report is None else setting.algorithm.report(server)
    told = {name: jnp.asarray(value, jnp.float32) for name, value in told.items()}
    return with_clients(state._replace(server=server), own), RoundReport(report, told)


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
        return round_step(setting, state, examples, rows, round_key(key, first + step), fleet)

    _, report = jax.eval_shape(one_round, state, first)
    shape = jax.tree.map(lambda a: jax.ShapeDtypeStruct((chunk, *a.shape), a.dtype), report)

    def body(step: jax.Array, carry: Any) -> Any:
        state, history = carry
        state, news = one_round(state, step)
        put = partial(jax.lax.dynamic_update_index_in_dim, index=step, axis=0)
        return state, jax.tree.map(put, history, news)

    return jax.lax.fori_loop(0, num_rounds, body, (state, trees.zeros_like(shape)))
