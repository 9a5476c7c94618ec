"""Batch normalisation that makes no centred copy of its input."""

import functools
import math

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """Normalises every channel by the mean and the variance of the batch at hand.

    Ioffe & Szegedy, "Batch Normalization", ICML 2015, arXiv 1502.03167, algorithm 1. The gradient is
    written out: it needs two sums over a channel and then goes by element, so that what is gathered of
    it, as a skeleton is, is all that is computed of it. The variance is that of one pass, as flax's is:
    it loses digits where a channel's mean is many times its spread.

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


@jax.jit  # by its name a program shows how many examples it normalises by
def batch_statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Every channel's mean, and that of its squares: ``[channels]`` each, of ``[..., channels]``."""
    axes = tuple(range(x.ndim - 1))
    return jnp.mean(x, axes), jnp.mean(x**2, axes)


def _forward(x, scale, bias, epsilon):
    mean, square = batch_statistics(x)
    inverse = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0.0) + epsilon)
    slope = scale * inverse
    return x * slope + (bias - mean * slope), (x, scale, mean, inverse)


def _backward(epsilon, residuals, dy):
    del epsilon
    x, scale, mean, inverse = residuals
    axes, count = tuple(range(x.ndim - 1)), math.prod(x.shape[:-1])
    dbias = jnp.sum(dy, axes)
    dscale = inverse * (jnp.sum(dy * x, axes) - mean * dbias)
    slope, curve = scale * inverse, scale * inverse**2 * dscale / count
    dx = slope * dy - curve * x + (curve * mean - slope * dbias / count)
    return dx, dscale, dbias


batch_norm.defvjp(_forward, _backward)
