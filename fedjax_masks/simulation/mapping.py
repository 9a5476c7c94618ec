"""Mapping a function of one client over many clients: blocks, scans and devices."""

from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from fedjax_masks.core import target, trees
from fedjax_masks.core.types import PyTree
from fedjax_masks.simulation.lanes import Lanes
from fedjax_masks.simulation.plan import Plan

AXIS = "clients"
REPLICA_SPEC, SHARD_SPEC = PartitionSpec(), PartitionSpec(AXIS)

Specs = PartitionSpec | tuple[PartitionSpec, ...]
P = ParamSpec("P")
R = TypeVar("R")
Shared = TypeVar("Shared")
Client = TypeVar("Client")
Total = TypeVar("Total")
Output = TypeVar("Output")


class Block(NamedTuple):
    """The properties that the clients of a block share.

    Attributes:
      longest: ``int32[]``: the largest of their sizes.
      tier: ``int32[]``: their tier.
    """

    longest: jax.Array
    tier: jax.Array


def device_mesh(plan: Plan) -> Mesh:
    """The mesh over the plan's devices, with one axis ``"clients"``."""
    return Mesh(target.devices()[: plan.devices], (AXIS,))


def replica_sharding(plan: Plan) -> Sharding:
    """The sharding of arrays between rounds: one device, or a copy on each device."""
    if plan.devices == 1:
        return SingleDeviceSharding(target.local_device())
    return NamedSharding(device_mesh(plan), REPLICA_SPEC)


def put(tree: PyTree, sharding: Sharding) -> PyTree:
    """Puts host arrays, the same in every process, on devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put_one(leaf: np.typing.ArrayLike) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put_one, tree)


def map_clients(
    function: Callable[[Shared, Lanes[jax.Array], Block, Client], tuple[tuple[jax.Array, Total], Output]],
    shared: Shared,
    lanes: Lanes[jax.Array],
    states: Client,
    plan: Plan,
) -> tuple[Total, Output]:
    """Runs ``function`` for every client.

    Args:
      function: ``(shared, lane, block, state) -> ((valid, total), output)`` for one client. ``lane`` is a
        Lanes of scalars; the clients that run in step share ``block``. ``valid``, ``bool[]``, tells whether
        the client's total is added.
      shared: The argument that all clients share; it is never copied per client.
      lanes: The clients, laid out by :func:`~fedjax_masks.simulation.lanes.lay_out` under the same plan.
      states: Pytree of ``[n, ...]``, in the order of the lanes.
      plan: The execution plan.

    Returns:
      The sum of all totals, and the outputs stacked on axis 0.
    """

    @jax.jit  # one trace serves both the shapes and the loop
    def one_block(
        shared: Shared, block: tuple[Lanes[jax.Array], Client]
    ) -> tuple[tuple[jax.Array, Total], Output]:
        lanes, states = block
        if plan.block == 1:
            lane, state = jax.tree.map(lambda a: a[0], (lanes, states))
            result, output = function(shared, lane, Block(lane.sizes, lane.tiers), state)
            return result, jax.tree.map(lambda a: a[None], output)
        run_clients = jax.vmap(function, in_axes=(None, 0, None, 0))
        # Outside the vmap: a per-client trip count or tier would make loops and branches per client.
        common = Block(jnp.max(lanes.sizes), jnp.max(lanes.tiers))
        (valid, totals), outputs = run_clients(shared, lanes, common, states)
        totals = jax.tree.map(lambda a: _sum_valid(a, valid), totals)
        return (jnp.asarray(True), totals), outputs

    def on_device(shared: Shared, lanes: Lanes[jax.Array], states: Client) -> tuple[Total, Output]:
        number = len(lanes.ids) // plan.block
        blocks = jax.tree.map(lambda a: a.reshape(number, plan.block, *a.shape[1:]), (lanes, states))
        first = jax.tree.map(lambda a: a[0], blocks)
        (_, shape), _ = jax.eval_shape(one_block, shared, first)

        def body(total: Total, block: tuple[Lanes[jax.Array], Client]) -> tuple[Total, Output]:
            (valid, part), output = one_block(shared, block)
            # The selection follows the sum, so that XLA keeps a product and its sum in one instruction.
            return trees.where(valid, trees.add(total, part), total), output

        # The sum is in the carry: memory does not grow with the cohort, and on CPU this beats a vmap.
        total, outputs = jax.lax.scan(body, trees.zeros_like(shape), blocks)
        if plan.devices > 1:
            total = jax.lax.psum(total, AXIS)
        return total, jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), outputs)

    run_devices = map_devices(
        on_device, plan, (REPLICA_SPEC, SHARD_SPEC, SHARD_SPEC), (REPLICA_SPEC, SHARD_SPEC)
    )
    return run_devices(shared, lanes, states)


def _sum_valid(values: jax.Array, valid: jax.Array) -> jax.Array:
    """The sum of the valid entries over axis 0."""
    valid = valid.reshape(-1, *(1,) * (values.ndim - 1))
    # ``where`` and not a product: invalid entries may be NaN. The dtype keeps x64 from widening integers.
    return jnp.where(valid, values, 0).sum(0, dtype=values.dtype)


def map_devices(function: Callable[P, R], plan: Plan, in_specs: Specs, out_specs: Specs) -> Callable[P, R]:
    """Runs ``function`` on each device of a plan, with the device's shard of each ``SHARD_SPEC`` argument."""
    if plan.devices == 1:
        return function
    # Algorithms do not depend on devices: their loops start from values that jax does not count as varying
    # over the mesh, so its check would refuse them.
    mesh = device_mesh(plan)
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
