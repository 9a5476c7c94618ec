"""One round of federated learning, and a chunk of rounds, as traced programs."""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from fedjax_masks import payload, trees
from fedjax_masks.algorithm import Cohort, FederatedAlgorithm, State
from fedjax_masks.simulation.arrays import Examples, client_data
from fedjax_masks.simulation.layout import Block, Rows, lay_out, map_clients
from fedjax_masks.simulation.plan import Plan


class ClientReport(NamedTuple):
    """What one client of a round leaves behind, besides its state.

    Attributes:
      id: int32: the client.
      weight: float32: its number of examples; 0 if dropped.
      dropped: bool: its update was not finite.
      bits_up: uint32: the part of the upload's bits that depends on data.
      bits_down: uint32: the same of the message.
      train: float32[number of metrics]: the algorithm's metrics, by name in alphabetical order;
        one array, because every array of a report costs compile time.
    """

    id: jax.Array
    weight: jax.Array
    dropped: jax.Array
    bits_up: jax.Array
    bits_down: jax.Array
    train: jax.Array


class RoundKeys(NamedTuple):
    """The keys of one round; those of clients derive from their ids, not their places."""

    cohort: chex.PRNGKey
    clients: chex.PRNGKey
    merge: chex.PRNGKey


def round_keys(key: chex.PRNGKey, index: jax.Array) -> RoundKeys:
    """The keys of round ``index`` of the simulation with root key ``key``."""
    return RoundKeys(*jax.random.split(jax.random.fold_in(key, index), 3))


def sample_cohort(key: chex.PRNGKey, num_clients: int, cohort: int) -> jax.Array:
    """Draws ``int32[cohort]`` client ids, uniformly without replacement."""
    return jnp.argsort(jax.random.uniform(key, (num_clients,)))[:cohort].astype(jnp.int32)


class Setting(NamedTuple):
    """The static choices of a simulation that its programs close over."""

    algorithm: FederatedAlgorithm
    plan: Plan
    cohort: int
    capacity: int
    poison: bool = False


def _client_step(setting: Setting, shared: Any, row: Rows, block: Block, state: Any) -> Any:
    """Message, training and upload of one client; see :func:`map_clients`."""
    algorithm = setting.algorithm
    as_received = payload.poison if setting.poison else lambda tree: tree
    key, common, server, examples = shared

    message = algorithm.send(server, row.ids)
    data = client_data(examples, row, block, setting.capacity)
    key = jax.random.fold_in(key, row.ids)
    new_state, upload, metrics = algorithm.train(key, common, as_received(message), state, data)

    metrics = jnp.stack([jnp.asarray(metrics[name], jnp.float32) for name in sorted(metrics)])
    finite = trees.all_finite((upload, metrics))
    weight = jnp.where(finite, row.sizes, 0).astype(jnp.float32)
    report = ClientReport(
        row.ids,
        weight,
        ~finite,
        payload.traced_bits(upload),
        payload.traced_bits(message),
        metrics,
    )
    # A weight of 0 does not silence a NaN: what is left out must not be there at all.
    upload = as_received(trees.where(finite, upload, trees.zeros_like(upload)))
    new_state = trees.where(finite, new_state, state)
    if algorithm.reduce is None:
        return (), (new_state, report, upload)
    return algorithm.reduce(upload, weight), (new_state, report, ())


def round_step(
    setting: Setting, state: State, examples: Examples, ids: jax.Array, keys: RoundKeys
) -> tuple[State, ClientReport]:
    """One round with the given cohort.

    Args:
      setting: Static choices.
      state: The simulation's state.
      examples: The training data.
      ids: ``int32[cohort]``: distinct client ids.
      keys: The round's keys.

    Returns:
      The new state, and one report per row of the layout; those with an id below the number of
      clients are real.
    """
    rows, _ = lay_out(ids, examples.offsets, examples.sizes, setting.plan, setting.algorithm.tiers)
    before = jax.tree.map(lambda a: a.at[rows.ids].get(mode="clip"), state.clients)
    shared = (keys.clients, state.common, state.server, examples)

    def function(*args: Any) -> Any:
        return _client_step(setting, *args)

    total, (after, report, uploads) = map_clients(function, shared, rows, before, setting.plan)
    received = uploads if setting.algorithm.reduce is None else total
    cohort = Cohort(report.id, report.weight)
    server = setting.algorithm.merge(keys.merge, state.common, state.server, received, cohort)
    clients = jax.tree.map(
        lambda a, rows_of_a: a.at[rows.ids].set(rows_of_a, mode="drop"), state.clients, after
    )
    return State(state.common, server, clients), report


def run_chunk(
    setting: Setting,
    state: State,
    examples: Examples,
    key: chex.PRNGKey,
    first: jax.Array,
    num_rounds: jax.Array,
    *,
    chunk: int,
) -> tuple[State, ClientReport]:
    """Runs ``num_rounds <= chunk`` rounds from round ``first`` on.

    The number of rounds is traced, so that one program serves every number.

    Returns:
      The state, and reports ``[chunk, rows]`` of which the first ``num_rounds`` hold.
    """

    @jax.jit  # traced once, for the shapes as for the loop
    def one_round(state: State, index: jax.Array) -> tuple[State, ClientReport]:
        keys = round_keys(key, index)
        drawn = keys
        if setting.algorithm.cycle > 1:
            drawn = round_keys(key, index - index % setting.algorithm.cycle)
        ids = sample_cohort(drawn.cohort, len(examples.sizes), setting.cohort)
        return round_step(setting, state, examples, ids, keys)

    _, report = jax.eval_shape(one_round, state, first)
    shape = jax.tree.map(lambda a: jax.ShapeDtypeStruct((chunk, *a.shape), a.dtype), report)

    def body(step: jax.Array, carry: Any) -> Any:
        state, history = carry
        state, news = one_round(state, first + step)
        put = partial(jax.lax.dynamic_update_index_in_dim, index=step, axis=0)
        return state, jax.tree.map(put, history, news)

    return jax.lax.fori_loop(0, num_rounds, body, (state, trees.zeros_like(shape)))
