"""Convolution with the gradients of ``lax``.

This module, ``canonical``, ``col2im``, ``im2col`` and ``winograd`` are the lowerings of
:mod:`fedjax_masks.ops.conv`. Each has the same four functions. ``forward`` returns the output and a residual
of the input for ``kernel_gradient``. ``output_gradient`` brings the output's gradient to a form that both
gradients need.
"""

from collections.abc import Sequence

import jax
from jax import lax

Pads = Sequence[tuple[int, int]]
NUMBERS = ("NHWC", "HWIO", "NHWC")


def convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads) -> jax.Array:
    """The convolution, ``[batch, out_height, out_width, out]``."""
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NUMBERS)


def forward(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads
) -> tuple[jax.Array, jax.Array]:
    """The output, ``[batch, out_height, out_width, out]``, and the input as the residual."""
    return convolve(x, kernel, strides, pads), x


def output_gradient(
    dy: jax.Array, kernel_size: Sequence[int], strides: Sequence[int], pads: Pads, in_size: Sequence[int]
) -> jax.Array:
    """Returns the output's gradient unchanged."""
    del kernel_size, strides, pads, in_size
    return dy


def input_gradient(
    dy: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads, in_size: Sequence[int]
) -> jax.Array:
    """The input's gradient, ``[batch, *in_size, in]``."""
    like = jax.ShapeDtypeStruct((len(dy), *in_size, kernel.shape[2]), dy.dtype)
    (dx,) = jax.linear_transpose(lambda x: convolve(x, kernel, strides, pads), like)(dy)
    return dx


def kernel_gradient(
    x: jax.Array, dy: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads
) -> jax.Array:
    """The kernel's gradient."""
    (dk,) = jax.linear_transpose(lambda kernel: convolve(x, kernel, strides, pads), kernel)(dy)
    return dk
