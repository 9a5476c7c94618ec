"""Payloads: messages and uploads between one client and the server.

A payload is any pytree of arrays. An array costs ``size * bits(dtype)``; a bool costs one bit. Nodes mark
arrays that are sent in part, or in another form::

    {"kernel": Masked(values, mask), "bias": bias, "signs": Encoded(signs)}

A payload belongs to *one* client. Both ends know the structure of a payload, its shapes and its dtypes.
:mod:`fedjax_masks.communication.size` counts the bits, :mod:`fedjax_masks.communication.serialization` writes
the bytes, and :func:`fedjax_masks.communication.visitor.poison` overwrites all values that are not sent, to
find receivers that read them. All of these, and the transforms, visit a payload by
:func:`fedjax_masks.communication.visitor.map_sent`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core.types import PyTree


class Masked(NamedTuple):
    """Values of which only those under True are sent; THE MASK ITSELF IS FREE.

    The receiver must therefore have the mask: the receiver made the mask, received it earlier, or derives it
    from received data. No type can check that, so a comment beside every ``Masked`` must say how the receiver
    knows the mask. Where the receiver lacks the mask, add the bool arrays to the payload.

    Attributes:
      values: Pytree of arrays, or of :class:`Quantized`, whose codes are then masked.
      mask: Pytree of ``bool`` of the same structure (or a prefix of it) and, leaf by leaf, of
        the same rank. Axes of size 1 broadcast: ``[1, 1, 1, filters]`` sends whole filters.
    """

    values: PyTree
    mask: PyTree


class AlreadyKnown(NamedTuple):
    """A part that costs nothing, because the receiver already has exactly this part.

    Attributes:
      tree: Any pytree.
    """

    tree: PyTree


class Installed(NamedTuple):
    """A part that every device has from before the first round: frozen weights, a pre-trained part.

    The part never changes, and counts once, as ``setup_bytes``.

    Attributes:
      tree: Any pytree of arrays.
    """

    tree: PyTree


class Conditional(NamedTuple):
    """A part that is sent only where ``flag`` is True; the receiver knows the flag.

    Attributes:
      flag: ``bool[]``.
      tree: Any payload.
    """

    flag: jax.Array
    tree: PyTree


class Dialogue(NamedTuple):
    """The size of messages that client and server exchange within a round.

    An algorithm adds a dialogue to its upload if clients and server communicate during training, and the
    server's half of the training is part of ``train``.

    Attributes:
      up: ``uint32[]``: bits from the client to the server.
      down: ``uint32[]``: bits from the server to the client.
      messages: ``float32[]``: the number of messages in both directions.
      flops: ``float32[]``: FLOPs of the server's half.
    """

    up: jax.Array
    down: jax.Array
    messages: jax.Array
    flops: jax.Array


class Sparse(NamedTuple):
    """A few elements of an array of zeros; an index costs ``ceil(log2(n))`` bits.

    Attributes:
      values: ``[k]``, or a :class:`Quantized` with ``codes[k]``.
      indices: ``int32[k]``: indices into the flattened array.
      like: ``[*shape, 0]``: an empty array that remembers the shape, see :func:`shape_only`.
    """

    values: PyTree
    indices: jax.Array
    like: jax.Array


class Quantized(NamedTuple):
    """Integers of ``b`` bits, 1 to 8, in units of ``scale``.

    Attributes:
      codes: Integers of any shape. Where their dtype is signed, at least ``-2 ** (b - 1)`` and
        less than ``2 ** (b - 1)``, else less than ``2 ** b``.
      scale: ``float32[]``, or an array that broadcasts against ``codes``.
      like: ``[b, 0]``: an empty array that remembers the number of bits and, by its own dtype, the dtype of
        the values, see :func:`shape_only`.
    """

    codes: jax.Array
    scale: jax.Array
    like: jax.Array


class Encoded(NamedTuple):
    """Entropy-coded masks: about ``n H(p)`` bits for ``n`` bits with a share ``p`` of ones.

    The code of :mod:`fedjax_masks.communication.entropy` saves bits for masks of more than about 100 elements
    with a share of ones far from a half.

    Attributes:
      mask: Pytree of ``bool``.
    """

    mask: PyTree


NODES = (Masked, AlreadyKnown, Installed, Conditional, Dialogue, Sparse, Quantized, Encoded)
"""All types of nodes."""


def shape_only(shape: tuple[int, ...], dtype: type | np.dtype = bool) -> jax.Array:
    """An empty array that remembers a shape and a dtype.

    Numbers that must stay static pass through ``jit``, ``vmap`` and ``scan`` as shapes.

    >>> shape_only((3, 4), jnp.float32).shape
    (3, 4, 0)
    """
    return jnp.zeros((*shape, 0), dtype)


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
