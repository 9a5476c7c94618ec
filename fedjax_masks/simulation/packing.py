"""One client's state as a row of bytes, for where rows lie on the host; a bool takes one bit."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Packing(NamedTuple):
    """How a client's state becomes bytes and comes back, as traced functions.

    Attributes:
      row_bytes: Bytes of a row; at least 1.
      pack: ``(client) -> uint8[row_bytes]``.
      unpack: The inverse.
    """

    row_bytes: int
    pack: Callable[[Any], jax.Array]
    unpack: Callable[[jax.Array], Any]


def packing_of(client: Any) -> Packing:
    """The packing of one client's state.

    Args:
      client: A pytree of arrays or of their shapes.

    >>> packing = packing_of({"mask": jnp.ones(12, bool), "visits": jnp.int32(3)})
    >>> packing.row_bytes
    6
    >>> packing.unpack(packing.pack({"mask": jnp.ones(12, bool), "visits": jnp.int32(3)}))["visits"]
    Array(3, dtype=int32)
    """
    leaves, structure = jax.tree.flatten(client)
    sizes = [_num_bytes(leaf) for leaf in leaves]

    def pack(client: Any) -> jax.Array:
        parts = [_to_bytes(leaf) for leaf in structure.flatten_up_to(client)]
        return jnp.concatenate(parts) if sum(sizes) else jnp.zeros(1, jnp.uint8)

    def unpack(row: jax.Array) -> Any:
        starts = [sum(sizes[:place]) for place in range(len(sizes))]
        parts = [row[start : start + size] for start, size in zip(starts, sizes)]
        return structure.unflatten(map(_from_bytes, parts, leaves))

    return Packing(max(sum(sizes), 1), pack, unpack)


def _num_bytes(leaf: Any) -> int:
    size = math.prod(leaf.shape)
    return -(-size // 8) if leaf.dtype == bool else size * leaf.dtype.itemsize


def _to_bytes(leaf: jax.Array) -> jax.Array:
    if leaf.dtype == bool:
        return jnp.packbits(leaf.ravel())
    return jax.lax.bitcast_convert_type(leaf.ravel(), jnp.uint8).ravel()


def _from_bytes(part: jax.Array, like: Any) -> jax.Array:
    if like.dtype == bool:
        return jnp.unpackbits(part, count=math.prod(like.shape)).astype(bool).reshape(like.shape)
    width = like.dtype.itemsize
    part = part.reshape(-1, width) if width > 1 else part
    return jax.lax.bitcast_convert_type(part, like.dtype).reshape(like.shape)
