"""Convolution by patches: one matrix product for the output and for each gradient.

The output is the product of the input's patches and the kernel. Patches of the output's gradient serve both
gradients: their product with the flipped kernel is the input's gradient, and the product of their transpose
with the input is the kernel's gradient. The cost of both is proportional to the number of outputs, so that
gradients of a few filters are cheap. Where there are fewer inputs than outputs, as in a first layer, the
kernel's gradient uses the input's patches, which are smaller. ``vmap`` over kernels turns the products into
strided-batched products.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_masks.core import target
from fedjax_masks.ops.by_lax import Pads

Form = tuple[jax.Array, list[jax.Array]]
"""The output's gradient, and its patches for each pair of phases."""


class _Phase(NamedTuple):
    """The input positions along one axis that a stride connects to the same taps of the kernel.

    Attributes:
      offset: The first position in the unpadded input; the next positions follow by the stride.
      count: The number of positions.
      tap: The first tap; the next taps follow by the stride.
      taps: The number of taps.
      first: The output that the first tap connects to the first position.
    """

    offset: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride] -- tuples have a method count
    tap: int
    taps: int
    first: int


def forward(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads
) -> tuple[jax.Array, jax.Array]:
    """The output, ``[batch, out_height, out_width, out]``, and the input as the residual."""
    patches = input_patches(x, kernel.shape[:2], strides, pads)
    return patches @ kernel.reshape(-1, kernel.shape[3]), x


def output_gradient(
    dy: jax.Array, kernel_size: Sequence[int], strides: Sequence[int], pads: Pads, in_size: Sequence[int]
) -> Form:
    """The output's gradient, and its patches ``[..., taps * out]`` for each pair of phases with taps."""
    return dy, [
        _backward_windows(_backward_windows(dy, 2, columns), 1, rows)
        for rows, columns in _phases(kernel_size, strides, pads, in_size)
    ]


def input_gradient(
    form: Form, kernel: jax.Array, strides: Sequence[int], pads: Pads, in_size: Sequence[int]
) -> jax.Array:
    """The input's gradient, ``[batch, *in_size, in]``, from the result of :func:`output_gradient`."""
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
    """The kernel's gradient, from the input and the result of :func:`output_gradient`."""
    dy, _ = form
    if kernel.shape[2] < kernel.shape[3]:
        patches = input_patches(x, kernel.shape[:2], strides, pads)
        product = dy.reshape(-1, dy.shape[3]).T @ patches.reshape(-1, patches.shape[3])
        return product.T.reshape(kernel.shape)
    # Long sums are fastest with both operands in the product's own order. Transposing the small gradient
    # first gives transposed patches at no further cost.
    dy = jnp.moveaxis(dy, 3, 0)
    parts = []
    for rows, columns in _phases(kernel.shape[:2], strides, pads, x.shape[1:3]):
        inputs = x[:, rows.offset :: strides[0], columns.offset :: strides[1]]
        if target.platform() == "gpu" and max(strides) > 1:
            # XLA aborts where it fuses the strided slice into a product with few columns.
            inputs = lax.optimization_barrier(inputs)
        patches = _backward_windows(_backward_windows(dy, 3, columns, 0), 2, rows, 0)
        product = patches.reshape(len(patches), -1) @ inputs.reshape(-1, inputs.shape[3])
        part = jnp.moveaxis(product.reshape(rows.taps, columns.taps, kernel.shape[3], -1), 2, 3)
        parts.append(_spread(part, 0, (rows.tap, columns.tap), strides, kernel.shape[:2]))
    return sum(parts, start=jnp.zeros_like(kernel))


def _spread(
    part: jax.Array, axis: int, offsets: Sequence[int], strides: Sequence[int], sizes: Sequence[int]
) -> jax.Array:
    """Puts the values of a phase at their positions along two axes, with zeros elsewhere."""
    # A padded array per phase, and a sum of them: XLA fuses sums of pads, and does not fuse scatters.
    config = [(0, 0, 0)] * part.ndim
    for i, (offset, stride, size) in enumerate(zip(offsets, strides, sizes), axis):
        config[i] = (offset, size - offset - (part.shape[i] - 1) * stride - 1, stride - 1)
    return lax.pad(part, jnp.zeros((), part.dtype), config)


def input_patches(x: jax.Array, kernel_size: Sequence[int], strides: Sequence[int], pads: Pads) -> jax.Array:
    """The input's patches, ``[batch, out_height, out_width, kernel_height * kernel_width * in]``."""
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
    """The phases of one axis; tap ``p + low - stride * o`` connects position ``p`` and output ``o``."""
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
    """The gradient of the output that each tap connects to each position; taps precede the ``stack`` axis."""
    low = max(0, phase.taps - 1 - phase.first)
    high = max(0, phase.first + phase.count - dy.shape[axis])
    pads = [(low, high) if number == axis else (0, 0) for number in range(dy.ndim)]
    dy = jnp.pad(dy, pads)
    starts = [phase.first - tap + low for tap in range(phase.taps)]
    windows = [lax.slice_in_dim(dy, start, start + phase.count, axis=axis) for start in starts]
    return jnp.concatenate(windows, axis=stack)
