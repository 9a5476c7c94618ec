"""Max pooling by strided maxima.

The gradient of ``lax.reduce_window`` is a select-and-scatter, which XLA's CPU backend runs as a
scalar loop. Over windows that do not overlap, a chain of element-wise maxima and masks gives the
same values and the same gradient.
"""

import functools
import itertools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: jax.Array, window: tuple[int, int] = (2, 2)) -> jax.Array:
    """Maxima over disjoint windows; rows and columns that fill no window are dropped.

    Args:
      x: ``[batch, height, width, channels]``, floating point.
      window: Height and width of a window, which are the strides too.

    Returns:
      ``[batch, height // window[0], width // window[1], channels]``. The gradient goes to the first
      maximum of a window in row-major order, as in ``lax``.

    Example:
      >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0]
      Array([[ 5.,  7.],
             [13., 15.]], dtype=float32)
    """
    return functools.reduce(jnp.maximum, _corners(x, window))


def _corners(x, window):
    """The elements of every window, one strided view per position in it, in row-major order."""
    (kh, kw), (height, width) = window, x.shape[1:3]
    x = x[:, : height // kh * kh, : width // kw * kw]
    return [x[:, i::kh, j::kw] for i, j in itertools.product(range(kh), range(kw))]


def _max_pool_fwd(x, window):
    y = max_pool(x, window)
    return y, (x, y)


def _max_pool_bwd(window, residuals, dy):
    x, y = residuals
    parts, free = [], jnp.ones(y.shape, bool)
    for corner in _corners(x, window):
        chosen = free & (corner == y)
        parts.append(jnp.where(chosen, dy, 0))
        free &= ~chosen
    (kh, kw), (batch, height, width, channels) = window, y.shape
    rows = [jnp.stack(parts[i * kw : (i + 1) * kw], axis=3) for i in range(kh)]
    dx = jnp.stack(rows, axis=2).reshape(batch, height * kh, width * kw, channels)
    rest = [(0, 0), (0, x.shape[1] - height * kh), (0, x.shape[2] - width * kw), (0, 0)]
    return (jnp.pad(dx, rest),)


max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
