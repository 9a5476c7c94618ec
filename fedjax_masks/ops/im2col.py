"""Convolution by patches: one matrix product in each direction.

The output is the input's patches times the kernel. Backwards, patches of the output's gradient
serve both gradients: times the flipped kernel they are the input's gradient, and their transpose
times the input is the kernel's. So both cost in proportion to the number of outputs, which makes the
gradient of a few filters cheap. (Where there are fewer inputs than outputs, as in a first layer, the
input's patches are the smaller ones.) ``vmap`` over kernels turns the products into strided-batched
ones.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_masks.ops.by_lax import Pads

Form = tuple[jax.Array, list[jax.Array]]


class _Phase(NamedTuple):
    """Along one axis, the input positions that meet the same taps of the kernel under a stride.

    Attributes:
      offset: The first such position of the unpadded input; the others follow by the stride.
      count: How many there are.
      tap: The first tap they meet; the others follow by the stride.
      taps: How many they meet.
      first: The output that the first position meets through the first tap.
    """

    offset: int
    count: int
    tap: int
    taps: int
    first: int


def forward(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads
) -> tuple[jax.Array, jax.Array]:
    """``[batch, out_height, out_width, out]``, and the input."""
    patches = _input_patches(x, kernel.shape[:2], strides, pads)
    return patches @ kernel.reshape(-1, kernel.shape[3]), x


def output_gradient(
    dy: jax.Array, kernel_size: Sequence[int], strides: Sequence[int], pads: Pads, in_size: Sequence[int]
) -> Form:
    """The output's gradient, and its patches for every phase that meets any tap: ``[..., taps * out]``."""
    return dy, [
        _backward_windows(_backward_windows(dy, 2, columns), 1, rows)
        for rows, columns in _phases(kernel_size, strides, pads, in_size)
    ]


def input_gradient(
    form: Form, kernel: jax.Array, strides: Sequence[int], pads: Pads, in_size: Sequence[int]
) -> jax.Array:
    """``[batch, *in_size, in]``, from what :func:`output_gradient` gave."""
    parts = []
    phases = _phases(kernel.shape[:2], strides, pads, in_size)
    for (rows, columns), patch in zip(phases, form[1], strict=True):
        taps = _taps(kernel, strides, rows, columns)
        part = patch @ taps.swapaxes(2, 3).reshape(-1, kernel.shape[2])
        parts.append(_spread(part, 1, (rows.offset, columns.offset), strides, in_size))
    return sum(parts[1:], start=parts[0])


def kernel_gradient(
    x: jax.Array, form: Form, kernel: jax.Array, strides: Sequence[int], pads: Pads
) -> jax.Array:
    """Shaped like the kernel, from the input and what :func:`output_gradient` gave."""
    dy, _ = form
    if kernel.shape[2] < kernel.shape[3]:
        patches = _input_patches(x, kernel.shape[:2], strides, pads)
        product = dy.reshape(-1, dy.shape[3]).T @ patches.reshape(-1, patches.shape[3])
        return product.T.reshape(kernel.shape)
    # Long sums are fastest with both operands in the product's own order. The gradient's patches come
    # transposed for the price of transposing the gradient.
    dy = jnp.moveaxis(dy, 3, 0)
    parts = []
    for rows, columns in _phases(kernel.shape[:2], strides, pads, x.shape[1:3]):
        seen = x[:, rows.offset :: strides[0], columns.offset :: strides[1]]
        patches = _backward_windows(_backward_windows(dy, 3, columns, 0), 2, rows, 0)
        product = patches.reshape(len(patches), -1) @ seen.reshape(-1, seen.shape[3])
        part = jnp.moveaxis(product.reshape(rows.taps, columns.taps, kernel.shape[3], -1), 2, 3)
        parts.append(_spread(part, 0, (rows.tap, columns.tap), strides, kernel.shape[:2]))
    return sum(parts, start=jnp.zeros_like(kernel))


def _spread(
    part: jax.Array, axis: int, offsets: Sequence[int], strides: Sequence[int], sizes: Sequence[int]
) -> jax.Array:
    """A phase at its places along two axes, zero elsewhere: sums of these are fused, scatters are not."""
    config = [(0, 0, 0)] * part.ndim
    for i, (offset, stride, size) in enumerate(zip(offsets, strides, sizes), axis):
        config[i] = (offset, size - offset - (part.shape[i] - 1) * stride - 1, stride - 1)
    return lax.pad(part, jnp.zeros((), part.dtype), config)


def _input_patches(x: jax.Array, kernel_size: Sequence[int], strides: Sequence[int], pads: Pads) -> jax.Array:
    """``[batch, out_height, out_width, kernel_height * kernel_width * in]``."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    lasts = [(n - size) // stride * stride + 1 for n, size, stride in zip(x.shape[1:3], kernel_size, strides)]
    windows = [
        x[:, row : row + lasts[0] : strides[0], column : column + lasts[1] : strides[1]]
        for row, column in np.ndindex(*kernel_size)
    ]
    return jnp.concatenate(windows, axis=-1)


def _phases(
    kernel_size: Sequence[int], strides: Sequence[int], pads: Pads, in_size: Sequence[int]
) -> Iterator[tuple[_Phase, _Phase]]:
    rows, columns = map(_axis_phases, kernel_size, strides, pads, in_size)
    yield from ((row, column) for row in rows for column in columns)


def _axis_phases(size: int, stride: int, pad: tuple[int, int], length: int) -> list[_Phase]:
    """Position ``p`` and output ``o`` meet in the tap ``p + low - stride * o``."""
    low, _ = pad
    phases = []
    for tap in range(min(stride, size)):
        offset = (tap - low) % stride
        if offset < length:
            count = -(-(length - offset) // stride)
            phases.append(
                _Phase(offset, count, tap, -(-(size - tap) // stride), (offset + low - tap) // stride)
            )
    return phases


def _taps(kernel: jax.Array, strides: Sequence[int], rows: _Phase, columns: _Phase) -> jax.Array:
    return kernel[rows.tap :: strides[0], columns.tap :: strides[1]]


def _backward_windows(dy: jax.Array, axis: int, phase: _Phase, stack: int = -1) -> jax.Array:
    """For each position and tap, the output that they meet; the taps come before the ``stack`` axis."""
    low = max(0, phase.taps - 1 - phase.first)
    high = max(0, phase.first + phase.count - dy.shape[axis])
    config: Any = [(0, 0)] * dy.ndim
    config[axis] = (low, high)
    dy = jnp.pad(dy, config)
    starts = [phase.first - tap + low for tap in range(phase.taps)]
    windows = [lax.slice_in_dim(dy, start, start + phase.count, axis=axis) for start in starts]
    return jnp.concatenate(windows, axis=stack)
