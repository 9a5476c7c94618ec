"""Aggregation rules: weighted means, means per element, and majority votes.

Each rule is a pair of functions: one makes a partial from one upload, the other finishes the sum of all
partials. Partials add up leaf by leaf, so that memory does not grow with the cohort.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import PyTree


class WeightedSum(NamedTuple):
    """The partial of a weighted mean.

    Attributes:
      total: Pytree of floats: the sum of ``weight * value``.
      weight: ``float32[]``: the sum of weights.
    """

    total: PyTree
    weight: jax.Array


def weighted(value: PyTree, weight: jax.Array) -> WeightedSum:
    """One client's part of a weighted mean.

    Args:
      value: Any pytree of floats.
      weight: ``float32[]``, 0 or more.
    """
    return WeightedSum(trees.scale(value, weight), weight)


def weighted_mean(partial: WeightedSum, default: PyTree) -> PyTree:
    """The mean of all values, or ``default`` where the weights add up to 0.

    >>> parts = trees.add(weighted(jnp.array(1.0), jnp.array(3.0)), weighted(jnp.array(5.0), jnp.array(1.0)))
    >>> float(weighted_mean(parts, jnp.array(0.0)))
    2.0
    """
    some = partial.weight > 0
    safe = jnp.where(some, partial.weight, 1)
    return jax.tree.map(lambda t, d: jnp.where(some, t / safe, d), partial.total, default)


class MaskedSum(NamedTuple):
    """The partial of a weighted mean per element.

    Attributes:
      total: Pytree of floats: the sum of ``weight * value``.
      weight: Pytree of float32, of the same rank as ``total``; axes of size 1 broadcast: the sum of weights.
    """

    total: PyTree
    weight: PyTree


def masked(values: PyTree, mask: PyTree, weight: jax.Array) -> MaskedSum:
    """One client's part of a mean per element, over the clients that sent the element.

    Args:
      values: Pytree of floats; values under False are never read.
      mask: Pytree of bool of the same rank; axes of size 1 broadcast.
      weight: ``float32[]``, 0 or more.
    """
    weights = jax.tree.map(lambda m: jnp.where(m, weight, 0.0), mask)
    # ``where`` and not a product with the mask: values under False may be NaN.
    total = jax.tree.map(lambda v, m, w: jnp.where(m, v, 0) * w, values, mask, weights)
    return MaskedSum(total, weights)


def masked_mean(partial: MaskedSum, default: PyTree) -> PyTree:
    """The weighted mean of each element over the clients that sent it; ``default`` where no client did.

    >>> first = masked(jnp.array([1.0, 2.0]), jnp.array([True, True]), jnp.float32(1))
    >>> second = masked(jnp.array([5.0, jnp.nan]), jnp.array([True, False]), jnp.float32(1))
    >>> masked_mean(trees.add(first, second), jnp.zeros(2)).tolist()
    [3.0, 2.0]
    """

    def mean(total: jax.Array, weight: jax.Array, default: jax.Array) -> jax.Array:
        return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), default)

    return jax.tree.map(mean, *partial, default)


class Votes(NamedTuple):
    """The partial of a majority vote.

    Attributes:
      ones: Pytree of int32: the number of an element's owners that voted for 1.
      owners: Pytree of int32, of the same rank: the number of clients that own the element.
    """

    ones: PyTree
    owners: PyTree


def vote(value: PyTree, mask: PyTree) -> Votes:
    """One client's votes.

    Args:
      value: Pytree of bool: the client's bits.
      mask: Pytree of bool of the same rank (axes of size 1 broadcast): the elements that the client owns,
        and votes on.
    """
    ones = jax.tree.map(lambda v, m: (v & m).astype(jnp.int32), value, mask)
    return Votes(ones, jax.tree.map(lambda m: m.astype(jnp.int32), mask))


def majority(votes: Votes, default: PyTree) -> PyTree:
    """The bit that more than half of an element's owners voted for.

    Ties give 0; an element that no client owns keeps ``default``. The decision is made in integers.

    >>> tie = Votes(ones=jnp.array([1, 2, 0]), owners=jnp.array([2, 3, 0]))
    >>> majority(tie, jnp.array([True, False, True])).tolist()
    [False, True, True]
    """
    return jax.tree.map(
        lambda ones, owners, bit: jnp.where(owners > 0, 2 * ones > owners, bit),
        votes.ones,
        votes.owners,
        default,
    )
