"""Quantization of floats to integers of a few bits, with one scale per array."""

from typing import Annotated

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.communication.codec import Codec, array_keys, map_floats
from fedjax_masks.communication.payload import Quantized, nodes, replace_nodes, shape_only
from fedjax_masks.core.algorithm import PyTree
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.options import Bounds, check


def quantize(bits: int = 8, *, stochastic: bool = False) -> Codec:
    """Rounds to multiples of one scale per array, ``max|x| / (2 ** (bits - 1) - 1)``.

    Deterministic rounding is to the nearest multiple (ties to even), so that no error exceeds half the scale.
    Stochastic rounding is unbiased, with errors below the scale (Alistarh et al. 2017, "QSGD", arXiv
    1610.02132, sec. 3.1, with the maximum as the norm).

    Args:
      bits: Bits per value, 2 to 8; the scale of an array costs another 32 bits.
      stochastic: Whether rounding is stochastic; ``pack`` then needs a key.

    Raises:
      UserError: ``bits`` is not in 2 to 8. From ``pack``: a stochastic codec gets no key, or the payload is
        already quantized.
    """
    check("quantize.bits", bits, Annotated[int, Bounds(2, 8)])
    top = 2 ** (bits - 1) - 1

    def pack_leaf(key: chex.PRNGKey | None, leaf: jax.Array, mask: jax.Array | bool) -> PyTree:
        if leaf.size * bits + 32 >= leaf.size * 8 * leaf.dtype.itemsize:
            return leaf
        values = jnp.where(mask, leaf, 0).astype(jnp.float32)
        scale = jnp.max(jnp.abs(values)) / top
        ratio = values / jnp.where(scale > 0, scale, 1)
        rounded = jnp.round(ratio) if key is None else _round_randomly(key, ratio)
        codes = jnp.clip(rounded, -top, top).astype(jnp.int8)
        return Quantized(codes, scale, shape_only((bits,), leaf.dtype))

    def pack(key: chex.PRNGKey | None, payload: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        if stochastic and key is None:
            raise UserError("quantize.stochastic=true: must get a key; pass a key, or set stochastic=false")
        if nodes(Quantized, payload):
            raise UserError("quantize: must get a payload that is not quantized; use one quantize per link")
        keys = array_keys(key if stochastic else None)
        return map_floats(lambda leaf, mask: pack_leaf(next(keys), leaf, mask), payload), state

    return Codec(lambda _: (), pack, lambda packed: replace_nodes(Quantized, dequantize, packed))


def _round_randomly(key: chex.PRNGKey, values: jax.Array) -> jax.Array:
    lower = jnp.floor(values)
    return lower + (jax.random.uniform(key, values.shape, values.dtype) < values - lower)


def dequantize(quantized: Quantized) -> jax.Array:
    """The values of a :class:`Quantized`, in the dtype of its ``like``."""
    return (quantized.codes * quantized.scale).astype(quantized.like.dtype)
