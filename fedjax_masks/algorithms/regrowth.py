"""Sparse masks that change during training, for FedDST: their size, and the weights to drop and to grow."""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from fedjax_masks.core.masks import top_count
from fedjax_masks.models import Kernel


def weight_counts(kernels: Iterable[Kernel], sparsity: float, distribution: str) -> dict[str, int]:
    """The number of weights that each layer keeps, so that all together keep ``1 - sparsity``.

    Args:
      kernels: The layers.
      sparsity: The share of all weights that is pruned, in [0, 1).
      distribution: ``uniform``: all layers keep the same share. ``erk``: a layer keeps a share in proportion
        to ``(in + out + height + width) / (in * out * height * width)``, which spares small layers; a layer
        whose share would exceed 1 stays whole.

    >>> from types import SimpleNamespace as S
    >>> layers = [S(name="a", shape=(2, 3)), S(name="b", shape=(10, 20))]
    >>> weight_counts(layers, 0.8, "uniform"), weight_counts(layers, 0.8, "erk")
    ({'a': 1, 'b': 40}, {'a': 6, 'b': 35})
    """
    shapes = {kernel.name: kernel.shape for kernel in kernels}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    scores = {name: sum(s) if distribution == "erk" else sizes[name] for name, s in shapes.items()}
    budget, whole = (1 - sparsity) * sum(sizes.values()), set()
    while True:
        rest = [name for name in sizes if name not in whole]
        factor = (budget - sum(sizes[name] for name in whole)) / max(sum(scores[name] for name in rest), 1)
        full = {name for name in rest if factor * scores[name] >= sizes[name]}
        if not full:
            counts = {name: max(1, round(factor * scores[name])) for name in rest}
            return {name: counts.get(name, size) for name, size in sizes.items()}
        whole |= full


def readjust(
    weights: jax.Array, slopes: jax.Array, mask: jax.Array, count: int, drop: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One layer's new mask: without the smallest weights, but with the places of the largest slopes.

    Args:
      weights: float32, any shape.
      slopes: Their gradient, of the same shape.
      mask: bool, of the same shape, ``count`` times True.
      count: The number of weights under the mask, before and after.
      drop: ``float32[]``: the share of weights to drop; one weight always stays.

    Returns:
      The new mask, and the part of the old mask that remains; grown weights start at 0.
    """
    keep = jnp.maximum(count - jnp.round(drop * count).astype(jnp.int32), 1)
    old = top_count(jnp.where(mask, jnp.abs(weights), -1.0), keep)
    return top_count(jnp.where(old, jnp.inf, jnp.abs(slopes)), count), old


def strongest(weights: jax.Array, support: jax.Array, count: int) -> jax.Array:
    """Marks the ``count`` largest weights of those that some client holds.

    Args:
      weights: float32, any shape.
      support: float32, of the same shape: the clients' summed weights; decides between equal weights.
      count: The number of weights to mark.

    >>> strongest(jnp.array([0.0, 0.0, -2.0, 9.0]), jnp.array([1.0, 3.0, 1.0, 0.0]), 2).tolist()
    [False, True, True, False]
    """
    share = support / jnp.maximum(jnp.max(support), 1)
    order = jnp.where(weights == 0, share - 1, jnp.abs(weights))
    return top_count(jnp.where(support > 0, order, -2.0), count)


def drop_share(index: jax.Array, every: int, share: float, until: int) -> jax.Array:
    """``float32[]``: the share of weights that clients drop in a round; 0 where they keep their masks.

    Args:
      index: ``int32[]``: the number of the round, from 0.
      every: The period: clients drop weights in one of so many rounds.
      share: The initial share.
      until: The round in which the share has decayed to 0.

    >>> [round(float(drop_share(jnp.int32(index), 2, 0.4, 4)), 6) for index in range(4)]
    [0.0, 0.2, 0.0, 0.0]
    """
    number = index + 1
    decayed = share / 2 * (1 + jnp.cos(jnp.pi * number / max(until, 1)))
    return jnp.where((number % every == 0) & (number < until), decayed, 0.0)
