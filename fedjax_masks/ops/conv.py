"""A 2-D convolution whose gradients are matrix products.

``lax.conv_general_dilated`` is the fastest convolution at the top level of a program, but not where
a federated simulator needs it. Inside a loop XLA's CPU backend does not rewrite its gradient to the
canonical layout and runs it tens of times slower; under ``vmap`` over the kernels of many clients
it becomes a grouped convolution, slow on every platform. The lowerings here keep to what is fast
in a loop and under ``vmap``: ordinary and batched matrix products.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Lowering = Literal["rows", "im2col", "lax"]
Pads = tuple[tuple[int, int], tuple[int, int]]
_NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: object = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: object = None,
    *,
    lowering: Lowering | None = None,
) -> jax.Array:
    """Drop-in for ``lax.conv_general_dilated``, for ``flax.linen.Conv(conv_general_dilated=...)``.

    Ungrouped, undilated NHWC/HWIO convolutions take :func:`conv2d`; all others go to ``lax``.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)  # type: ignore[arg-type]
    plain = numbers == _NHWC and feature_group_count == batch_group_count == 1
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    if plain and not dilated and precision is None and preferred_element_type is None:
        return conv2d(lhs, rhs, strides=window_strides, padding=padding, lowering=lowering)
    return lax.conv_general_dilated(
        lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,  # type: ignore[arg-type]
        feature_group_count, batch_group_count, precision, preferred_element_type,  # type: ignore[arg-type]
    )  # fmt: skip


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Sequence[int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
    lowering: Lowering | None = None,
) -> jax.Array:
    """Two-dimensional convolution (cross-correlation, as in ``lax``), equal to ``lax`` up to rounding."""
    if lowering is None:
        lowering = "rows" if jax.default_backend() == "cpu" else "im2col"
    if lowering not in ("rows", "im2col", "lax"):
        raise ValueError(f"lowering={lowering!r}: expected 'rows', 'im2col' or 'lax'")
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    pads: Pads = tuple((int(a), int(b)) for a, b in padding)  # type: ignore[assignment]
    if lowering == "lax":
        return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_NHWC)
    return _conv(x, kernel, tuple(strides), pads, lowering)


def _width_patches(x: jax.Array, kw: int, stride: int) -> jax.Array:
    """``[B, H, W, C]`` to ``[B, H, W', kw * C]``."""
    width = (x.shape[2] - kw) // stride + 1
    cuts = [x[:, :, j : j + (width - 1) * stride + 1 : stride] for j in range(kw)]
    return jnp.concatenate(cuts, axis=3) if kw > 1 else cuts[0]


def _rows(p: jax.Array, i: int, height: int, stride: int) -> jax.Array:
    return p[:, i : i + (height - 1) * stride + 1 : stride]


def _forward(x, kernel, strides, lowering):
    """Convolution without padding of an already padded input."""
    kh, kw, cin, cout = kernel.shape
    p = _width_patches(x, kw, strides[1])
    height = (x.shape[1] - kh) // strides[0] + 1
    rows = [_rows(p, i, height, strides[0]) for i in range(kh)]
    if lowering == "im2col":
        rows, kernel = [jnp.concatenate(rows, axis=3)], kernel.reshape(1, kh * kw * cin, cout)
    else:
        kernel = kernel.reshape(kh, kw * cin, cout)
    return functools.reduce(jnp.add, [r @ w for r, w in zip(rows, kernel)])


def _kernel_gradient(x, dy, kernel_shape, strides, lowering):
    kh, kw, cin, cout = kernel_shape
    p = _width_patches(x, kw, strides[1])
    rows = [_rows(p, i, dy.shape[1], strides[0]) for i in range(kh)]
    if lowering == "im2col":
        rows = [jnp.concatenate(rows, axis=3)]
    grads = [jnp.einsum("bhwk,bhwo->ko", r, dy) for r in rows]
    return jnp.stack(grads).reshape(kernel_shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x, kernel, strides, pads, lowering):
    return _forward(_pad(x, pads), kernel, strides, lowering)


def _pad(x, pads, dilation=(1, 1)):
    config = [(0, 0, 0), *((a, b, d - 1) for (a, b), d in zip(pads, dilation)), (0, 0, 0)]
    return x if not any(map(any, config)) else lax.pad(x, jnp.zeros((), x.dtype), config)


def _conv_fwd(x, kernel, strides, pads, lowering):
    return _conv(x, kernel, strides, pads, lowering), (x, kernel)


def _conv_bwd(strides, pads, lowering, residuals, dy):
    x, kernel = residuals
    dkernel = _kernel_gradient(_pad(x, pads), dy, kernel.shape, strides, lowering)
    # The input's gradient is the full correlation of the dilated output gradient with the flipped kernel.
    edges = []
    for axis in (0, 1):
        k, s, out = kernel.shape[axis], strides[axis], dy.shape[1 + axis]
        low = k - 1 - pads[axis][0]
        edges.append((low, x.shape[1 + axis] + k - 1 - low - ((out - 1) * s + 1)))
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dx = _forward(_pad(dy, edges, strides), flipped, (1, 1), lowering)
    return dx, dkernel


_conv.defvjp(_conv_fwd, _conv_bwd)
