"""Functions without parameters between the weighted layers: scaling of inputs, pooling, flattening."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.ops import pool


def identity(x: jax.Array) -> jax.Array:
    """Returns its argument."""
    return x


def scale_input(x: jax.Array) -> jax.Array:
    """Scales uint8 inputs from [0, 255] to [-1, 1] in float32; returns other inputs as they are."""
    if x.dtype == jnp.uint8:
        return x.astype(jnp.float32) / 127.5 - 1.0
    return x


def max_pool(x: jax.Array) -> jax.Array:
    """Takes the maximum over 2 x 2 windows, stride 2; an image one pixel wide or high stays as it is.

    Args:
      x: ``[batch, height, width, channels]``; an odd last row or column is dropped.

    Returns:
      ``[batch, height // 2, width // 2, channels]``.
    """
    return pool.max_pool(x) if min(x.shape[1:3]) > 1 else x


def relu_max_pool(x: jax.Array) -> jax.Array:
    """Returns ``max_pool(relu(x))``, computed as ``relu(max_pool(x))``, which rectifies fewer values."""
    return pool.relu_max_pool(x) if min(x.shape[1:3]) > 1 else nn.relu(x)


def adaptive_average_pool(x: jax.Array, side: int) -> jax.Array:
    """Averages over ``side`` x ``side`` windows that cover the image; replicates a smaller image.

    Args:
      x: ``[batch, height, width, channels]``.
      side: Height and width of the result.

    Returns:
      ``[batch, side, side, channels]``.
    """
    rows, columns = (jnp.asarray(_window_averages(n, side)) for n in x.shape[1:3])
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns)


def _window_averages(size: int, windows: int) -> np.ndarray:
    """The weights of the averages, ``float32[windows, size]``.

    Window ``i`` spans positions ``floor(i * size / windows)`` to ``ceil((i + 1) * size / windows)``.
    """
    index, position = np.arange(windows)[:, None], np.arange(size)[None]
    start, stop = index * size // windows, -(-(index + 1) * size // windows)
    return ((start <= position) & (position < stop)).astype(np.float32) / (stop - start).astype(np.float32)


def global_average_pool(x: jax.Array) -> jax.Array:
    """Averages over height and width: ``[batch, height, width, channels]`` to ``[batch, channels]``."""
    return jnp.mean(x, axis=(1, 2))


def flatten(x: jax.Array) -> jax.Array:
    """Flattens all axes but the batch; channel ``c`` of pixel ``p`` becomes feature ``p * channels + c``."""
    return x.reshape(x.shape[0], -1)
