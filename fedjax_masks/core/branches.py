"""Branches of a function of one client.

Under ``vmap``, jax computes all branches of a ``lax.switch`` for all clients where the index differs between
them. :func:`switch` computes a branch only if a client takes it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from fedjax_masks.core.types import PyTree

Branch = Callable[..., Any]


def switch(index: jax.Array, branches: Sequence[Branch], *operands: PyTree) -> PyTree:
    """``lax.switch`` whose branches are computed under ``vmap`` only where a client takes them.

    Args:
      index: ``int32[]``: the branch; clipped to the branches that there are.
      branches: ``(*operands) -> result``, with equal shapes of results. They close over no traced values.
      *operands: The arguments of the branch.

    >>> double = lambda index, x: switch(index, [lambda x: x, lambda x: 2 * x], x)
    >>> jax.vmap(double)(jnp.array([0, 1]), jnp.array([3.0, 3.0])).tolist()
    [3.0, 6.0]
    """
    index = jnp.clip(index, 0, len(branches) - 1)

    @custom_vmap
    def of_one(index: jax.Array, operands: PyTree) -> PyTree:
        return jax.lax.switch(index, branches, *operands)

    @of_one.def_vmap
    def of_many(
        size: int, batched: tuple[bool, PyTree], index: jax.Array, operands: PyTree
    ) -> tuple[PyTree, PyTree]:
        index_varies, vary = batched
        axes = jax.tree.map(lambda varies: 0 if varies else None, vary)
        mapped = [_mapped(branch, axes, size) for branch in branches]
        run = _some if index_varies else switch
        result = run(index, mapped, *operands)
        return result, jax.tree.map(lambda _: True, result)

    return of_one(index, operands)


def _mapped(branch: Branch, axes: PyTree, size: int) -> Branch:
    """The branch for all clients; its results have an axis of clients even if nothing varies."""
    return jax.vmap(branch, in_axes=tuple(axes), axis_size=size)


def _some(index: jax.Array, branches: Sequence[Branch], *operands: PyTree) -> PyTree:
    """The results of clients that take different branches, from branches for all clients."""
    shapes = jax.eval_shape(branches[0], *operands)
    result = jax.tree.map(lambda a: jax.lax.full(a.shape, 0, a.dtype), shapes)
    for number, branch in enumerate(branches):
        takes = index == number
        result = switch(
            jnp.any(takes).astype(jnp.int32),
            [lambda result, takes, *operands: result, partial(_filled, branch)],
            *(result, takes, *operands),
        )
    return result


def _filled(branch: Branch, result: PyTree, takes: jax.Array, *operands: PyTree) -> PyTree:
    """The results so far, with those of the clients that take this branch."""
    return jax.tree.map(
        lambda old, new: jnp.where(takes.reshape(-1, *(1,) * (new.ndim - 1)), new, old),
        result,
        branch(*operands),
    )
