"""Pure functions of masks: binarization, ranking, group norms, pruning.

Masks are ``bool``; only the wire and the stores on the host pack them into bits. A mask may have axes of
size 1 where it does not vary.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_masks.core import target, trees
from fedjax_masks.core.types import Params, PyTree

Gradient = Literal["sigmoid", "straight_through"]

_PAIRS = 1024  # the most scores that an accelerator compares pair by pair


@jax.custom_jvp
def binarize(scores: jax.Array) -> jax.Array:
    """``[sigmoid(scores) > 0.5]`` as floats, differentiated as if it were the sigmoid.

    Li et al. 2021 (doi 10.1145/3485730.3485929), eqs. 5 to 7:
    ``dL/dr = s(r) (1 - s(r)) dL/dm``.

    >>> binarize(jnp.array([-0.1, 0.0, 2.0])).tolist()
    [0.0, 0.0, 1.0]
    >>> float(jax.grad(binarize)(jnp.array(0.0)))
    0.25
    """
    return (scores > 0).astype(scores.dtype)


def _sigmoid_tangent(tangent: jax.Array, mask: jax.Array, scores: jax.Array) -> jax.Array:
    soft = jax.nn.sigmoid(scores)
    return soft * (1 - soft) * tangent


binarize.defjvps(_sigmoid_tangent)


@jax.custom_jvp
def binarize_straight_through(scores: jax.Array) -> jax.Array:
    """``[sigmoid(scores) > 0.5]`` as floats, differentiated as if it were the identity.

    The plain straight-through estimator (Bengio et al. 2013, arXiv 1308.3432).

    >>> float(jax.grad(binarize_straight_through)(jnp.array(0.0)))
    1.0
    """
    return (scores > 0).astype(scores.dtype)


binarize_straight_through.defjvps(lambda tangent, mask, scores: tangent)


def top_share(scores: jax.Array, share: float) -> jax.Array:
    """Marks the elements with the largest scores.

    Args:
      scores: Any float array; ranked over all its elements. Ties go to the lower index.
      share: The share of elements to mark, in (0, 1]; at least one element is marked.

    Returns:
      ``bool`` of the shape of ``scores`` with exactly ``max(1, round(share * size))`` True.

    >>> top_share(jnp.array([[1.0, 4.0], [3.0, 2.0]]), 0.5).tolist()
    [[False, True], [True, False]]
    """
    keep = max(1, round(share * scores.size))
    return jnp.ones(scores.shape, bool) if keep == scores.size else top_count(scores, keep)


def top_count(scores: jax.Array, keep: jax.Array | int) -> jax.Array:
    """Marks the ``keep`` elements with the largest scores; ``keep`` may be traced.

    Args:
      scores: Any float array; ranked over all its elements. Ties go to the lower index.
      keep: ``int32[]``, from 1 to the number of elements.

    Returns:
      ``bool`` of the shape of ``scores``.

    >>> top_count(jnp.array([1.0, 4.0, 4.0, 2.0]), 1).tolist()
    [False, True, False, False]
    """
    keys, keep = _sortable(scores.ravel()), jnp.asarray(keep, jnp.int32)
    if not target.is_cpu() and keys.size <= _PAIRS:
        return _among_pairs(keys, keep).reshape(scores.shape)
    certain, ties, count = _largest(keys, keep)
    # Ties go to the lower index: ranks fall with the index, and no two ties share a rank.
    ranks = jnp.where(ties, jnp.arange(keys.size, 0, -1, dtype=jnp.uint32), 0)
    first, last, _ = _largest(ranks, count)
    return (certain | first | last).reshape(scores.shape)


def _among_pairs(keys: jax.Array, keep: jax.Array) -> jax.Array:
    """The ``keep`` largest keys, by comparisons of all pairs: an accelerator starts few kernels."""
    keys = jax.lax.optimization_barrier(keys)  # XLA could compute both sides of a pair differently
    place = jnp.arange(keys.size)
    mine, other = keys[:, None], keys[None]
    is_before = (other > mine) | ((other == mine) & (place[None] < place[:, None]))
    return jnp.sum(is_before, 1, dtype=jnp.int32) < keep


def _sortable(values: jax.Array) -> jax.Array:
    """Unsigned integers in the order of the float ``values``; equal exactly where the values are equal."""
    bits = jnp.finfo(values.dtype).bits
    raw = jax.lax.bitcast_convert_type(values + 0.0, f"uint{bits}")  # -0.0 becomes 0.0
    top = jnp.ones((), raw.dtype) << (bits - 1)
    return jnp.where(raw >= top, ~raw, raw | top)


def _largest(keys: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finds the ``keep`` largest keys, digit by digit; sorting is many times slower.

    Only the loop reads the keys: XLA may compute an operand again for a use outside the loop, and round it
    differently there.

    Returns:
      ``bool`` masks of the keys that are certainly among the largest, and of the keys that tie for the rest
      of the places; and the number of these places, ``int32[]``.
    """
    bits = jnp.iinfo(keys.dtype).bits
    # On a CPU, bit by bit costs least; an accelerator starts a few kernels for every digit.
    width = 1 if target.is_cpu() else 4

    def refine(index: jax.Array, carry: PyTree) -> PyTree:
        certain, ties, count = carry
        shift = (bits - width * (1 + index)).astype(keys.dtype)
        digit = ((keys >> shift) & (2**width - 1)).astype(jnp.int32)
        # The number of ties with this digit or a larger one, by digit from 1; none exceeds the largest digit.
        digits = jnp.arange(1, 2**width, dtype=jnp.int32)
        numbers = jnp.sum(ties[:, None] & (digit[:, None] >= digits), 0, dtype=jnp.int32)
        last = jnp.sum(numbers >= count, dtype=jnp.int32)
        above = jnp.sum(jnp.where(digits == last + 1, numbers, 0), dtype=jnp.int32)
        return certain | (ties & (digit > last)), ties & (digit == last), count - above

    everything = jnp.ones(keys.shape, bool)
    return jax.lax.fori_loop(0, bits // width, refine, (~everything, everything, keep))


def group_norms(values: jax.Array) -> jax.Array:
    """The sum of the l2 norms of a kernel's groups; each output and each input is a group.

    Args:
      values: A kernel ``[..., inputs, outputs]``: ``[in, out]`` or ``[h, w, in, out]``.

    Returns:
      ``float32[]``: the sum over outputs plus the sum over inputs (Li et al. 2021, eq. 10),
      without weights for the sizes of groups. Smooth at 0, where its gradient is 0.

    >>> float(group_norms(jnp.array([[3.0, 0.0], [4.0, 0.0]])))
    12.0
    """
    squares = jnp.square(values).reshape(-1, *values.shape[-2:]).sum(0)

    def total(sums: jax.Array) -> jax.Array:
        positive = sums > 0
        return jnp.sum(jnp.where(positive, jnp.sqrt(jnp.where(positive, sums, 1)), 0))

    return total(squares.sum(0)) + total(squares.sum(1))


def mask_params(kernels: Iterable[Any], params: Params, mask: Mapping[str, jax.Array]) -> Params:
    """Multiplies a model's kernels by masks.

    Args:
      kernels: The model's kernels, ``model.kernels``.
      params: The model's parameters.
      mask: Bool or float, shaped like the kernel, by layer name.

    Returns:
      The parameters; only the kernels change.
    """
    for kernel in kernels:
        masked = trees.get(params, kernel.path) * mask[kernel.name]
        params = trees.put(params, kernel.path, masked)
    return params


def all_filters(kernels: Iterable[Any]) -> dict[str, jax.Array]:
    """The mask that keeps every filter: ``bool[outputs]``, all True, by layer."""
    return {kernel.name: jnp.ones(kernel.outputs, bool) for kernel in kernels}


def filter_mask(
    kernels: Iterable[Any],
    params: Params,
    filters: Mapping[str, jax.Array],
    parts: Callable[[Any], Iterable[tuple[str, ...]]],
) -> Params:
    """Expands masks of filters to a mask of parameters.

    Args:
      kernels: The model's kernels, ``model.kernels``.
      params: The model's parameters, for their shapes.
      filters: ``bool[outputs]`` by layer; a missing layer counts as all True.
      parts: ``(kernel) -> paths`` of the parameters that belong to the kernel's filters, with outputs as
        their last axis.

    Returns:
      Pytree of bool like ``params``, with axes of size 1 where it does not vary.
    """
    mask = jax.tree.map(lambda a: jnp.ones((1,) * a.ndim, bool), params)
    for kernel in kernels:
        if kernel.name in filters:
            for path in parts(kernel):
                ones = trees.get(mask, path)
                mask = trees.put(mask, path, filters[kernel.name].reshape(*ones.shape[:-1], -1))
    return mask


def weight_mask(kernels: Iterable[Any], params: Params, mask: Mapping[str, jax.Array]) -> Params:
    """Expands masks of weights to a mask of parameters, which is True outside kernels.

    Args:
      kernels: The model's kernels, ``model.kernels``.
      params: The model's parameters, for their shapes.
      mask: Bool, shaped like the kernel, by layer name.

    Returns:
      Pytree of bool like ``params``, with axes of size 1 where it does not vary.
    """
    whole = jax.tree.map(lambda a: jnp.ones((1,) * a.ndim, bool), params)
    for kernel in kernels:
        whole = trees.put(whole, kernel.path, mask[kernel.name])
    return whole


def prune(params: Params, mask: Params) -> Params:
    """Sets parameters to exactly 0 where the mask is False.

    >>> prune({"w": jnp.array([1.0, jnp.nan])}, {"w": jnp.array([True, False])})["w"].tolist()
    [1.0, 0.0]
    """
    return jax.tree.map(lambda a, keep: jnp.where(keep, a, 0), params, mask)


def density(mask: dict[str, jax.Array]) -> jax.Array:
    """The share of True over all arrays together, ``float32[]``."""
    ones = [jnp.sum(m, dtype=jnp.int32) for m in mask.values()]
    return jnp.sum(jnp.stack(ones)) / sum(m.size for m in mask.values())
