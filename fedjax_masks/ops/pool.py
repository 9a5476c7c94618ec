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


def _corners(x: jax.Array, window: tuple[int, int]) -> list[jax.Array]:
    """The elements of all windows: one strided view per position in a window, in row-major order."""
    (kh, kw), (height, width) = window, x.shape[1:3]
    x = x[:, : height // kh * kh, : width // kw * kw]
    return [x[:, i::kh, j::kw] for i, j in itertools.product(range(kh), range(kw))]


def _max_pool_fwd(x: jax.Array, window: tuple[int, int]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y: jax.Array = max_pool(x, window)  # pyright: ignore[reportAssignmentType]
    return y, (x, y)


def _max_pool_bwd(
    window: tuple[int, int], residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array]:
    x, y = residuals
    # Only the first maximum of a window gets the gradient, as in ``lax``: ties must not multiply it.
    parts, open_windows = [], jnp.ones(y.shape, bool)
    for corner in _corners(x, window):
        first_maximum = open_windows & (corner == y)
        parts.append(jnp.where(first_maximum, dy, 0))
        open_windows &= ~first_maximum
    # Stacks instead of strided updates, which XLA runs as scatters.
    (kh, kw), (batch, height, width, channels) = window, y.shape
    rows = [jnp.stack(parts[i * kw : (i + 1) * kw], axis=3) for i in range(kh)]
    dx = jnp.stack(rows, axis=2).reshape(batch, height * kh, width * kw, channels)
    rest = [(0, 0), (0, x.shape[1] - height * kh), (0, x.shape[2] - width * kw), (0, 0)]
    return (jnp.pad(dx, rest),)


max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
