"""Convolution in the layout of XLA's CPU kernels, in both directions.

Inside loops XLA's CPU backend does not rewrite the gradients of its convolution to the layout
that its kernels know, and runs them tens of times slower; here they are stated in that layout.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_masks.ops import by_lax
from fedjax_masks.ops.by_lax import Pads

_NO_PADS = ((0, 0), (0, 0))


def forward(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads
) -> tuple[jax.Array, jax.Array]:
    """``[batch, out_height, out_width, out]``, and the input."""
    return by_lax.convolve(_pad(x, pads), kernel, strides, _NO_PADS), x


output_gradient = by_lax.output_gradient


def input_gradient(
    dy: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads, in_size: Sequence[int]
) -> jax.Array:
    """``[batch, *in_size, in]``: the dilated output gradient, fully correlated with the flipped kernel."""
    low = [k - 1 - p[0] for k, p in zip(kernel.shape, pads)]
    high = [
        n + k - 1 - a - (o - 1) * s - 1
        for n, k, a, o, s in zip(in_size, kernel.shape, low, dy.shape[1:3], strides)
    ]
    spread = _pad(dy, list(zip(low, high)), strides)
    return by_lax.convolve(spread, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), (1, 1), _NO_PADS)


def kernel_gradient(
    x: jax.Array, dy: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads
) -> jax.Array:
    """Shaped like the kernel: one product per image and kernel row.

    Operands of that size fit the cache; those of one product over all rows do not.
    """
    (kh, kw), (height, width) = kernel.shape[:2], dy.shape[1:3]
    x = _pad(x, pads)
    columns = [lax.slice_in_dim(x, i, i + (width - 1) * strides[1] + 1, strides[1], 2) for i in range(kw)]
    patches = jnp.concatenate(columns, axis=-1)
    rows = (lax.slice_in_dim(patches, i, i + (height - 1) * strides[0] + 1, strides[0], 1) for i in range(kh))
    flat = [r.reshape(len(x), height * width, -1) for r in rows]
    dy = dy.reshape(len(x), height * width, -1)
    return jnp.stack([jnp.einsum("bpk,bpo->bko", r, dy).sum(0) for r in flat]).reshape(kernel.shape)


def _pad(x, pads, dilation=(1, 1)):
    config = [(0, 0, 0), *((*p, d - 1) for p, d in zip(pads, dilation)), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)
