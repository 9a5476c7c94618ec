"""A 2-D convolution whose gradients stay fast inside loops and under ``vmap``.

``lax.conv_general_dilated`` is fast at the top level of a program, but a simulator calls it inside
loops over clients and steps, where XLA's CPU backend no longer rewrites its gradients to the
layout its kernels know and runs them tens of times slower. Under ``vmap`` over the kernels of many
clients it becomes a grouped convolution, slow on every platform. The rules here state both
gradients in forms that need no rewriting.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_masks.ops import by_lax, canonical, im2col, winograd
from fedjax_masks.ops.skeleton import gather, scatter

Lowering = Literal["canonical", "im2col", "winograd", "lax"]
Padding = str | Sequence[tuple[int, int]]


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
    if (
        lhs.ndim == 4
        and plain
        and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, by_lax.NUMBERS)
    ):
        return conv2d(lhs, rhs, strides=window_strides, padding=padding, lowering=lowering)
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Sequence[int] = (1, 1),
    padding: Padding = "SAME",
    lowering: Lowering | None = None,
    skeleton: jax.Array | None = None,
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
        ``"im2col"``, but on CPU ``"winograd"`` where it halves the products, save for the input's
        gradient from few outputs, and ``"canonical"`` for other kernels with stride 1 and, under a
        stride, for the gradients of many outputs.
      skeleton: ``int32[k]``: outputs, ascending. Only these have gradients, computed for these only:
        see :mod:`fedjax_masks.ops.skeleton`. None is all.

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
    if lowering is not None and lowering not in get_args(Lowering):
        raise ValueError(f"lowering={lowering!r}: expected one of {', '.join(get_args(Lowering))}")
    if lowering == "lax" and skeleton is None:
        return by_lax.convolve(x, kernel, strides, pads)
    if lowering == "winograd" and not winograd.serves(kernel.shape[:2], strides):
        raise ValueError(
            f"lowering='winograd': strides {strides} and kernel {kernel.shape[:2]}; accepted are "
            "strides (1, 1) and square kernels of 2 to 5"
        )
    if lowering is not None:
        return _conv(x, kernel, skeleton, strides, pads, Lowerings(lowering, lowering, lowering))
    outputs = kernel.shape[3] if skeleton is None else len(skeleton)
    lowerings = _choose(x.shape, (*kernel.shape[:3], outputs), strides, pads)
    return _conv(x, kernel, skeleton, strides, pads, lowerings)


class Lowerings(NamedTuple):
    """Of the three products of a convolution."""

    forward: Lowering
    input_gradient: Lowering
    kernel_gradient: Lowering


def _choose(x_shape, kernel_shape, strides, pads) -> Lowerings:
    """The fastest lowerings as measured inside a client's loop, on CPUs with AVX2."""
    inputs, outputs = kernel_shape[2:]
    size = kernel_shape[:2]
    if jax.default_backend() != "cpu" or inputs <= 4 or size == (1, 1):
        return Lowerings("im2col", "im2col", "im2col")
    out_size = [(n + sum(p) - k) // s + 1 for n, p, k, s in zip(x_shape[1:3], pads, size, strides)]
    if winograd.serves(size, strides) and winograd.saves(out_size, size):
        return Lowerings("winograd", "im2col" if 9 * outputs <= inputs else "winograd", "winograd")
    if tuple(strides) == (1, 1):
        return Lowerings("canonical", "canonical", "canonical")
    back: Lowering = "im2col" if outputs <= inputs or math.prod(out_size) <= 64 else "canonical"
    return Lowerings("im2col", back, back)


# Each lowering is a module of four functions, of which forward and backward below are made.
_MODULES = {"canonical": canonical, "im2col": im2col, "winograd": winograd, "lax": by_lax}


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _conv(x, kernel, skeleton, strides, pads, lowerings):
    del skeleton
    return conv2d_forward(x, kernel, strides, pads, lowerings.forward)[0]


def _conv_fwd(x, kernel, skeleton, strides, pads, lowerings):
    y, kept = conv2d_forward(x, kernel, strides, pads, lowerings.forward)
    if lowerings.kernel_gradient != lowerings.forward:
        kept = x  # which is what all but winograd keep
    # What is kept of the input need not have its shape; an array without elements remembers it.
    return y, (kept, kernel, skeleton, jnp.zeros((*x.shape[1:3], 0)))


def _conv_bwd(strides, pads, lowerings, residuals, dy):
    kept, whole, skeleton, like = residuals
    kernel, in_size = whole, like.shape[:2]
    if skeleton is not None:
        kernel, dy = gather(whole, skeleton), gather(dy, skeleton)
    _, to_input, to_kernel = lowerings
    forms = {
        lowering: _MODULES[lowering].output_gradient(dy, kernel.shape[:2], strides, pads, in_size)
        for lowering in dict.fromkeys((to_input, to_kernel))
    }
    dx = conv2d_input_gradient(dy, kernel, forms[to_input], strides, pads, in_size, to_input)
    dk = conv2d_kernel_gradient(dy, kernel, kept, forms[to_kernel], strides, pads, to_kernel)
    return dx, dk if skeleton is None else scatter(dk, skeleton, whole.shape[3]), None


_conv.defvjp(_conv_fwd, _conv_bwd)

# Each is one equation in the traced program, of which the name says what it is: a convolution has the
# FLOPs of its definition, however it is computed.
_named = functools.partial(jax.jit, static_argnames=("strides", "pads", "lowering"))


@_named
def conv2d_forward(x, kernel, strides, pads, lowering):
    """The output, and what the kernel's gradient needs of the input."""
    return _MODULES[lowering].forward(x, kernel, strides, pads)


@functools.partial(jax.jit, static_argnames=("strides", "pads", "in_size", "lowering"))
def conv2d_input_gradient(dy, kernel, form, strides, pads, in_size, lowering):
    """Of the output's gradient in the lowering's form; ``dy`` itself tells its shape."""
    del dy
    return _MODULES[lowering].input_gradient(form, kernel, strides, pads, in_size)


@_named
def conv2d_kernel_gradient(dy, kernel, kept, form, strides, pads, lowering):
    """Of what the forward pass kept and the output's gradient in the lowering's form."""
    del dy
    return _MODULES[lowering].kernel_gradient(kept, form, kernel, strides, pads)
