"""Mapping a function of one client over many: blocks, scans and devices.

The order of clients inside the map is canonical (by size, then by id), so that neither the
order of the cohort nor the plan decides which floats are added first within a block.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_masks import trees
from fedjax_masks.simulation.plan import Plan

AXIS = "clients"


class Rows(NamedTuple):
    """Clients as the engine lays them out; padded to whole blocks on every device.

    Attributes:
      ids: ``int32[n]``: client ids; ``num_clients`` or more marks padding.
      offsets: ``int32[n]``: where each client's rows start in the flat index.
      sizes: ``int32[n]``: examples per client; 0 for padding.
    """

    ids: jax.Array
    offsets: jax.Array
    sizes: jax.Array


def device_mesh(plan: Plan) -> Mesh:
    """The mesh over the plan's devices, with one axis ``"clients"``."""
    return Mesh(jax.devices()[: plan.devices], (AXIS,))


def padded_length(num: int, plan: Plan) -> int:
    """The number of rows that ``num`` clients take under a plan."""
    step = plan.block * plan.devices
    return -(-num // step) * step


def lay_out(ids: jax.Array, offsets: jax.Array, sizes: jax.Array, plan: Plan) -> tuple[Rows, jax.Array]:
    """Sorts clients by size into blocks, and deals the blocks out to devices.

    Args:
      ids: ``int32[n]``: the clients to run.
      offsets: ``int32[num_clients]``: of all clients.
      sizes: ``int32[num_clients]``: of all clients.
      plan: The execution plan.

    Returns:
      The rows, and ``int32[n]``: where each client of ``ids`` went.
    """
    num, length = len(ids), padded_length(len(ids), plan)
    order = jnp.lexsort((ids, -sizes[ids]))
    ids_sorted = jnp.pad(ids[order], (0, length - num), constant_values=len(sizes))
    real = jnp.arange(length) < num
    blocks = jnp.arange(length // plan.block).reshape(-1, plan.devices).T.ravel()
    slots = (blocks[:, None] * plan.block + jnp.arange(plan.block)).ravel()
    ids_laid = ids_sorted[slots]
    rows = Rows(
        ids_laid,
        jnp.where(real[slots], offsets.at[ids_laid].get(mode="clip"), 0),
        jnp.where(real[slots], sizes.at[ids_laid].get(mode="clip"), 0),
    )
    position = jnp.zeros(length, jnp.int32).at[slots].set(jnp.arange(length, dtype=jnp.int32))
    return rows, jnp.zeros(num, jnp.int32).at[order].set(position[:num])


def map_clients(
    function: Callable[[Any, Rows, jax.Array, Any], tuple[Any, Any]],
    shared: Any,
    rows: Rows,
    states: Any,
    plan: Plan,
) -> tuple[Any, Any]:
    """Runs ``function`` for every client.

    Args:
      function: ``(shared, row, longest, state) -> (total, out)`` for one client; ``row`` is
        a Rows of scalars and ``longest`` the largest size in the client's block.
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
            total, out = function(shared, row, row.sizes, state)
            return total, jax.tree.map(lambda a: a[None], out)
        longest = jnp.max(rows.sizes)
        mapped = jax.vmap(function, in_axes=(None, 0, None, 0))
        totals, outs = mapped(shared, rows, longest, states)
        return jax.tree.map(lambda a: a.sum(0), totals), outs

    def on_device(shared: Any, rows: Rows, states: Any) -> tuple[Any, Any]:
        blocks = jax.tree.map(lambda a: a.reshape(-1, plan.block, *a.shape[1:]), (rows, states))
        first = jax.tree.map(lambda a: a[0], blocks)
        shape, _ = jax.eval_shape(one_block, shared, first)

        def body(total: Any, block: Any) -> tuple[Any, Any]:
            part, out = one_block(shared, block)
            return trees.add(total, part), out

        total, outs = jax.lax.scan(body, trees.zeros_like(shape), blocks)
        if plan.devices > 1:
            total = jax.lax.psum(total, AXIS)
        return total, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), outs)

    if plan.devices == 1:
        return on_device(shared, rows, states)
    everywhere, split = PartitionSpec(), PartitionSpec(AXIS)
    # Algorithms know nothing of devices, so their loops start from values that jax would not
    # count as varying over the mesh; its check is for code that does know.
    spread = jax.shard_map(
        on_device,
        mesh=device_mesh(plan),
        in_specs=(everywhere, split, split),
        out_specs=(everywhere, split),
        check_vma=False,
    )
    return spread(shared, rows, states)
