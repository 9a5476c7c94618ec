"""Max pooling by strided maxima.

The gradient of ``lax.reduce_window`` is a select-and-scatter, which XLA's CPU backend runs as a
scalar loop. Over windows that do not overlap, a chain of element-wise maxima gives the same values. Its
gradient finds the maxima again on a CPU. An accelerator is bound by memory, and keeps one byte per window,
which tells the place of its maximum.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax_masks.core import target
from fedjax_masks.core.errors import UserError

_NOWHERE = 255  # no place in a window: the gradient is zero


def max_pool(x: jax.Array, window: tuple[int, int] = (2, 2)) -> jax.Array:
    """Maxima over disjoint windows; rows and columns that fill no window are dropped.

    Args:
      x: ``[batch, height, width, channels]``, floating point.
      window: Height and width of a window, which are the strides too.

    Returns:
      ``[batch, height // window[0], width // window[1], channels]``. The gradient goes to the first
      maximum of a window in row-major order, as in ``lax``.

    Raises:
      UserError: A window has more than 255 places.

    Example:
      >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0]
      Array([[ 5.,  7.],
             [13., 15.]], dtype=float32)
    """
    window = _checked(window)
    return _by_maxima(x, window) if target.is_cpu() else _by_places(x, window, False)


def relu_max_pool(x: jax.Array, window: tuple[int, int] = (2, 2)) -> jax.Array:
    """``relu(max_pool(x))``, which is ``max_pool(relu(x))``, with fewer values to keep for the gradient.

    Example:
      >>> relu_max_pool(jnp.arange(-8.0, 8.0).reshape(1, 4, 4, 1))[0, :, :, 0]
      Array([[0., 0.],
             [5., 7.]], dtype=float32)
    """
    window = _checked(window)
    return jax.nn.relu(_by_maxima(x, window)) if target.is_cpu() else _by_places(x, window, True)


def _checked(window: tuple[int, int]) -> tuple[int, int]:
    if math.prod(window) > _NOWHERE:
        raise UserError(f"window={window}: must have {_NOWHERE} places at most")
    return window


def _corners(x: jax.Array, window: tuple[int, int]) -> list[jax.Array]:
    """The elements of all windows: one strided view per position in a window, in row-major order."""
    (kh, kw), (height, width) = window, x.shape[1:3]
    x = x[:, : height // kh * kh, : width // kw * kw]
    return [x[:, i::kh, j::kw] for i, j in itertools.product(range(kh), range(kw))]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _by_maxima(x: jax.Array, window: tuple[int, int]) -> jax.Array:
    return functools.reduce(jnp.maximum, _corners(x, window))


def _by_maxima_fwd(x: jax.Array, window: tuple[int, int]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y: jax.Array = _by_maxima(x, window)  # pyright: ignore[reportAssignmentType]
    return y, (x, y)


def _by_maxima_bwd(
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
    return (_with_rest(dx, x.shape[1:3]),)


_by_maxima.defvjp(_by_maxima_fwd, _by_maxima_bwd)


def _with_rest(dx: jax.Array, size: Sequence[int]) -> jax.Array:
    """The gradient of the whole input: zero where rows and columns fill no window."""
    rest = [(0, n - m) for n, m in zip(size, dx.shape[1:3])]
    return jnp.pad(dx, [(0, 0), *rest, (0, 0)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _by_places(x: jax.Array, window: tuple[int, int], rectify: bool) -> jax.Array:
    y = functools.reduce(jnp.maximum, _corners(x, window))
    return jax.nn.relu(y) if rectify else y


def _by_places_fwd(
    x: jax.Array, window: tuple[int, int], rectify: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y, *rest = _corners(x, window)
    place = jnp.zeros(y.shape, jnp.int32)
    for number, corner in enumerate(rest, 1):
        # Only the first maximum of a window gets the gradient, as in ``lax``: ties must not multiply it.
        place = jnp.where(corner > y, number, place)
        y = jnp.maximum(y, corner)
    if rectify:
        y, place = jax.nn.relu(y), jnp.where(y > 0, place, _NOWHERE)
    # An array without elements remembers the shape: the input need not stay in memory.
    return y, (place.astype(jnp.uint8), jnp.zeros((*x.shape[1:3], 0)))


def _by_places_bwd(
    window: tuple[int, int], rectify: bool, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array]:
    del rectify  # the places tell
    place, like = residuals
    (kh, kw), (batch, height, width, channels) = window, dy.shape
    corners = jnp.arange(kh * kw, dtype=jnp.uint8).reshape(kh, 1, kw, 1)
    # One array with axes for the corners instead of strided updates, which XLA runs as scatters.
    place, dy = (a[:, :, None, :, None] for a in (place, dy))
    dx = jnp.where(place == corners, dy, 0).reshape(batch, height * kh, width * kw, channels)
    return (_with_rest(dx, like.shape[:2]),)


_by_places.defvjp(_by_places_fwd, _by_places_bwd)
