"""How a server combines what the clients of a cohort sent.

Each rule is a pair: a partial for one upload, and a finish for the sum of all partials.
Partials add up leaf by leaf, so that memory does not grow with the cohort.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import PyTree


class WeightedSum(NamedTuple):
    """The partial of a weighted mean: ``weight * value``, and ``float32[]`` weight."""

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


def masked_mean(values: PyTree, mask: PyTree, weight: jax.Array, default: PyTree) -> PyTree:
    """For each element the weighted mean over the clients that sent it.

    Args:
      values: Pytree of floats ``[cohort, ...]``; what lies under False is never read.
      mask: Pytree of ``bool[cohort, ...]`` of the same rank; axes of size 1 broadcast.
      weight: ``float32[cohort]``, 0 or more.
      default: Pytree like one client's values, for elements that nobody sent.

    >>> sent = jnp.array([[True, True], [True, False]])
    >>> values = jnp.array([[1.0, 2.0], [5.0, jnp.nan]])
    >>> masked_mean(values, sent, jnp.array([1.0, 1.0]), jnp.zeros(2)).tolist()
    [3.0, 2.0]
    """

    def mean(value: jax.Array, sent: jax.Array, old: jax.Array) -> jax.Array:
        weights = jnp.where(sent, weight.reshape(-1, *(1,) * (sent.ndim - 1)), 0)
        total, divisor = jnp.sum(jnp.where(sent, value, 0) * weights, 0), jnp.sum(weights, 0)
        return jnp.where(divisor > 0, total / jnp.where(divisor > 0, divisor, 1), old)

    return jax.tree.map(mean, values, mask, default)


def noted(known: PyTree, news: PyTree, ids: jax.Array, came: jax.Array) -> PyTree:
    """What the server knows of each client, after news from some of a cohort.

    Args:
      known: Pytree of ``[num_clients, ...]``.
      news: The same of the cohort, ``[cohort, ...]``, or of shapes that broadcast to it.
      ids: ``int32[cohort]``.
      came: ``bool[cohort]``: whose news count.

    >>> noted(jnp.zeros(4), jnp.array([1.0, 2.0]), jnp.array([3, 0]), jnp.array([True, False])).tolist()
    [0.0, 0.0, 0.0, 1.0]
    """
    return jax.tree.map(
        lambda old, new: old.at[jnp.where(came, ids, len(old))].set(new, mode="drop"), known, news
    )


class Votes(NamedTuple):
    """The partial of a majority vote.

    Attributes:
      ones: Pytree of int32: how many owners of an element voted for 1.
      owners: Pytree of int32, of the same rank: how many clients own the element.
    """

    ones: PyTree
    owners: PyTree


def vote(value: PyTree, owned: PyTree, counts: jax.Array) -> Votes:
    """One client's votes.

    Args:
      value: Pytree of bool: the client's bits.
      owned: Pytree of bool of the same rank (axes of size 1 broadcast): where it has a vote.
      counts: ``bool[]``: False takes the client out of the vote.
    """

    def number(mask: jax.Array) -> jax.Array:
        return (mask & counts).astype(jnp.int32)

    ones = jax.tree.map(lambda v, o: number(v & o), value, owned)
    return Votes(ones, jax.tree.map(number, owned))


def majority(votes: Votes, default: PyTree) -> PyTree:
    """The bit that more than half of an element's owners voted for.

    Ties give 0; an element that nobody owns keeps ``default``. Decided in integers.

    >>> tie = Votes(ones=jnp.array([1, 2, 0]), owners=jnp.array([2, 3, 0]))
    >>> majority(tie, jnp.array([True, False, True])).tolist()
    [False, True, True]
    """
    return jax.tree.map(
        lambda ones, owners, old: jnp.where(owners > 0, 2 * ones > owners, old),
        votes.ones,
        votes.owners,
        default,
    )
