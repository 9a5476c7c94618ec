"""The visitor of payloads: every array that may be sent, with the conditions under which it is sent."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.communication.payload import (
    NODES,
    AlreadyKnown,
    Conditional,
    Dialogue,
    Encoded,
    Installed,
    Masked,
    Quantized,
    Sparse,
)
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.types import PyTree

Role = Literal["value", "code", "scale", "index"]


class Part(NamedTuple):
    """One array of a payload, and the conditions under which it is sent.

    Attributes:
      leaf: The array, or anything with its shape and dtype.
      role: ``value``; ``code`` or ``scale`` in a :class:`Quantized`; ``index`` in a :class:`Sparse`.
      span: ``(low, high)`` where the elements are integers ``low <= x < high``, sent with the smallest number
        of bits; None where the elements are sent as bytes.
      mask: ``bool`` of the rank of ``leaf``: the elements that are sent; None for all.
      flag: ``bool[]``: whether the array is sent; None for always.
      is_coded: Whether the array is entropy-coded.
    """

    leaf: PyTree
    role: Role = "value"
    span: tuple[int, int] | None = None
    mask: PyTree = None
    flag: PyTree = None
    is_coded: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(np.shape(self.leaf))

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(_dtype(self.leaf))

    @property
    def width(self) -> int:
        """The number of bits of an element."""
        if self.span is None:
            return 8 * self.dtype.itemsize
        return (self.span[1] - self.span[0] - 1).bit_length()

    @property
    def sent_mask(self) -> PyTree:
        """The elements that are sent: True for all, or ``bool`` that broadcasts against the leaf."""
        condition = _both(self.flag, self.mask)
        return True if condition is None else condition

    @property
    def is_float(self) -> bool:
        """Whether the elements are float values that are neither quantized nor encoded."""
        return self.role == "value" and bool(jnp.issubdtype(self.dtype, jnp.floating))


def _dtype(leaf: PyTree) -> PyTree:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        raise UserError(f"payload: must consist of numbers and bools, and has an array of {dtype}")
    return dtype


def _span(dtype: PyTree) -> tuple[int, int] | None:
    if jnp.issubdtype(dtype, jnp.bool_):
        return 0, 2
    if jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits % 8:
        return int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max) + 1
    return None


def _both(a: PyTree, b: PyTree) -> PyTree:
    """The conjunction of two conditions, aligned by their first axes; None is no condition."""
    if a is None or b is None:
        return b if a is None else a
    if isinstance(a, jax.ShapeDtypeStruct) or isinstance(b, jax.ShapeDtypeStruct):
        return jax.eval_shape(_both, *(jax.ShapeDtypeStruct(c.shape, c.dtype) for c in (a, b)))
    rank = max(jnp.ndim(a), jnp.ndim(b))
    a, b = (jnp.reshape(c, (*jnp.shape(c), *(1,) * (rank - jnp.ndim(c)))) for c in (a, b))
    return a & b


def _with_checks(part: Part) -> Part:
    """The part, after checks of its mask."""
    shape, mask = part.shape, part.mask
    if part.is_coded and part.dtype != bool:
        raise UserError(f"Encoded.mask: must be a bool array, and is {part.dtype}{list(shape)}")
    if mask is None:
        return part
    broadcasts = len(mask.shape) == len(shape) and all(m in (1, n) for m, n in zip(mask.shape, shape))
    if mask.dtype != bool or not broadcasts:
        raise UserError(
            "Masked.mask: must be a bool array of the rank of its values, each axis equal or 1, and is "
            f"{mask.dtype}{list(mask.shape)} for values {list(shape)}"
        )
    return part


_ALL = Part(None)
Visit = Callable[[Part], Any]


class _Visitor(NamedTuple):
    """A visit of all arrays that may be sent; see :func:`map_sent` for the fields."""

    fn: Visit
    condition: Callable[[Any], Any] | None
    known: bool

    def tree(self, payload: PyTree, context: Part) -> PyTree:
        """Visits a payload; ``context`` has the conditions of the nodes around it."""

        def visit(node: PyTree) -> PyTree:
            if isinstance(node, NODES):
                return self.node(node, context)
            return self.fn(_with_checks(context._replace(leaf=node, span=_span(_dtype(node)))))

        return jax.tree.map(visit, payload, is_leaf=lambda node: isinstance(node, NODES))

    def node(self, node: PyTree, context: Part) -> PyTree:
        """Visits one node of a payload."""
        whole = context._replace(mask=None)
        match node:
            case AlreadyKnown(tree):
                return AlreadyKnown(self.tree(tree, context)) if self.known else node
            case Installed() | Dialogue():
                return node
            case Conditional(flag, tree):
                inner = context._replace(flag=_both(context.flag, flag))
                return Conditional(self.replace(flag, inner.flag), self.tree(tree, inner))
            case Masked(values, mask):

                def masked(m: PyTree) -> Part:
                    return context._replace(mask=_both(context.mask, m))

                return Masked(
                    jax.tree.map(lambda m, v: self.tree(v, masked(m)), mask, values),
                    jax.tree.map(lambda m: self.replace(m, masked(m).sent_mask), mask),
                )
            case Encoded(mask):
                return node._replace(mask=self.tree(mask, whole._replace(is_coded=True)))
            case Sparse(values, indices, like):
                span = (0, max(1, math.prod(like.shape[:-1])))
                index = whole._replace(leaf=indices, role="index", span=span)
                return Sparse(self.tree(values, whole), self.fn(index), like)
            case Quantized(codes, scale, like):
                span = _code_span(codes.dtype, like)
                code = _with_checks(context._replace(leaf=codes, role="code", span=span))
                return Quantized(self.fn(code), self.tree(scale, whole._replace(role="scale")), like)

    def replace(self, condition: PyTree, conjunction: PyTree) -> PyTree:
        """The new value of a mask or flag, given its conjunction with all conditions around it."""
        return condition if self.condition is None else self.condition(conjunction)


def _code_span(dtype: PyTree, like: PyTree) -> tuple[int, int]:
    num = like.shape[0]
    if len(like.shape) != 2 or not 1 <= num <= 8:
        raise UserError(f"Quantized.like: must be [b, 0] with b from 1 to 8, and is {list(like.shape)}")
    low = -(2 ** (num - 1)) if jnp.issubdtype(dtype, jnp.signedinteger) else 0
    return low, low + 2**num


def map_sent(
    fn: Visit,
    payload: PyTree,
    *,
    condition: Callable[[Any], Any] | None = None,
    known: bool = False,
) -> PyTree:
    """Replaces every array that may be sent, in order, by ``fn(part)``.

    Parts that the receiver has in any case stay as they are: masks, flags, and all arrays inside
    :class:`AlreadyKnown` or :class:`Installed`.

    Args:
      fn: ``(part) -> replacement`` of the array: an array or a pytree.
      payload: Any payload, or a cohort's payloads stacked on axis 0.
      condition: ``(bool array) -> bool array``: replaces masks and flags. The argument is the conjunction of
        a mask or flag with all conditions around it.
      known: Whether to visit arrays inside :class:`AlreadyKnown`, too.

    >>> doubled = map_sent(lambda part: 2 * part.leaf, {"a": jnp.ones(2), "b": AlreadyKnown(jnp.ones(1))})
    >>> doubled["a"].tolist(), doubled["b"].tree.tolist()
    ([2.0, 2.0], [1.0])
    """
    return _Visitor(fn, condition, known).tree(payload, _ALL)


def fold_sent(fn: Visit, payload: PyTree) -> list[Any]:
    """The results of ``fn(part)`` for every array that may be sent, in order.

    >>> fold_sent(lambda part: part.shape, {"a": jnp.ones((2, 3)), "b": AlreadyKnown(jnp.ones(1))})
    [(2, 3)]
    """
    results: list[Any] = []
    map_sent(lambda part: results.append(fn(part)), payload)
    return results


def poison(payload: PyTree) -> PyTree:
    """Overwrites all values of a payload that are not sent.

    The results of a receiver that reads such values change: floats become NaN, integers the largest value of
    their dtype, and bools their opposite.

    >>> poison(Masked(jnp.array([1.0, 2.0]), jnp.array([True, False]))).values.tolist()
    [1.0, nan]
    """

    def overwrite(part: Part) -> PyTree:
        mask = part.sent_mask
        return part.leaf if mask is True else jnp.where(mask, part.leaf, _poison(part))

    return map_sent(overwrite, payload)


def _poison(part: Part) -> PyTree:
    if part.dtype == bool:
        return ~jnp.asarray(part.leaf)
    if jnp.issubdtype(part.dtype, jnp.inexact):
        return jnp.array(jnp.nan, part.dtype)
    return jnp.array(jnp.iinfo(part.dtype).max, part.dtype)
