"""A 2-D convolution whose gradients stay fast inside loops and under ``vmap``.

``lax.conv_general_dilated`` is fast at the top level of a program, but a simulator calls it inside
loops over clients and steps, where XLA's CPU backend no longer rewrites its gradients to the
layout its kernels know and runs them tens of times slower. Under ``vmap`` over the kernels of many
clients it becomes a grouped convolution, slow on every platform. The rules here state both
gradients in forms that need no rewriting.
"""

import functools
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_masks.ops import winograd

Lowering = Literal["canonical", "im2col", "winograd", "lax"]
Padding = str | Sequence[tuple[int, int]]
_NUMBERS = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Padding,
    *,
    lowering: Lowering | None = None,
    **options,
) -> jax.Array:
    """Convolves like ``lax.conv_general_dilated``; for ``flax.linen.Conv(conv_general_dilated=...)``.

    Args:
      lhs: Input, as ``lax`` takes it.
      rhs: Kernel, as ``lax`` takes it.
      window_strides: Strides of the spatial axes.
      padding: ``"SAME"``, ``"VALID"`` or ``(low, high)`` for each spatial axis.
      lowering: See :func:`conv2d`.
      **options: The other options of ``lax.conv_general_dilated``. Grouped or dilated convolutions,
        layouts other than NHWC/HWIO and set precisions are left to ``lax``.

    Returns:
      The convolution, shaped as ``lax`` shapes it.
    """
    set_options = {k: v for k, v in options.items() if v is not None}
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, set_options.pop("dimension_numbers", None))
    dilations = [*set_options.pop("lhs_dilation", ()), *set_options.pop("rhs_dilation", ())]
    groups = [set_options.pop(f"{kind}_group_count", 1) for kind in ("feature", "batch")]
    plain = not set_options and all(n == 1 for n in (*dilations, *groups)) and lhs.dtype == rhs.dtype
    if lhs.ndim == 4 and plain and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NUMBERS):
        return conv2d(lhs, rhs, strides=window_strides, padding=padding, lowering=lowering)
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Sequence[int] = (1, 1),
    padding: Padding = "SAME",
    lowering: Lowering | None = None,
) -> jax.Array:
    """Two-dimensional convolution (cross-correlation), equal to that of ``lax`` up to rounding.

    Args:
      x: ``[batch, height, width, in]``, floating point.
      kernel: ``[kernel_height, kernel_width, in, out]``, the dtype of ``x``.
      strides: Strides along height and width.
      padding: ``"SAME"``, ``"VALID"`` or ``((low, high), (low, high))``.
      lowering: ``"canonical"``: convolutions in the layout of XLA's CPU kernels and batched
        products for the kernel's gradient. ``"im2col"``: patches and one matrix product each way, which
        ``vmap`` over kernels turns into strided-batched products. ``"winograd"``: minimal filtering,
        for square kernels of 2 to 5 with stride 1. ``"lax"``: ``lax``'s own rules. By default
        ``"im2col"``, but on CPU only for images of few channels, else ``"winograd"`` where it halves
        the products, else ``"canonical"``.

    Returns:
      ``[batch, out_height, out_width, out]``.

    Raises:
      ValueError: ``lowering`` is none of these, or does not fit the kernel.

    Example:
      >>> conv2d(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1)), padding="VALID")[0, :, :, 0]
      Array([[18., 18.],
             [18., 18.]], dtype=float32)
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    pads, strides = tuple((int(low), int(high)) for low, high in padding), tuple(strides)
    if lowering is None:
        lowering = _choose(x.shape, kernel.shape, strides, pads)
    if lowering not in get_args(Lowering):
        raise ValueError(f"lowering={lowering!r}: expected one of {', '.join(get_args(Lowering))}")
    if lowering == "lax":
        return _lax_conv(x, kernel, strides, pads)
    if lowering == "winograd" and not winograd.serves(kernel.shape[:2], strides):
        raise ValueError(
            f"lowering='winograd': strides {strides} and kernel {kernel.shape[:2]}; accepted are "
            "strides (1, 1) and square kernels of 2 to 5"
        )
    return _conv(x, kernel, strides, pads, lowering)


def _choose(x_shape, kernel_shape, strides, pads) -> Lowering:
    """The fastest of the lowerings as measured inside a client's loop, on CPUs with AVX2."""
    if jax.default_backend() != "cpu" or x_shape[3] <= 4:
        return "im2col"
    out_size = [n + sum(p) - k + 1 for n, p, k in zip(x_shape[1:3], pads, kernel_shape)]
    size = kernel_shape[:2]
    cheaper = winograd.serves(size, strides) and winograd.saves(out_size, size)
    return "winograd" if cheaper else "canonical"


def _lax_conv(x, kernel, strides, pads):
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_NUMBERS)


def _pad(x, pads, dilation=(1, 1)):
    config = [(0, 0, 0), *((*p, d - 1) for p, d in zip(pads, dilation)), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _patches(x, axis, size, stride, out):
    """Windows of ``size`` along ``axis``, side by side in the last axis: ``[..., size * channels]``."""
    windows = (lax.slice_in_dim(x, i, i + (out - 1) * stride + 1, stride, axis) for i in range(size))
    return jnp.concatenate(list(windows), axis=-1)


def _im2col(x, kernel_size, strides, out_size):
    for axis in (1, 0):  # width first, so that the last axis runs over (height, width, channel)
        x = _patches(x, axis + 1, kernel_size[axis], strides[axis], out_size[axis])
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x, kernel, strides, pads, lowering):
    return _conv_fwd(x, kernel, strides, pads, lowering)[0]


def _conv_fwd(x, kernel, strides, pads, lowering):
    y, kept = conv2d_forward(x, kernel, strides, pads, lowering)
    return y, (kept, kernel)


def _conv_bwd(strides, pads, lowering, residuals, dy):
    kept, kernel = residuals
    dy_form = winograd.output_gradient(dy, len(kernel)) if lowering == "winograd" else dy
    dx = conv2d_input_gradient(dy, kernel, kept, dy_form, strides, pads, lowering)
    return dx, conv2d_kernel_gradient(dy, kernel, kept, dy_form, strides, pads, lowering)


_conv.defvjp(_conv_fwd, _conv_bwd)

# Each is one equation in the traced program, of which the name says what it is: a convolution has the
# FLOPs of its definition, however it is computed.
_named = functools.partial(jax.jit, static_argnames=("strides", "pads", "lowering"))


@_named
def conv2d_forward(x, kernel, strides, pads, lowering):
    """The output, and what the kernel's gradient needs of the input."""
    if lowering == "winograd":
        return winograd.forward(_pad(x, pads), kernel)
    return _correlate(_pad(x, pads), kernel, strides, lowering), x


@_named
def conv2d_input_gradient(dy, kernel, kept, dy_form, strides, pads, lowering):
    """The dilated output gradient, fully correlated with the flipped kernel."""
    if lowering == "winograd":
        padded = [n + k - 1 for n, k in zip(dy.shape[1:3], kernel.shape)]
        dx = winograd.input_gradient(dy_form, kernel, padded)
        return _pad(dx, [(-low, -high) for low, high in pads])
    low = [k - 1 - p[0] for k, p in zip(kernel.shape, pads)]
    high = [
        n + k - 1 - a - (o - 1) * s - 1
        for n, k, a, o, s in zip(kept.shape[1:3], kernel.shape, low, dy.shape[1:3], strides)
    ]
    spread = _pad(dy, list(zip(low, high)), strides)
    return _correlate(spread, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), (1, 1), lowering)


@_named
def conv2d_kernel_gradient(dy, kernel, kept, dy_form, strides, pads, lowering):
    """The input's patches times the output gradient."""
    if lowering == "winograd":
        return winograd.kernel_gradient(kept, dy_form, len(kernel))
    x, (kh, kw), (height, width) = _pad(kept, pads), kernel.shape[:2], dy.shape[1:3]
    if lowering == "im2col":
        patches = _im2col(x, (kh, kw), strides, (height, width))
        return jnp.einsum("bhwk,bhwo->ko", patches, dy).reshape(kernel.shape)
    # One product per image and kernel row: its operands fit the cache, one long product's do not.
    patches = _patches(x, 2, kw, strides[1], width)
    rows = (lax.slice_in_dim(patches, i, i + (height - 1) * strides[0] + 1, strides[0], 1) for i in range(kh))
    flat = [r.reshape(len(x), height * width, -1) for r in rows]
    dy = dy.reshape(len(x), height * width, -1)
    return jnp.stack([jnp.einsum("bpk,bpo->bko", r, dy).sum(0) for r in flat]).reshape(kernel.shape)


def _correlate(x, kernel, strides, lowering):
    """Convolves an input that is already padded."""
    if lowering == "canonical":
        return _lax_conv(x, kernel, strides, ((0, 0), (0, 0)))
    out_size = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:3], kernel.shape, strides)]
    return _im2col(x, kernel.shape[:2], strides, out_size) @ kernel.reshape(-1, kernel.shape[3])
