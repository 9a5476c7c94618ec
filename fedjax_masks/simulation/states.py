"""Clients' states: the per-client parts of a simulation's state, and their packing into bytes.

The storage on the host packs a client's state; a bool takes one bit.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_masks.core.algorithm import PyTree, State


class ClientStates(NamedTuple):
    """The parts of a :class:`State` with one entry per client.

    Between rounds, their form depends on the storage. On devices, they are the states themselves. On the
    host, ``clients`` is ``int32[num_clients]``, each client's slot in the store, or -1; ``profiles`` is
    empty.

    Attributes:
      clients: The clients' states.
      profiles: The server's profiles of the clients.
    """

    clients: PyTree
    profiles: PyTree


def client_states(state: State) -> ClientStates:
    """The per-client parts of a state."""
    return ClientStates(state.clients, state.profiles)


def with_client_states(state: State, states: ClientStates) -> State:
    """The state with other per-client parts."""
    return state._replace(**states._asdict())


class Packing(NamedTuple):
    """Traced functions that pack a client's state into bytes, and unpack it.

    Attributes:
      num_bytes: Bytes of a packed state; at least 1.
      pack: ``(client) -> uint8[num_bytes]``.
      unpack: The inverse of ``pack``.
    """

    num_bytes: int
    pack: Callable[[PyTree], jax.Array]
    unpack: Callable[[jax.Array], PyTree]


def packing_of(client: PyTree) -> Packing:
    """The packing of one client's state.

    Args:
      client: A pytree of arrays or of their shapes.

    >>> packing = packing_of({"mask": jnp.ones(12, bool), "visits": jnp.int32(3)})
    >>> packing.num_bytes
    6
    >>> packing.unpack(packing.pack({"mask": jnp.ones(12, bool), "visits": jnp.int32(3)}))["visits"]
    Array(3, dtype=int32)
    """
    leaves, structure = jax.tree.flatten(client)
    sizes = [_num_bytes(leaf) for leaf in leaves]

    def pack(client: PyTree) -> jax.Array:
        parts = [_to_bytes(leaf) for leaf in structure.flatten_up_to(client)]
        return jnp.concatenate(parts) if sum(sizes) else jnp.zeros(1, jnp.uint8)

    def unpack(packed: jax.Array) -> PyTree:
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        parts = [packed[start : start + size] for start, size in zip(starts, sizes)]
        return structure.unflatten(map(_from_bytes, parts, leaves))

    # At least one byte, because a slot of the store must have a length.
    return Packing(max(sum(sizes), 1), pack, unpack)


def _num_bytes(leaf: jax.Array | jax.ShapeDtypeStruct) -> int:
    size = math.prod(leaf.shape)
    return -(-size // 8) if leaf.dtype == bool else size * leaf.dtype.itemsize


def _to_bytes(leaf: jax.Array) -> jax.Array:
    if leaf.dtype == bool:
        return jnp.packbits(leaf.ravel())
    # A bitcast, not a conversion: every float comes back to the bit.
    return jax.lax.bitcast_convert_type(leaf.ravel(), jnp.uint8).ravel()


def _from_bytes(part: jax.Array, like: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    if like.dtype == bool:
        return jnp.unpackbits(part, count=math.prod(like.shape)).astype(bool).reshape(like.shape)
    width = like.dtype.itemsize
    part = part.reshape(-1, width) if width > 1 else part
    return jax.lax.bitcast_convert_type(part, like.dtype).reshape(like.shape)
