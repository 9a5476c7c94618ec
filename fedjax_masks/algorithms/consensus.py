"""MPFL's votes on filters, and the consensus rules that turn votes into a mask.

A rule sees one layer: ``rule(votes, voters, required, norms) -> bool[filters]``.

Args:
  votes: ``int32[filters]``: how many clients would keep each filter.
  voters: ``int32[]``: how many clients voted.
  required: ``float32[]``: the share of the layer's filters that should be pruned by now.
  norms: ``float32[filters]``: decides between equal votes; 0 for filters pruned before.

No rule empties a layer: at least the filter with the most votes stays.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from fedjax_masks.core import trees
from fedjax_masks.core.masks import top_count
from fedjax_masks.core.types import Params
from fedjax_masks.models import Kernel

Rule = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]

# A share like 3 * 0.1 may be a rounding error above the 30 filters of 100 that meet it.
_SLACK = 1e-3


def filter_norms(kernels: Iterable[Kernel], params: Params) -> dict[str, jax.Array]:
    """The L2 norm of each filter's weights, by layer: ``float32[outputs]``."""
    weights = {kernel.name: trees.get(params, kernel.path) for kernel in kernels}
    return {name: jnp.sqrt(jnp.sum(w * w, range(w.ndim - 1))) for name, w in weights.items()}


def keep_largest(norms: jax.Array, alive: jax.Array, share: jax.typing.ArrayLike) -> jax.Array:
    """Prunes a share of a layer's living filters, those with the smallest norms.

    Args:
      norms: ``float32[filters]``, 0 or more.
      alive: ``bool[filters]``.
      share: ``float32[]``: the share of the living ones; rounded half to even, and one filter always stays.

    >>> keep_largest(jnp.array([3.0, 0.0, 1.0, 2.0]), jnp.array([True, False, True, True]), 0.34).tolist()
    [True, False, False, True]
    """
    living = jnp.sum(alive)
    number = jnp.minimum(jnp.round(share * living).astype(jnp.int32), living - 1)
    return top_count(jnp.where(alive, norms, -1.0), living - number)


def topk(votes: jax.Array, voters: jax.Array, required: jax.Array, norms: jax.Array) -> jax.Array:
    """Prunes exactly the required number of filters, those with the fewest votes.

    Between equal votes the smaller norm goes first, between equal norms the higher index. The
    only rule with a prescribed sparsity.

    >>> votes, norms = jnp.array([3, 1, 2, 1]), jnp.array([1.0, 2.0, 1.0, 1.0])
    >>> topk(votes, jnp.array(3), jnp.array(0.25), norms).tolist()
    [True, True, True, False]
    """
    del voters
    prune = jnp.round(required * votes.size).astype(jnp.int32)
    return _rank(votes, norms) >= jnp.minimum(prune, votes.size - 1)


def dynamic(votes: jax.Array, voters: jax.Array, required: jax.Array, norms: jax.Array) -> jax.Array:
    """Lowers the threshold from all voters to one until enough is pruned, as published.

    A lower threshold keeps *more*: if the highest does not prune enough, none does, and the last
    one holds. The result is the intersection of the kept sets or their union, nothing between.

    >>> votes, norms = jnp.array([3, 1, 2, 0]), jnp.ones(4)
    >>> [dynamic(votes, jnp.array(3), jnp.array(share), norms).tolist() for share in (0.5, 0.8)]
    [[True, False, False, False], [True, True, True, False]]
    """
    pruned = jnp.sum(votes < voters)
    threshold = jnp.where(pruned >= required * votes.size - _SLACK, voters, 1)
    return _nonempty(votes >= threshold, votes, norms)


def reverse(votes: jax.Array, voters: jax.Array, required: jax.Array, norms: jax.Array) -> jax.Array:
    """Raises the threshold from one voter to all until enough is pruned.

    >>> votes, norms = jnp.array([3, 1, 2, 0]), jnp.ones(4)
    >>> [reverse(votes, jnp.array(3), jnp.array(share), norms).tolist() for share in (0.5, 0.8)]
    [[True, False, True, False], [True, False, False, False]]
    """
    count = jnp.ceil(required * votes.size - _SLACK).astype(jnp.int32)
    last_pruned = jnp.sort(votes)[jnp.maximum(count - 1, 0)]
    threshold = jnp.clip(jnp.where(count > 0, last_pruned + 1, 1), 1, voters)
    return _nonempty(votes >= threshold, votes, norms)


def majority(votes: jax.Array, voters: jax.Array, required: jax.Array, norms: jax.Array) -> jax.Array:
    """Keeps what at least half of the voters keep.

    >>> majority(jnp.array([4, 2, 1]), jnp.array(4), jnp.array(0.0), jnp.ones(3)).tolist()
    [True, True, False]
    """
    del required
    return _nonempty(2 * votes >= voters, votes, norms)


def unanimity(votes: jax.Array, voters: jax.Array, required: jax.Array, norms: jax.Array) -> jax.Array:
    """Keeps what reaches the 95th percentile of the layer's votes, as published.

    That is what all voters keep, as long as this is 5 % of the layer; then it is what comes
    nearest. Without the guard of at least one vote, a layer of which fewer than 5 % are kept
    would have a percentile of 0, and get all its filters back.

    >>> votes = jnp.array([3, 3, 2, 0])
    >>> unanimity(votes, jnp.array(3), jnp.array(0.0), jnp.ones(4)).tolist()
    [True, True, False, False]
    """
    del voters, required
    # Where the percentile lies between two votes, the upper one is the first to reach it.
    percentile = jnp.sort(votes)[math.ceil(0.95 * (votes.size - 1))]
    return _nonempty(votes >= jnp.maximum(percentile, 1), votes, norms)


def _rank(votes: jax.Array, norms: jax.Array) -> jax.Array:
    """``int32[filters]``: each filter's place among all, the first to be pruned at 0."""
    places = jnp.arange(votes.size)
    order = jnp.lexsort((-places, norms, votes))
    return jnp.zeros_like(places).at[order].set(places)


def _nonempty(mask: jax.Array, votes: jax.Array, norms: jax.Array) -> jax.Array:
    return jnp.where(jnp.any(mask), mask, _rank(votes, norms) == votes.size - 1)


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "topk": topk,
        "dynamic": dynamic,
        "reverse": reverse,
        "majority": majority,
        "unanimity": unanimity,
    }
)
"""The rules by name."""
