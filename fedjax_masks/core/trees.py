"""Small functions on pytrees."""

import functools
import math

import jax
import jax.numpy as jnp

from fedjax_masks.core.algorithm import PyTree
from fedjax_masks.core.nested import flat as flat


def where(condition: jax.Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """Selects whole pytrees by one scalar condition."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)


def add(a: PyTree, b: PyTree) -> PyTree:
    """Adds leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def sub(a: PyTree, b: PyTree) -> PyTree:
    """Subtracts leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def scale(tree: PyTree, factor: jax.typing.ArrayLike) -> PyTree:
    """Multiplies every leaf by one factor."""
    return jax.tree.map(lambda a: a * factor, tree)


def zeros_like(tree: PyTree) -> PyTree:
    """Zeros in the shape of every leaf; leaves may be ``ShapeDtypeStruct``."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)


def replicate(tree: PyTree, num: int) -> PyTree:
    """Adds a leading axis of length ``num`` to every leaf, each row a copy."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (num, *jnp.shape(a))), tree)


def all_finite(tree: PyTree) -> jax.Array:
    """Whether all floats are finite, and small enough for weighted sums to be finite, ``bool[]``.

    Values above 2**60 do not count as finite: a weighted sum of a few of them could be infinite.

    >>> bool(all_finite({"a": jnp.ones(2), "b": jnp.array([1.0, jnp.nan])}))
    False
    """
    # A maximum propagates NaN, and is one small program per leaf, where a test of every element and a
    # conjunction are two.
    largest = [
        jnp.max(jnp.abs(leaf), initial=0)
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    ]
    return functools.reduce(jnp.maximum, largest, jnp.zeros(())) <= 2.0**60  # False for NaN


def size(tree: PyTree) -> int:
    """The number of elements over all leaves, as a Python int."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
    """The bytes that the leaves take in memory, as a Python int."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def get(tree: PyTree, path: tuple[str, ...]) -> PyTree:
    """The node of a nested dict under ``path``.

    >>> get({"dense": {"kernel": 3}}, ("dense", "kernel"))
    3
    """
    for name in path:
        tree = tree[name]
    return tree


def put(tree: PyTree, path: tuple[str, ...], node: PyTree) -> PyTree:
    """A nested dict with the node under ``path`` replaced; the rest is shared.

    >>> put({"a": {"b": 1, "c": 2}}, ("a", "b"), 5)
    {'a': {'b': 5, 'c': 2}}
    """
    if not path:
        return node
    return {**tree, path[0]: put(tree[path[0]], path[1:], node)}
