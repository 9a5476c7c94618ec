"""Lanes: the layout of clients over the blocks and devices of a program.

The host decides the layout. The order of clients is canonical (by tier, size, and id), so that neither the
order of the cohort nor the plan decides the order of float additions within a block.
"""

from typing import Generic, NamedTuple, TypeVar

import jax
import numpy as np

from fedjax_masks.core.algorithm import DEFAULT_SCHEDULE, ClientIndex, Schedule
from fedjax_masks.simulation.plan import Plan

A = TypeVar("A", bound=jax.Array | np.ndarray | jax.ShapeDtypeStruct)
"""The arrays of a record: traced, on the host, or shapes alone."""


class Lanes(NamedTuple, Generic[A]):
    """The lanes of a program, each for one client or for padding.

    A program has whole blocks of lanes on every device.

    Attributes:
      ids: ``int32[n]``: client ids; ``num_clients`` or more marks padding.
      offsets: ``int32[n]``: the position of each client's first example in the flat index.
      sizes: ``int32[n]``: examples per client; 0 for padding.
      tiers: ``int32[n]``: the clients' tiers; 0 for padding.
      positions: ``int32[n]``: the position of each client's state in the program's arrays. It is the client's
        id, unless the program gets the states of some clients only; padding is beyond the end.
    """

    ids: A
    offsets: A
    sizes: A
    tiers: A
    positions: A


def lane_shapes(*shape: int) -> Lanes[jax.ShapeDtypeStruct]:
    """The shapes of lanes, for tracing: ``int32[*shape]`` each."""
    return Lanes(*[jax.ShapeDtypeStruct(shape, np.int32)] * len(Lanes._fields))


def num_lanes(num_clients: int, plan: Plan, tiers: int = 1) -> int:
    """The largest number of lanes that clients of several tiers take under a plan."""
    # The last block of every tier may be incomplete.
    blocks = (num_clients + tiers * (plan.block - 1)) // plan.block
    return -(-blocks // plan.devices) * plan.devices * plan.block


def lay_out(
    ids: np.ndarray, index: ClientIndex, plan: Plan, schedule: Schedule = DEFAULT_SCHEDULE
) -> tuple[Lanes[np.ndarray], np.ndarray]:
    """Sorts clients by tier and size into blocks, and assigns the blocks to devices.

    Args:
      ids: ``int32[n]``: the clients.
      index: The examples of all clients.
      plan: The execution plan.
      schedule: The algorithm's schedule; clients of different tiers never share a block.

    Returns:
      The lanes, as NumPy arrays, and ``int64[n]``: the lane of each client in ``ids``.
    """
    tiers = schedule.tier_of(ids)
    # Neighbors share a block, whose loops run to its largest client: similar sizes save padding.
    order = np.lexsort((ids, -index.sizes[ids], tiers))
    lane_indices = np.empty(len(ids), np.int64)
    lane_indices[order] = _assign(tiers[order], schedule.num_tiers, plan)
    length = num_lanes(len(ids), plan, schedule.num_tiers)

    def spread(values: np.ndarray, padding: int = 0) -> np.ndarray:
        lanes = np.full(length, padding, np.int32)
        lanes[lane_indices] = values
        return lanes

    # A position beyond the end: padding reads a clipped state, and its writes are dropped.
    padded_ids = spread(ids, len(index.sizes))
    lanes = Lanes(padded_ids, spread(index.offsets[ids]), spread(index.sizes[ids]), spread(tiers), padded_ids)
    return lanes, lane_indices


def _assign(tiers: np.ndarray, num_tiers: int, plan: Plan) -> np.ndarray:
    """The lanes of clients that are sorted by tier.

    Each tier starts with a new block, because a block runs the program of one tier. The blocks go round the
    devices: neighbors in the order have similar sizes, so that every device gets large and small clients.
    """
    counts = np.bincount(tiers, minlength=num_tiers)
    first_client = np.cumsum(counts) - counts
    num_blocks = -(-counts // plan.block)
    first_block = np.cumsum(num_blocks) - num_blocks
    rank = np.arange(len(tiers)) - first_client[tiers]
    block, lane = first_block[tiers] + rank // plan.block, rank % plan.block
    per_device = num_lanes(len(tiers), plan, num_tiers) // (plan.block * plan.devices)
    return ((block % plan.devices) * per_device + block // plan.devices) * plan.block + lane
