"""Sparsification of floats to the largest magnitudes, with error feedback."""

import math

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.communication.codec import Codec, map_floats
from fedjax_masks.communication.payload import Sparse, nodes, replace_nodes, shape_only
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import PyTree
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.options import PositiveShare, check


def top_k(fraction: float, *, error_feedback: bool = True) -> Codec:
    """Sends the largest ``max(1, round(fraction * n))`` magnitudes of every array.

    With error feedback, the sender adds unsent values to the next round's values, so that sent values plus
    residual always equal values plus previous residual (Stich et al. 2018, "Sparsified SGD with memory",
    arXiv 1809.07599, algorithm 1). Under a mask, unsent elements keep their residual. The codec is for
    updates, whose zeros mean "no change", and not for weights.

    Args:
      fraction: Share of the elements to send, in (0, 1].
      error_feedback: Whether the sender keeps residuals: one float32 (or wider) array per
        float array, in the sender's state.

    Raises:
      UserError: ``fraction`` is not in (0, 1]. From ``pack``: the payload is already sparse.
    """
    check("top_k.fraction", fraction, PositiveShare)

    def residuals(payload: PyTree) -> PyTree:
        arrays: list[jax.Array] = []
        map_floats(lambda leaf, mask: arrays.append(_residual_like(leaf)), payload)
        return tuple(arrays)

    def init(like: PyTree) -> PyTree:
        return trees.zeros_like(jax.eval_shape(residuals, like)) if error_feedback else ()

    def pack(key: chex.PRNGKey | None, payload: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        del key
        if nodes(Sparse, payload):
            raise UserError("top_k: must get a payload that is not sparse; use one top_k per link")
        residuals, new_residuals = iter(state), []

        def pack_leaf(leaf: jax.Array, mask: jax.Array | bool) -> PyTree:
            if not error_feedback:
                return sparsify(jnp.where(mask, leaf, 0), fraction)
            residual = next(residuals)
            values = jnp.where(mask, leaf + residual, 0)
            packed = sparsify(values.astype(leaf.dtype), fraction)
            unsent = values - (densify(packed) if isinstance(packed, Sparse) else packed)
            new_residuals.append(jnp.where(mask, unsent, residual))
            return packed

        return map_floats(pack_leaf, payload), tuple(new_residuals)

    return Codec(init, pack, lambda packed: replace_nodes(Sparse, densify, packed))


def _residual_like(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))


def sparsify(values: jax.Array, fraction: float) -> Sparse | jax.Array:
    """The largest magnitudes of an array, or the array itself where :class:`Sparse` would not be smaller.

    >>> sparsify(jnp.array([1.0, -5.0, 0.0, 2.0]), 0.25).values.tolist()
    [-5.0]
    """
    keep = max(1, round(fraction * values.size))
    width = 8 * values.dtype.itemsize
    if keep * (width + max(0, values.size - 1).bit_length()) >= values.size * width:
        return values
    flat = values.ravel()
    _, indices = jax.lax.top_k(jnp.abs(flat), keep)
    return Sparse(flat[indices], indices, shape_only(values.shape, values.dtype))


def densify(sparse: Sparse) -> jax.Array:
    """The dense array of a :class:`Sparse`.

    >>> like = shape_only((2, 2))
    >>> densify(Sparse(jnp.array([5.0]), jnp.array([2]), like)).tolist()
    [[0.0, 0.0], [5.0, 0.0]]
    """
    shape = sparse.like.shape[:-1]
    zeros = jnp.zeros(math.prod(shape), sparse.values.dtype)
    return zeros.at[sparse.indices].set(sparse.values, mode="drop").reshape(shape)
