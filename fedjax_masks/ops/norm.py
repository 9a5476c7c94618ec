"""Batch normalization without a centered copy of the input."""

import functools
import math

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Normalizes every channel by the mean and the variance of the current batch.

    Ioffe & Szegedy, "Batch Normalization", ICML 2015, arXiv 1502.03167, algorithm 1. Like flax, the function
    computes the variance in one pass: the variance loses digits where a channel's mean is many times its
    standard deviation.

    Args:
      x: ``[..., channels]``.
      scale: ``[channels]``.
      bias: ``[channels]``.
      epsilon: Added to the variance.

    Returns:
      Shaped like ``x``.

    >>> batch_norm(jnp.array([[1.0], [3.0]]), jnp.array([2.0]), jnp.array([1.0]), 0.0).tolist()
    [[-1.0], [3.0]]
    """
    return _forward(x, scale, bias, epsilon)[0]


@jax.jit  # its call is found by name in a program, to check the size of the batch
def batch_statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean and the mean square of every channel of ``[..., channels]``, ``[channels]`` each."""
    axes = tuple(range(x.ndim - 1))
    return jnp.mean(x, axes), jnp.mean(x**2, axes)


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    mean, square = batch_statistics(x)
    inverse = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0.0) + epsilon)
    slope = scale * inverse
    return x * slope + (bias - mean * slope), (x, scale, mean, inverse)


def _backward(
    epsilon: float, residuals: tuple[jax.Array, ...], dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon
    x, scale, mean, inverse = residuals
    axes, count = tuple(range(x.ndim - 1)), math.prod(x.shape[:-1])
    # Two sums over each channel, then element-wise terms alone: where a skeleton gathers a part of the
    # gradient, XLA computes only that part.
    dbias = jnp.sum(dy, axes)
    dscale = inverse * (jnp.sum(dy * x, axes) - mean * dbias)
    slope, curve = scale * inverse, scale * inverse**2 * dscale / count
    dx = slope * dy - curve * x + (curve * mean - slope * dbias / count)
    return dx, dscale, dbias


batch_norm.defvjp(_forward, _backward)
