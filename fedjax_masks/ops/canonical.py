"""Convolution whose gradients are convolutions in the layout of XLA's CPU kernels.

Inside loops, XLA's CPU backend does not rewrite the gradients of ``lax``'s convolution to the layout of its
kernels, and runs them 30 to 45 times slower. The gradients of this module are in that layout from the start.
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
    """The output, ``[batch, out_height, out_width, out]``, and the input as the residual."""
    return by_lax.convolve(_pad(x, pads), kernel, strides, _NO_PADS), x


output_gradient = by_lax.output_gradient


def input_gradient(
    dy: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads, in_size: Sequence[int]
) -> jax.Array:
    """The input's gradient, ``[batch, *in_size, in]``.

    The gradient is the full correlation of the dilated output gradient with the flipped kernel.
    """
    low = [k - 1 - p[0] for k, p in zip(kernel.shape, pads)]
    high = [
        n + k - 1 - a - (o - 1) * s - 1
        for n, k, a, o, s in zip(in_size, kernel.shape, low, dy.shape[1:3], strides)
    ]
    # A plain convolution, the form that XLA knows in loops, too: explicit padding, and a flipped kernel.
    dilated = _pad(dy, list(zip(low, high)), strides)
    return by_lax.convolve(dilated, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), (1, 1), _NO_PADS)


def kernel_gradient(
    x: jax.Array, dy: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads
) -> jax.Array:
    """The kernel's gradient, as one matrix product per image and kernel row."""
    (kh, kw), (height, width) = kernel.shape[:2], dy.shape[1:3]
    x = _pad(x, pads)
    columns = [lax.slice_in_dim(x, i, i + (width - 1) * strides[1] + 1, strides[1], 2) for i in range(kw)]
    patches = jnp.concatenate(columns, axis=-1)
    rows = (lax.slice_in_dim(patches, i, i + (height - 1) * strides[0] + 1, strides[0], 1) for i in range(kh))
    # Operands of this size fit the cache; the operands of one product over all kernel rows do not.
    flat = [r.reshape(len(x), height * width, -1) for r in rows]
    dy = dy.reshape(len(x), height * width, -1)
    return jnp.stack([jnp.einsum("bpk,bpo->bko", r, dy).sum(0) for r in flat]).reshape(kernel.shape)


def _pad(x: jax.Array, pads: Pads, dilation: Sequence[int] = (1, 1)) -> jax.Array:
    config = [(0, 0, 0), *((*p, d - 1) for p, d in zip(pads, dilation)), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)
