"""A 2-D convolution with gradients that stay fast inside loops and under ``vmap``.

``lax.conv_general_dilated`` is fast at the top level of a program. A simulator calls it inside loops over
clients and steps, where XLA's CPU backend does not rewrite the gradients to the layout of its kernels, and
runs them 30 to 45 times slower. Under ``vmap`` over the kernels of many clients, the convolution becomes a
grouped convolution, which is slow on CPU and CUDA. The gradient rules of this module need no rewriting.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_masks.core import target
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.options import check
from fedjax_masks.core.types import PyTree
from fedjax_masks.ops import by_lax, canonical, col2im, im2col, winograd
from fedjax_masks.ops.skeleton import gather, scatter

Lowering = Literal["canonical", "im2col", "col2im", "winograd", "lax"]
Padding = str | Sequence[tuple[int, int]]
Strides = tuple[int, ...]


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Padding,
    *,
    lowering: Lowering | None = None,
    **options: Any,
) -> jax.Array:
    """Convolves like ``lax.conv_general_dilated``; for ``flax.linen.Conv(conv_general_dilated=...)``.

    Args:
      lhs: Input, as in ``lax``.
      rhs: Kernel, as in ``lax``.
      window_strides: Strides of the spatial axes.
      padding: ``"SAME"``, ``"VALID"`` or ``(low, high)`` for each spatial axis.
      lowering: See :func:`conv2d`.
      **options: The other options of ``lax.conv_general_dilated``. ``lax`` computes grouped and dilated
        convolutions, layouts other than NHWC/HWIO, and convolutions with a set precision.

    Returns:
      The convolution, with the shape as in ``lax``.
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
      lowering: ``"canonical"``: convolutions in the layout of XLA's CPU kernels, and batched products for
        the kernel's gradient. ``"im2col"``: patches and matrix products, which ``vmap`` over kernels turns
        into strided-batched products; ``"col2im"``: the same, with gradients from patches of the input
        instead of the output's gradient. ``"winograd"``: minimal filtering, for square kernels of 2 to 5
        with stride 1. ``"lax"``: the rules of ``lax``. None chooses ``"im2col"``, with the gradients of
        ``"col2im"`` where there are fewer inputs than outputs, except on CPU. There it chooses
        ``"winograd"`` where that halves the number of products, except for the input's gradient from few
        outputs; and ``"canonical"`` for other kernels with stride 1 and, with larger strides, for the
        gradients of many outputs.
      skeleton: ``int32[k]``: the outputs that have gradients, ascending; see
        :mod:`fedjax_masks.ops.skeleton`. None means all outputs.

    Returns:
      ``[batch, out_height, out_width, out]``.

    Raises:
      UserError: ``lowering`` does not exist, or does not fit the kernel.

    Example:
      >>> conv2d(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1)), padding="VALID")[0, :, :, 0]
      Array([[18., 18.],
             [18., 18.]], dtype=float32)
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    pads, strides = tuple((int(low), int(high)) for low, high in padding), tuple(strides)
    check("lowering", lowering, Lowering | None)
    if lowering == "lax" and skeleton is None:
        return by_lax.convolve(x, kernel, strides, pads)
    if lowering == "winograd" and not winograd.supports(kernel.shape[:2], strides):
        raise UserError(
            "lowering='winograd': must have strides (1, 1) and a square kernel of 2 to 5, and gets strides "
            f"{strides} and a kernel {kernel.shape[:2]}; choose another lowering"
        )
    if lowering is not None:
        return _conv(x, kernel, skeleton, _Form(strides, pads, Lowerings(lowering, lowering, lowering)))
    outputs = kernel.shape[3] if skeleton is None else len(skeleton)
    lowerings = _choose(x.shape, (*kernel.shape[:3], outputs), strides, pads)
    return _conv(x, kernel, skeleton, _Form(strides, pads, lowerings))


class Lowerings(NamedTuple):
    """The lowerings of a convolution's output and of its two gradients."""

    forward: Lowering
    input_gradient: Lowering
    kernel_gradient: Lowering


def _choose(
    x_shape: Sequence[int], kernel_shape: Sequence[int], strides: Strides, pads: by_lax.Pads
) -> Lowerings:
    """The fastest lowerings: as measured in a client's loop on CPUs with AVX2, elsewhere by estimate."""
    inputs, outputs = kernel_shape[2:]
    size = tuple(kernel_shape[:2])
    # Off the CPU, a vmap over clients needs strided-batched products, and memory is the bound: patches with
    # fewer channels are smaller.
    if not target.is_cpu():
        gradient: Lowering = "col2im" if inputs < outputs else "im2col"
        return Lowerings("im2col", gradient, gradient)
    # Patches of a few inputs are cheap, and a kernel of one pixel is a matrix product.
    if inputs <= 4 or size == (1, 1):
        return Lowerings("im2col", "im2col", "im2col")
    out_size = [(n + sum(p) - k) // s + 1 for n, p, k, s in zip(x_shape[1:3], pads, size, strides)]
    if winograd.supports(size, strides) and winograd.halves_products(out_size, size):
        # Patches of the output's gradient grow with the outputs, which are few under a skeleton.
        return Lowerings("winograd", "im2col" if 9 * outputs <= inputs else "winograd", "winograd")
    if tuple(strides) == (1, 1):
        return Lowerings("canonical", "canonical", "canonical")
    gradient = "im2col" if outputs <= inputs or math.prod(out_size) <= 64 else "canonical"
    return Lowerings("im2col", gradient, gradient)


# Each lowering is a module with the same four functions, see :mod:`fedjax_masks.ops.by_lax`.
_MODULES = {
    "canonical": canonical,
    "im2col": im2col,
    "col2im": col2im,
    "winograd": winograd,
    "lax": by_lax,
}


class _Form(NamedTuple):
    """The static arguments of a convolution."""

    strides: Strides
    pads: by_lax.Pads
    lowerings: Lowerings


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _conv(x: jax.Array, kernel: jax.Array, skeleton: jax.Array | None, form: _Form) -> jax.Array:
    del skeleton
    return conv2d_forward(x, kernel, form.strides, form.pads, form.lowerings.forward)[0]


def _conv_fwd(
    x: jax.Array, kernel: jax.Array, skeleton: jax.Array | None, form: _Form
) -> tuple[jax.Array, tuple[Any, ...]]:
    strides, pads, lowerings = form
    y, residual = conv2d_forward(x, kernel, strides, pads, lowerings.forward)
    if lowerings.kernel_gradient != lowerings.forward:
        residual = x  # the residual of all lowerings but winograd
    # Winograd's residual does not have the input's shape; an array without elements remembers the shape.
    return y, (residual, kernel, skeleton, jnp.zeros((*x.shape[1:3], 0)))


def _conv_bwd(form: _Form, residuals: tuple[Any, ...], dy: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    strides, pads, lowerings = form
    residual, whole, skeleton, like = residuals
    kernel, in_size = whole, like.shape[:2]
    if skeleton is not None:
        kernel, dy = gather(whole, skeleton), gather(dy, skeleton)
    _, to_input, to_kernel = lowerings
    # Gradients with the same lowering share one form of the output's gradient.
    forms = {
        lowering: _MODULES[lowering].output_gradient(dy, kernel.shape[:2], strides, pads, in_size)
        for lowering in dict.fromkeys((to_input, to_kernel))
    }
    dx = conv2d_input_gradient(dy, kernel, forms[to_input], strides, pads, in_size, to_input)
    dk = conv2d_kernel_gradient(dy, kernel, residual, forms[to_kernel], strides, pads, to_kernel)
    return dx, dk if skeleton is None else scatter(dk, skeleton, whole.shape[3]), None


_conv.defvjp(_conv_fwd, _conv_bwd)

# Each call is one equation with this name in a traced program: a convolution counts with the FLOPs of its
# definition, however it is computed (core/flops.py).
_named = functools.partial(jax.jit, static_argnames=("strides", "pads", "lowering"))


@_named
def conv2d_forward(
    x: jax.Array, kernel: jax.Array, strides: Strides, pads: by_lax.Pads, lowering: Lowering
) -> tuple[jax.Array, jax.Array]:
    """The output, and the residual of the input for the kernel's gradient."""
    return _MODULES[lowering].forward(x, kernel, strides, pads)


@functools.partial(jax.jit, static_argnames=("strides", "pads", "in_size", "lowering"))
def conv2d_input_gradient(
    dy: jax.Array,
    kernel: jax.Array,
    form: PyTree,
    strides: Strides,
    pads: by_lax.Pads,
    in_size: Sequence[int],
    lowering: Lowering,
) -> jax.Array:
    """The input's gradient, from the lowering's form of the output's gradient ``dy``."""
    del dy  # an argument for its shape, from which FLOPs are counted
    return _MODULES[lowering].input_gradient(form, kernel, strides, pads, in_size)


@_named
def conv2d_kernel_gradient(
    dy: jax.Array,
    kernel: jax.Array,
    residual: jax.Array,
    form: PyTree,
    strides: Strides,
    pads: by_lax.Pads,
    lowering: Lowering,
) -> jax.Array:
    """The kernel's gradient, from the residual and the lowering's form of the output's gradient ``dy``."""
    del dy  # an argument for its shape, from which FLOPs are counted
    return _MODULES[lowering].kernel_gradient(residual, form, kernel, strides, pads)
