"""Layers that compute gradients for some of their outputs only, the *skeleton*.

FedSkel (Luo et al. 2021) prunes the backward pass: the output's gradient counts as zero outside the skeleton.
The weights' gradient is therefore zero there, and the input's gradient depends on the skeleton alone. The
functions of this module gather the skeleton's columns first, so that the savings are real: all later products
are small. Convolutions take the skeleton as an argument of :func:`fedjax_masks.ops.conv2d`.
"""

import jax
import jax.numpy as jnp

_Residuals = tuple[jax.Array, ...]


def gather(array: jax.Array, skeleton: jax.Array) -> jax.Array:
    """Gathers the skeleton's entries of the last axis: ``[..., k]``."""
    matrix = array.reshape(-1, array.shape[-1])  # a gather with four indices takes twice as long as with two
    part = matrix.at[:, skeleton].get(mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True)
    return part.reshape(*array.shape[:-1], -1)


def scatter(part: jax.Array, skeleton: jax.Array, size: int) -> jax.Array:
    """The inverse of :func:`gather`: ``[..., size]``, zero outside the skeleton."""
    # A gather by the inverse index takes one pass; XLA's scatter first writes zeros, then a copy of them.
    inverse = jnp.full(size, len(skeleton)).at[skeleton].set(jnp.arange(len(skeleton)), unique_indices=True)
    return part.at[..., inverse].get(mode="fill", fill_value=0)


def dense(x: jax.Array, kernel: jax.Array, *, skeleton: jax.Array | None = None) -> jax.Array:
    """``x @ kernel``, with gradients for the outputs in the skeleton only.

    Args:
      x: ``[batch, in]``.
      kernel: ``[in, out]``.
      skeleton: ``int32[k]``: indices of outputs, ascending; None means all outputs.

    Example:
      >>> loss = lambda kernel: jnp.sum(dense(jnp.ones((1, 2)), kernel, skeleton=jnp.array([1])))
      >>> jax.grad(loss)(jnp.ones((2, 3))).tolist()
      [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    """
    return x @ kernel if skeleton is None else _dense(x, kernel, skeleton)


def add_bias(y: jax.Array, bias: jax.Array, *, skeleton: jax.Array | None = None) -> jax.Array:
    """``y + bias``, with gradients for the biases of outputs in the skeleton only.

    The gradient of ``y`` is not pruned, because the preceding linear map gathers the skeleton itself.

    Args:
      y: ``[..., out]``.
      bias: ``[out]``.
      skeleton: ``int32[k]``: indices of outputs, ascending; None means all outputs.
    """
    return y + bias if skeleton is None else _add_bias(y, bias, skeleton)


@jax.custom_vjp
def _dense(x: jax.Array, kernel: jax.Array, skeleton: jax.Array) -> jax.Array:
    del skeleton
    return x @ kernel


def _dense_fwd(x: jax.Array, kernel: jax.Array, skeleton: jax.Array) -> tuple[jax.Array, _Residuals]:
    return x @ kernel, (x, kernel, skeleton)


def _dense_bwd(residuals: _Residuals, dy: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x, kernel, skeleton = residuals
    dy = gather(dy, skeleton)
    return dy @ gather(kernel, skeleton).T, scatter(x.T @ dy, skeleton, kernel.shape[1]), None


_dense.defvjp(_dense_fwd, _dense_bwd)


@jax.custom_vjp
def _add_bias(y: jax.Array, bias: jax.Array, skeleton: jax.Array) -> jax.Array:
    del skeleton
    return y + bias


def _add_bias_fwd(y: jax.Array, bias: jax.Array, skeleton: jax.Array) -> tuple[jax.Array, _Residuals]:
    return y + bias, (skeleton, bias)


def _add_bias_bwd(residuals: _Residuals, dy: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    skeleton, bias = residuals
    part = gather(dy, skeleton)
    return dy, scatter(part.sum(range(part.ndim - 1)), skeleton, bias.size), None


_add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)
