"""Minimal-filtering convolution: fewer multiplications, and products of one size in every direction.

Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, arXiv 1509.09308.
Each axis is cut into overlapping tiles of six values. Seen as polynomials and evaluated at the
points 0, 1, -1, 2, -2 and infinity, tile and kernel are multiplied point by point. For a 3 x 3
kernel that takes 36 products where the definition takes 144, for a 5 x 5 kernel 36 for 100. The
transforms serve the gradients too: each is the other's transpose, and the evaluated input, kept
from the forward pass, is what the kernel's gradient needs.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_masks.ops.by_lax import Pads

TILE = 6
_POINTS = np.array([0.0, 1.0, -1.0, 2.0, -2.0])


class _Transforms(NamedTuple):
    """Along one axis; see section 4 of the paper, whose B^T, G and A these are.

    Attributes:
      data: ``[6, 6]``: evaluates a tile.
      kernel: ``[6, size]``: evaluates a kernel.
      output: ``[6, stride]``: its transpose turns products into the tile's outputs.
    """

    data: np.ndarray
    kernel: np.ndarray
    output: np.ndarray


@functools.cache
def _transforms(size: int) -> _Transforms:
    """Of a kernel of ``size`` values; a tile gives ``7 - size`` outputs."""
    outputs = TILE + 1 - size
    others = [np.delete(_POINTS, i) for i in range(len(_POINTS))]
    # Lagrange's basis: each row vanishes at all points but one; the last one at all of them.
    data = np.zeros((TILE, TILE))
    data[:-1, :-1] = [np.poly(rest)[::-1] for rest in others]
    data[-1] = np.poly(_POINTS)[::-1]
    scale = [np.prod(point - rest) for point, rest in zip(_POINTS, others)]
    at_infinity = np.eye(TILE)[-1:]
    kernel = np.vstack([np.vander(_POINTS, size, True) / np.c_[scale], at_infinity[:, -size:]])
    output = np.vstack([np.vander(_POINTS, outputs, True), at_infinity[:, -outputs:]])
    return _Transforms(data, kernel, output)


def serves(kernel_size: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether there are transforms for a convolution: square kernels of 2 to 5 with stride 1."""
    height, width = kernel_size
    return height == width and 2 <= height < TILE and tuple(strides) == (1, 1)


def saves(out_size: Sequence[int], kernel_size: Sequence[int]) -> bool:
    """Whether it takes at most half the products of the definition."""
    height, width = kernel_size
    tiles = math.prod(-(-n // (TILE + 1 - height)) for n in out_size)
    return 2 * TILE**2 * tiles <= math.prod(out_size) * height * width


def forward(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads
) -> tuple[jax.Array, jax.Array]:
    """``[batch, out_height, out_width, out]``, and the input at the points.

    Rounding is about ten times that of the plain sum: in float32, by the root of the mean square, some
    3e-7 of the largest value.

    Example:
      >>> y, _ = forward(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1)), (1, 1), [(0, 0), (0, 0)])
      >>> y[0, :, :, 0].round(4)
      Array([[18., 18.],
             [18., 18.]], dtype=float32)
    """
    del strides
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    data, _, output = _transforms(kernel.shape[0])
    out_size = [n - kernel.shape[0] + 1 for n in x.shape[1:3]]
    seen = _evaluate(x, data, output.shape[1], out_size)
    products = seen @ _evaluate_kernel(kernel)
    return _assemble(products, output, output.shape[1], out_size, out_size), seen


def output_gradient(
    dy: jax.Array, kernel_size: Sequence[int], strides: Sequence[int], pads: Pads, in_size: Sequence[int]
) -> jax.Array:
    """The output's gradient at the points."""
    del strides, pads, in_size
    output = _transforms(kernel_size[0]).output
    return _evaluate(dy, output, output.shape[1], dy.shape[1:3])


def input_gradient(
    grads: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads, in_size: Sequence[int]
) -> jax.Array:
    """``[batch, *in_size, in]``, from what :func:`output_gradient` gave."""
    del strides
    data, _, output = _transforms(kernel.shape[0])
    products = grads @ _evaluate_kernel(kernel).swapaxes(1, 2)
    padded = [n + sum(p) for n, p in zip(in_size, pads)]
    out_size = [n - kernel.shape[0] + 1 for n in padded]
    dx = _assemble(products, data, output.shape[1], out_size, padded)
    rows, columns = (slice(low, low + n) for (low, _), n in zip(pads, in_size))
    return dx[:, rows, columns]


def kernel_gradient(
    seen: jax.Array, grads: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads
) -> jax.Array:
    """Shaped like the kernel, from what :func:`forward` and :func:`output_gradient` gave."""
    del strides, pads
    matrix = jnp.asarray(_transforms(kernel.shape[0]).kernel.T, grads.dtype)
    products = (grads.swapaxes(1, 2) @ seen).reshape(TILE, -1)
    # One axis after the other: both at once, as for the kernel, would round more.
    half_done = (matrix @ products).reshape(len(matrix), TILE, -1)
    dk = (matrix @ half_done).reshape(*kernel.shape[:2], kernel.shape[3], kernel.shape[2])
    return dk.swapaxes(2, 3)


def _evaluate_kernel(kernel):
    """``[36, in, out]``: along both axes in one product, which leaves the others in their place."""
    along_one = _transforms(kernel.shape[0]).kernel
    matrix = jnp.asarray(np.kron(along_one, along_one), kernel.dtype)
    return (matrix @ kernel.reshape(matrix.shape[1], -1)).reshape(-1, *kernel.shape[2:])


def _combine(coefficients, arrays):
    """The sum of ``coefficient * array``, without the terms that are zero."""
    terms = (a if c == 1 else float(c) * a for c, a in zip(coefficients, arrays) if c)
    return functools.reduce(jnp.add, terms)


def _tiles(out_size, stride):
    return [-(-n // stride) for n in out_size]


def _evaluate(x, matrix, stride, out_size):
    """Tiles of both axes at all points: ``[36, batch * tile rows * tile columns, channels]``.

    Flat, as both products that read it take it: XLA would compute it once for each shape.
    """
    tiles = _tiles(out_size, stride)
    reach = [t * stride - stride + matrix.shape[1] - n for t, n in zip(tiles, x.shape[1:3])]
    x = jnp.pad(x, [(0, 0), *((0, max(r, 0)) for r in reach), (0, 0)])
    for count in reversed(tiles):  # width, then height, which the stacked axis has moved to its place
        last = (count - 1) * stride + 1
        parts = [lax.slice_in_dim(x, i, i + last, stride, axis=2) for i in range(matrix.shape[1])]
        x = jnp.stack([_combine(row, parts) for row in matrix])
    return x.reshape(TILE**2, -1, x.shape[-1])


def _assemble(y, matrix, stride, out_size, size):
    """The transpose of :func:`_evaluate`: adds overlapping tiles up to ``[batch, *size, channels]``."""
    y = y.reshape(TILE, TILE, -1, *_tiles(out_size, stride), y.shape[-1])
    overlap = -(-matrix.shape[1] // stride) - 1
    for length in size:
        parts = [_combine(column, y) for column in matrix.T]
        # Value i of a tile lies at i % stride of the tile that is i // stride further on.
        places = [
            functools.reduce(jnp.add, [_shift(p, s, overlap) for s, p in enumerate(parts[i::stride])])
            for i in range(stride)
        ]
        y = jnp.stack(places, axis=3)
        y = y.reshape(*y.shape[:2], -1, *y.shape[4:])[:, :, :length]
    return y


def _shift(part, steps, room):
    """Moves tiles by ``steps`` along their axis, which grows by ``room``."""
    pads = [(0, 0)] * part.ndim
    pads[2] = (steps, room - steps)
    return jnp.pad(part, pads) if room else part
