"""Mapping a function of one client over many: blocks, scans and devices.

The host decides who runs where. The order of clients is canonical (by tier, size, and id), so that
neither the order of the cohort nor the plan decides which floats are added first within a block.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import DEFAULT_SCHEDULE, ClientIndex, Schedule, State
from fedjax_masks.simulation.plan import Plan

AXIS = "clients"
EVERYWHERE, SPLIT = PartitionSpec(), PartitionSpec(AXIS)


class Rows(NamedTuple):
    """Clients as the engine lays them out, padded to whole blocks on every device; on the host or traced.

    Attributes:
      ids: ``int32[n]``: client ids; ``num_clients`` or more marks padding.
      offsets: ``int32[n]``: where each client's rows start in the flat index.
      sizes: ``int32[n]``: examples per client; 0 for padding.
      tiers: ``int32[n]``: the clients' tiers; 0 for padding.
      at: ``int32[n]``: the rows of the clients' states that are theirs: their ids, unless a program
        gets the states of some clients only; padding is beyond these.
    """

    ids: Any
    offsets: Any
    sizes: Any
    tiers: Any
    at: Any


class OfClients(NamedTuple):
    """The parts of a :class:`State` that have a row for every client.

    Between rounds, they are of their place's own kind: on devices the states themselves. On the host
    ``clients`` is ``int32[num_clients]``, each client's slot in the store, -1 for none; ``profiles`` is
    empty.
    """

    clients: Any
    profiles: Any


def of_clients(state: State) -> OfClients:
    """These parts of a state."""
    return OfClients(state.clients, state.profiles)


def with_clients(state: State, own: OfClients) -> State:
    """The state with other such parts."""
    return state._replace(**own._asdict())


class Block(NamedTuple):
    """What the clients of a block have in common.

    Attributes:
      longest: ``int32[]``: the largest of their sizes.
      tier: ``int32[]``: their tier.
    """

    longest: jax.Array
    tier: jax.Array


def device_mesh(plan: Plan) -> Mesh:
    """The mesh over the plan's devices, with one axis ``"clients"``."""
    return Mesh(jax.devices()[: plan.devices], (AXIS,))


def placement(plan: Plan) -> Any:
    """Where arrays lie between rounds: one device, or a copy on each."""
    if plan.devices == 1:
        return SingleDeviceSharding(jax.local_devices()[0])
    return NamedSharding(device_mesh(plan), EVERYWHERE)


def put(tree: Any, place: Sharding) -> Any:
    """Host arrays, the same in every process, to where arrays lie."""
    if place.is_fully_addressable:
        return jax.device_put(tree, place)

    def place_one(array: Any) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, place, lambda index: array[index])

    return jax.tree.map(place_one, tree)


def padded_length(num: int, plan: Plan, tiers: int = 1) -> int:
    """The number of rows that ``num`` clients of so many tiers take at most under a plan."""
    blocks = (num + tiers * (plan.block - 1)) // plan.block
    return -(-blocks // plan.devices) * plan.devices * plan.block


def lay_out(
    ids: np.ndarray, index: ClientIndex, plan: Plan, schedule: Schedule = DEFAULT_SCHEDULE
) -> tuple[Rows, np.ndarray]:
    """Sorts clients by tier and size into blocks, and deals the blocks out to devices.

    Args:
      ids: ``int32[n]``: the clients to run.
      index: The examples of all clients.
      plan: The execution plan.
      schedule: Clients of different tiers never share a block.

    Returns:
      The rows, as NumPy arrays, and ``int64[n]``: where each client of ``ids`` went.
    """
    tiers = schedule.tier_of(ids)
    order = np.lexsort((ids, -index.sizes[ids], tiers))
    places = np.empty(len(ids), np.int64)
    places[order] = _slots(tiers[order], schedule.num_tiers, plan)
    length = padded_length(len(ids), plan, schedule.num_tiers)

    def put(values: np.ndarray, padding: int = 0) -> np.ndarray:
        rows = np.full(length, padding, np.int32)
        rows[places] = values
        return rows

    padded = put(ids, len(index.sizes))
    rows = Rows(padded, put(index.offsets[ids]), put(index.sizes[ids]), put(tiers), padded)
    return rows, places


def _slots(tiers: np.ndarray, number: int, plan: Plan) -> np.ndarray:
    """Where clients go that are sorted by tier: each tier starts a block, blocks go round the devices."""
    counts = np.bincount(tiers, minlength=number)
    first_client = np.cumsum(counts) - counts
    num_blocks = -(-counts // plan.block)
    first_block = np.cumsum(num_blocks) - num_blocks
    rank = np.arange(len(tiers)) - first_client[tiers]
    block, place = first_block[tiers] + rank // plan.block, rank % plan.block
    per_device = padded_length(len(tiers), plan, number) // (plan.block * plan.devices)
    return ((block % plan.devices) * per_device + block // plan.devices) * plan.block + place


def map_clients(
    function: Callable[[Any, Rows, Block, Any], tuple[Any, Any]],
    shared: Any,
    rows: Rows,
    states: Any,
    plan: Plan,
) -> tuple[Any, Any]:
    """Runs ``function`` for every client.

    Args:
      function: ``(shared, row, block, state) -> ((counts, total), out)`` for one client; ``row`` is a Rows
        of scalars, and ``block`` is shared by the clients that run in step. ``counts``, ``bool[]``, tells
        whether its total is added.
      shared: What all clients read; never copied per client.
      rows: The clients, laid out by :func:`lay_out` under the same plan.
      states: A pytree of rows ``[n, ...]``, in the same order.
      plan: The execution plan.

    Returns:
      The sum of all totals, and the outs stacked on axis 0.
    """

    @jax.jit  # traced once, for the shapes as for the loop
    def one_block(shared: Any, block: tuple[Rows, Any]) -> tuple[Any, Any]:
        rows, states = block
        if plan.block == 1:
            row, state = jax.tree.map(lambda a: a[0], (rows, states))
            counted, out = function(shared, row, Block(row.sizes, row.tiers), state)
            return counted, jax.tree.map(lambda a: a[None], out)
        mapped = jax.vmap(function, in_axes=(None, 0, None, 0))
        common = Block(jnp.max(rows.sizes), jnp.max(rows.tiers))
        (counts, totals), outs = mapped(shared, rows, common, states)
        totals = jax.tree.map(lambda a: _sum_of(a, counts), totals)
        return (jnp.asarray(True), totals), outs

    def on_device(shared: Any, rows: Rows, states: Any) -> tuple[Any, Any]:
        number = len(rows.ids) // plan.block
        blocks = jax.tree.map(lambda a: a.reshape(number, plan.block, *a.shape[1:]), (rows, states))
        first = jax.tree.map(lambda a: a[0], blocks)
        (_, shape), _ = jax.eval_shape(one_block, shared, first)

        def body(total: Any, block: Any) -> tuple[Any, Any]:
            (counts, part), out = one_block(shared, block)
            # Selected after the sum, so that a product and its sum stay one instruction.
            return trees.where(counts, trees.add(total, part), total), out

        total, outs = jax.lax.scan(body, trees.zeros_like(shape), blocks)
        if plan.devices > 1:
            total = jax.lax.psum(total, AXIS)
        return total, jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), outs)

    mapped = over_devices(on_device, plan, (EVERYWHERE, SPLIT, SPLIT), (EVERYWHERE, SPLIT))
    return mapped(shared, rows, states)


def _sum_of(rows: jax.Array, counts: jax.Array) -> jax.Array:
    """The sum over axis 0 of the rows that count."""
    counts = counts.reshape(-1, *(1,) * (rows.ndim - 1))
    return jnp.where(counts, rows, 0).sum(0, dtype=rows.dtype)


def over_devices(
    function: Callable[..., Any], plan: Plan, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """``function`` on each of a plan's devices, every one with its part of what is :data:`SPLIT`."""
    if plan.devices == 1:
        return function
    # Algorithms know nothing of devices, so their loops start from values that jax would not
    # count as varying over the mesh; its check is for code that does know.
    mesh = device_mesh(plan)
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
