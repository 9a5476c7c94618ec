"""Random augmentation of training batches, as pure functions of a key."""

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.core.choices import Augmentation


def crop_flip(key: chex.PRNGKey, x: jax.Array, *, pad: int = 4) -> jax.Array:
    """Random crop after reflecting the borders, then a random horizontal flip, per example.

    Args:
      key: A typed key.
      x: ``[batch, height, width, channels]``, of any dtype.
      pad: The largest shift of an image in each direction, in pixels; below height and width.

    Returns:
      Images of the same shape and dtype.
    """
    num, height, width, _ = x.shape
    key_rows, key_columns, key_flip = jax.random.split(key, 3)
    rows = _window(key_rows, num, height, pad)
    columns = _window(key_columns, num, width, pad)
    flip = jax.random.bernoulli(key_flip, jnp.float32(0.5), (num, 1))
    columns = jnp.where(flip, columns[:, ::-1], columns)
    # Padding, crop and flip in one gather: the padded image never exists.
    return x[jnp.arange(num)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _window(key: chex.PRNGKey, num: int, length: int, pad: int) -> jax.Array:
    """The source of each pixel of a randomly moved, reflected axis: ``int32[num, length]``."""
    shift = jax.random.randint(key, (num, 1), -pad, pad + 1, jnp.int32)
    place = jnp.abs(jnp.arange(length) + shift)
    return jnp.where(place < length, place, 2 * (length - 1) - place)


AUGMENTATIONS: Mapping[Augmentation, Callable[[chex.PRNGKey, jax.Array], jax.Array] | None] = {
    "none": None,
    "crop_flip": crop_flip,
}
"""Augmentations by their names in configurations."""
