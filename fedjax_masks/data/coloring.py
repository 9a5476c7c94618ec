"""Random colors and backgrounds for gray images.

After Anderson and Farrell, "Improving fractal pre-training", WACV 2022, arXiv 2110.03091, and their code
(``colorize`` and ``composite`` of ``fractals/ifs.py``): the hue of a pixel is its gray value plus a random
shift; saturation and brightness are random, and the same for all pixels of an image. The background is noise
of several scales, colored in the same way. Two choices differ from theirs: the hue wheel is smooth, with one
peak per channel, so that it suits any number of channels; and the noise is a sum of enlarged random grids
instead of the diamond-square algorithm, which is sequential.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp

_PAINT = 0x7061696E  # far from the small numbers that others fold into the same key
_LEAST_SATURATION, _LEAST_BRIGHTNESS = 0.3, 0.5  # the authors'
_GRIDS = (2, 4, 8, 16)


@partial(jax.jit, static_argnames=("channels", "background"))
def paint(keys: chex.PRNGKey, images: jax.Array, *, channels: int, background: bool = False) -> jax.Array:
    """Colors gray images, each by its own key.

    Args:
      keys: ``[images]`` typed keys.
      images: ``uint8[images, height, width]``; 0 is empty.
      channels: The number of channels.
      background: Whether empty pixels are noise, else black.

    Returns:
      ``uint8[images, height, width, channels]``.

    >>> gray = jnp.array([[[0, 9], [99, 255]]], jnp.uint8)
    >>> colors = paint(jax.random.split(jax.random.key(0), 1), gray, channels=3)
    >>> colors.shape, colors[0, 0, 0].tolist(), len({*map(tuple, colors[0].reshape(-1, 3).tolist())})
    ((1, 2, 2, 3), [0, 0, 0], 4)
    """

    def paint_one(pair: tuple[chex.PRNGKey, jax.Array]) -> jax.Array:
        key, image = pair
        front_key, noise_key, back_key = jax.random.split(jax.random.fold_in(key, _PAINT), 3)
        colors = colorize(front_key, image / jnp.float32(255), channels)
        behind = jnp.float32(0)
        if background:
            behind = colorize(back_key, noise(noise_key, image.shape), channels)
        return (255 * jnp.where(image[..., None] > 0, colors, behind)).round().astype(jnp.uint8)

    return jax.lax.map(paint_one, (keys, images), batch_size=64)


def colorize(key: chex.PRNGKey, values: jax.Array, channels: int) -> jax.Array:
    """Turns values into hues, with a random shift, saturation and brightness.

    Args:
      key: A PRNG key.
      values: ``float32[height, width]``, from 0 to 1, which is once around the hue wheel.
      channels: The number of channels.

    Returns:
      ``float32[height, width, channels]``, from 0 to 1.
    """
    shift, saturation, brightness = jax.random.uniform(key, (3,), jnp.float32)
    saturation = _LEAST_SATURATION + (1 - _LEAST_SATURATION) * saturation
    brightness = _LEAST_BRIGHTNESS + (1 - _LEAST_BRIGHTNESS) * brightness
    hue = values[..., None] + shift - jnp.arange(channels) / channels
    return brightness * (1 - saturation * (0.5 - 0.5 * jnp.cos(2 * jnp.pi * hue)))


def noise(key: chex.PRNGKey, size: tuple[int, ...]) -> jax.Array:
    """Smooth noise from 0 to 1: enlarged random grids, each finer one of half the amplitude.

    >>> values = noise(jax.random.key(0), (8, 6))
    >>> values.shape, float(values.min()), float(values.max())
    ((8, 6), 0.0, 1.0)
    """
    total = jnp.zeros(size, jnp.float32)
    for index, cells in enumerate(_GRIDS):
        grid = jax.random.normal(jax.random.fold_in(key, index), (cells, cells), jnp.float32)
        total += jax.image.resize(grid, size, "linear") / 2**index
    return (total - total.min()) / jnp.maximum(total.max() - total.min(), 1e-6)
