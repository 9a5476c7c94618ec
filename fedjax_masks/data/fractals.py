"""Images of iterated function systems: data for pre-training without a download.

After Kataoka et al., "Pre-training without natural images", ACCV 2020, arXiv 2101.08515: a class is a
random system of affine maps, its images are attractors of systems with slightly other weights.
Maps are drawn by their singular values, as Anderson and Farrell, "Improving fractal pre-training",
WACV 2022, arXiv 2110.03091, section 3, so that each contracts. Colors and backgrounds are those of
:mod:`fedjax_masks.data.coloring`. The images contain no data of any client.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core.choices import FractalStyle
from fedjax_masks.data.coloring import paint

_MAX_MAPS = 6
_WALKERS, _STEPS, _BURN_IN = 64, 96, 16
_CANDIDATES = 4
_MIN_COVERAGE = 0.2


class Systems(NamedTuple):
    """Iterated function systems, one or many.

    Attributes:
      matrix: ``float32[..., maps, 2, 2]``: the linear part of each map.
      shift: ``float32[..., maps, 2]``: the translation of each map.
      logits: ``float32[..., maps]``: the logit of each map's probability; -inf for an absent map.
    """

    matrix: jax.Array
    shift: jax.Array
    logits: jax.Array


def fractal_images(
    shape: Sequence[int],
    *,
    classes: int = 60,
    per_class: int = 100,
    seed: int = 0,
    style: FractalStyle = "color",
) -> tuple[np.ndarray, np.ndarray]:
    """Draws classes, and images of each.

    Args:
      shape: Height, width, channels.
      classes: The number of classes.
      per_class: Images of each class.
      seed: The seed of systems and images.
      style: ``"gray"``: all channels are the same; ``"color"``: each image has random hues; ``"background"``:
        hues before a random background. Images of one channel are gray in every style.

    Returns:
      ``uint8[classes * per_class, *shape]`` and ``int32`` labels, class after class.

    >>> images, labels = fractal_images((8, 8, 1), classes=2, per_class=3)
    >>> images.shape, images.dtype.name, labels.tolist()
    ((6, 8, 8, 1), 'uint8', [0, 0, 0, 1, 1, 1])
    """
    height, width, channels = shape
    class_key, image_key = jax.random.split(jax.random.key(seed))
    systems = _choose_systems(class_key, (height, width), classes)
    labels = np.repeat(np.arange(classes, dtype=np.int32), per_class)
    keys = jax.random.split(image_key, len(labels))
    images = _draw(keys, jax.tree.map(lambda a: a[labels], systems), size=(height, width))
    if channels == 1 or style == "gray":
        return np.repeat(np.asarray(images)[..., None], channels, axis=-1), labels
    return np.asarray(paint(keys, images, channels=channels, background=style == "background")), labels


def draw_system(key: chex.PRNGKey) -> Systems:
    """Draws a random system of contracting maps."""
    keys = jax.random.split(key, 5)
    number = jax.random.randint(keys[0], (), 2, _MAX_MAPS + 1)
    angles = jax.random.uniform(keys[1], (2, _MAX_MAPS), maxval=2 * jnp.pi)
    large = jax.random.uniform(keys[2], (_MAX_MAPS,), minval=0.4, maxval=0.9)
    small = large * jax.random.uniform(keys[3], (_MAX_MAPS,), minval=0.2, maxval=1.0)
    turn, back = _rotations(angles)
    matrix = turn @ (jnp.stack([large, small], -1)[..., None] * back)
    shift = jax.random.uniform(keys[4], (_MAX_MAPS, 2), minval=-1.0, maxval=1.0)
    # A map's probability is proportional to its area, or a few points would make most of the image.
    logits = jnp.where(jnp.arange(_MAX_MAPS) < number, jnp.log(large * small), -jnp.inf)
    return Systems(matrix, shift, logits)


def render(key: chex.PRNGKey, system: Systems, size: tuple[int, int]) -> jax.Array:
    """Draws the attractor; a pixel's value grows with the logarithm of its visits.

    Args:
      key: The key of the walk along the attractor.
      system: One system.
      size: Height and width.

    Returns:
      ``uint8[height, width]``.
    """
    start_key, walk_key = jax.random.split(key)

    def step(points: jax.Array, key: chex.PRNGKey) -> tuple[jax.Array, jax.Array]:
        maps = jax.random.categorical(key, system.logits, shape=(_WALKERS,))
        points = jnp.einsum("wij,wj->wi", system.matrix[maps], points) + system.shift[maps]
        return points, points

    start = jax.random.uniform(start_key, (_WALKERS, 2), minval=-1.0, maxval=1.0)
    _, path = jax.lax.scan(step, start, jax.random.split(walk_key, _STEPS))
    points = path[_BURN_IN:].reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    pixels = ((points - low) / jnp.maximum(high - low, 1e-6) * (jnp.array(size) - 1)).round().astype(int)
    visits = jnp.log1p(jnp.zeros(size).at[pixels[:, 0], pixels[:, 1]].add(1.0))
    return (255 * visits / visits.max()).round().astype(jnp.uint8)


def _rotations(angles: jax.Array) -> jax.Array:
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    return jnp.stack([jnp.stack([cosine, -sine], -1), jnp.stack([sine, cosine], -1)], -2)


@partial(jax.jit, static_argnames=("size", "classes"))
def _choose_systems(key: chex.PRNGKey, size: tuple[int, int], classes: int) -> Systems:
    """The first systems of several whose images are full enough to be distinguished."""
    keys = jax.random.split(key, _CANDIDATES * classes)
    systems = jax.vmap(draw_system)(keys)
    images = jax.lax.map(lambda pair: render(pair[0], pair[1], size), (keys, systems), batch_size=64)
    too_empty = jnp.mean(images > 0, axis=(1, 2)) < _MIN_COVERAGE
    choice = jnp.argsort(too_empty, stable=True)[:classes]
    return jax.tree.map(lambda a: a[choice], systems)


@partial(jax.jit, static_argnames="size")
def _draw(keys: chex.PRNGKey, systems: Systems, size: tuple[int, int]) -> jax.Array:
    """One image per key, of a system whose maps are up to a tenth larger or smaller."""

    def draw_one(pair: tuple[chex.PRNGKey, Systems]) -> jax.Array:
        key, system = pair
        weights_key, render_key = jax.random.split(key)
        weights = jax.random.uniform(weights_key, system.matrix.shape, minval=0.9, maxval=1.1)
        return render(render_key, system._replace(matrix=system.matrix * weights), size)

    return jax.lax.map(draw_one, (keys, systems), batch_size=64)
