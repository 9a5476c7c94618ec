"""Layers whose gradients are computed for a few outputs only, the *skeleton*.

FedSkel (Luo et al. 2021) prunes the backward pass: the output's gradient counts as zero outside the
skeleton, hence the weights' gradient vanishes there and the input's gradient is made of the skeleton
alone. Here the skeleton's columns are gathered first and everything after is small: what is saved is
really not computed. Convolutions take the skeleton as an argument of
:func:`fedjax_masks.ops.conv2d`.
"""

import jax
import jax.numpy as jnp


def gather(array: jax.Array, skeleton: jax.Array) -> jax.Array:
    """The skeleton's part of the last axis: ``[..., k]``."""
    rows = array.reshape(-1, array.shape[-1])  # finding four indices takes twice as long as two
    few = rows.at[:, skeleton].get(mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True)
    return few.reshape(*array.shape[:-1], -1)


def scatter(few: jax.Array, skeleton: jax.Array, size: int) -> jax.Array:
    """The skeleton's part back at its place in ``[..., size]``, zero elsewhere.

    Every output looks up its place in the skeleton, which takes one pass; XLA's scatter first writes
    zeros, then a copy of them.
    """
    places = jnp.full(size, len(skeleton)).at[skeleton].set(jnp.arange(len(skeleton)), unique_indices=True)
    return few.at[..., places].get(mode="fill", fill_value=0)


def dense(x: jax.Array, kernel: jax.Array, *, skeleton: jax.Array | None = None) -> jax.Array:
    """``x @ kernel``, of which only the outputs in the skeleton have gradients.

    Args:
      x: ``[batch, in]``.
      kernel: ``[in, out]``.
      skeleton: ``int32[k]``: indices of outputs, ascending; None is all.

    Example:
      >>> loss = lambda kernel: jnp.sum(dense(jnp.ones((1, 2)), kernel, skeleton=jnp.array([1])))
      >>> jax.grad(loss)(jnp.ones((2, 3))).tolist()
      [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    """
    return x @ kernel if skeleton is None else _dense(x, kernel, skeleton)


def add_bias(y: jax.Array, bias: jax.Array, *, skeleton: jax.Array | None = None) -> jax.Array:
    """``y + bias``, of which only the biases of outputs in the skeleton have gradients.

    The gradient of ``y`` is left whole: the linear map before it gathers for itself.

    Args:
      y: ``[..., out]``.
      bias: ``[out]``.
      skeleton: ``int32[k]``: indices of outputs, ascending; None is all.
    """
    return y + bias if skeleton is None else _add_bias(y, bias, skeleton)


@jax.custom_vjp
def _dense(x, kernel, skeleton):
    del skeleton
    return x @ kernel


def _dense_fwd(x, kernel, skeleton):
    return x @ kernel, (x, kernel, skeleton)


def _dense_bwd(residuals, dy):
    x, kernel, skeleton = residuals
    dy = gather(dy, skeleton)
    return dy @ gather(kernel, skeleton).T, scatter(x.T @ dy, skeleton, kernel.shape[1]), None


_dense.defvjp(_dense_fwd, _dense_bwd)


@jax.custom_vjp
def _add_bias(y, bias, skeleton):
    del skeleton
    return y + bias


def _add_bias_fwd(y, bias, skeleton):
    return y + bias, (skeleton, bias)


def _add_bias_bwd(residuals, dy):
    skeleton, bias = residuals
    few = gather(dy, skeleton)
    return dy, scatter(few.sum(range(few.ndim - 1)), skeleton, bias.size), None


_add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)
