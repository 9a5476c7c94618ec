"""Convolution by patches of the input, for both gradients too.

The input's gradient is the product of the output's gradient and the kernel, which gives the gradient of every
patch, and the sum of these over the patches that share a place. The cost of both gradients is proportional to
the number of inputs, where that of :mod:`fedjax_masks.ops.im2col` is proportional to the number of outputs.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_masks.ops import by_lax, im2col
from fedjax_masks.ops.by_lax import Pads

_TERMS = 2048  # of the sums in one product

forward = im2col.forward
output_gradient = by_lax.output_gradient


def input_gradient(
    dy: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads, in_size: Sequence[int]
) -> jax.Array:
    """The input's gradient, ``[batch, *in_size, in]``."""
    inputs, outputs = kernel.shape[2:]
    patches = dy @ kernel.reshape(-1, outputs).T
    parts = []
    for number, tap in enumerate(np.ndindex(*kernel.shape[:2])):
        part = lax.slice_in_dim(patches, number * inputs, (number + 1) * inputs, axis=3)
        config = [(0, 0, 0)] * 4
        for axis, (first, (low, _), stride) in enumerate(zip(tap, pads, strides), 1):
            span = (part.shape[axis] - 1) * stride + 1
            # A negative width crops what lies in the padding of the input.
            config[axis] = (first - low, in_size[axis - 1] - span - (first - low), stride - 1)
        parts.append(lax.pad(part, jnp.zeros((), part.dtype), config))
    return sum(parts[1:], start=parts[0])


def kernel_gradient(
    x: jax.Array, dy: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads
) -> jax.Array:
    """The kernel's gradient: products of the input's patches and the output's gradient."""
    patches = im2col.input_patches(x, kernel.shape[:2], strides, pads)
    # One product over all images would have few results and long sums: XLA would split the sums, and copy
    # both operands to do so.
    images = _divisor(len(x), most=_TERMS // max(1, patches[0, :, :, 0].size))
    patches, dy = (a.reshape(len(x) // images, -1, a.shape[3]) for a in (patches, dy))
    return jnp.einsum("bpk,bpo->bko", patches, dy).sum(0).reshape(kernel.shape)


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number up to a limit; at least 1."""
    return next(n for n in range(max(1, min(number, most)), 0, -1) if number % n == 0)
