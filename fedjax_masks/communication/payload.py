"""Payloads: messages and uploads between one client and the server.

A payload is any pytree of arrays. An array costs ``size * bits(dtype)``; a bool costs one bit. Nodes mark
arrays that are sent in part, or in another form; see :mod:`fedjax_masks.communication.nodes`::

    {"kernel": Masked(values, mask), "bias": bias, "signs": Encoded(signs)}

A payload belongs to *one* client. Both ends know the structure of a payload, its shapes and its dtypes.
:mod:`fedjax_masks.communication.size` counts the bits, :mod:`fedjax_masks.communication.serialization` writes
the bytes, and :func:`poison` overwrites all values that are not sent, to find receivers that read them. All
of these, and the transforms, visit a payload by :func:`map_sent`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_masks.communication.nodes import (
    AlreadyKnown,
    Conditional,
    Dialogue,
    Encoded,
    Installed,
    Masked,
    Quantized,
    Sparse,
    shape_only,
)
from fedjax_masks.communication.visitor import Part, fold_sent, map_sent
from fedjax_masks.core.algorithm import PyTree

__all__ = [
    "AlreadyKnown",
    "Conditional",
    "Dialogue",
    "Encoded",
    "Installed",
    "Masked",
    "Part",
    "Quantized",
    "Sparse",
    "fold_sent",
    "map_sent",
    "nodes",
    "poison",
    "replace_nodes",
    "shape_only",
]


def nodes(kind: type, payload: PyTree) -> list[Any]:
    """All nodes of one type, in order.

    >>> nodes(Encoded, {"a": Conditional(jnp.array(True), Encoded(jnp.ones(2, bool))), "b": jnp.ones(2)})
    [Encoded(mask=Array([ True,  True], dtype=bool))]
    """
    leaves = jax.tree.leaves(payload, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def replace_nodes(kind: type, fn: Callable[[Any], Any], payload: PyTree) -> PyTree:
    """Replaces every node of one type by ``fn(node)``, except inside nodes that the receiver has anyway."""
    stops = (kind, AlreadyKnown, Installed)

    def visit(node: PyTree) -> PyTree:
        return fn(node) if isinstance(node, kind) else node

    return jax.tree.map(visit, payload, is_leaf=lambda node: isinstance(node, stops))


def poison(payload: PyTree) -> PyTree:
    """Overwrites all values of a payload that are not sent.

    The results of a receiver that reads such values change: floats become NaN, integers the largest value of
    their dtype, and bools their opposite.

    >>> poison(Masked(jnp.array([1.0, 2.0]), jnp.array([True, False]))).values.tolist()
    [1.0, nan]
    """

    def overwrite(part: Part) -> PyTree:
        mask = part.sent_mask
        return part.leaf if mask is True else jnp.where(mask, part.leaf, _poison(part))

    return map_sent(overwrite, payload)


def _poison(part: Part) -> PyTree:
    if part.dtype == bool:
        return ~jnp.asarray(part.leaf)
    if jnp.issubdtype(part.dtype, jnp.inexact):
        return jnp.array(jnp.nan, part.dtype)
    return jnp.array(jnp.iinfo(part.dtype).max, part.dtype)
