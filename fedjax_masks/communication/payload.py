"""What crosses the wire, its exact size in bits, and its bytes.

A payload is any pytree of arrays. An array costs ``size * bits(dtype)``, a bool one bit. The
wrappers of this module say where less, or something else, is really sent::

    {"kernel": Masked(values, mask), "bias": bias, "signs": Encoded(signs)}

Payloads are written, like everything else, for *one* client. Accounting is exact: ``encode``
serialises a payload on the host without headers and without padding between arrays, into
exactly ``bits(payload)`` bits. Both ends know the structure of a payload, its shapes and its
dtypes. ``poison`` keeps receivers honest: it overwrites whatever was not sent.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.communication import entropy
from fedjax_masks.core.algorithm import PyTree


class Masked(NamedTuple):
    """Only the values under True are sent. THE MASK ITSELF IS FREE.

    The receiver must therefore have the mask already: it made it, it received it earlier, or
    it derives it from what it received. No type can check that, so say next to every use how
    it knows. Where the receiver lacks the mask, put the bool arrays into the payload too.

    Attributes:
      values: Pytree of arrays, or of :class:`Quantized` whose codes are then masked.
      mask: Pytree of ``bool`` of the same structure (or a prefix of it) and, leaf by leaf, of
        the same rank. Axes of size 1 broadcast: ``[1, 1, 1, filters]`` sends whole filters.
    """

    values: PyTree
    mask: PyTree


class Known(NamedTuple):
    """Costs nothing: the receiver already holds exactly this.

    Attributes:
      tree: Any pytree.
    """

    tree: PyTree


class When(NamedTuple):
    """Sent only where ``flag`` is True; the receiver knows the flag.

    Attributes:
      flag: ``bool[]``.
      tree: Any payload.
    """

    flag: jax.Array
    tree: PyTree


class Passed(NamedTuple):
    """What went back and forth within the round, in messages of which nothing is left but their size.

    It goes into the upload of an algorithm whose devices and server talk while they train, where
    the server's half of the conversation is part of ``train``.

    Attributes:
      up: ``uint32[]``: bits that the device sent.
      down: ``uint32[]``: bits that it received.
    """

    up: jax.Array
    down: jax.Array


class Sparse(NamedTuple):
    """A few elements of an array of zeros; an index costs ``ceil(log2(n))`` bits.

    Attributes:
      values: ``[k]``, or a :class:`Quantized` with such codes.
      indices: ``int32[k]``, into the flattened array.
      like: ``[*shape, 0]``, see :func:`shape_only`: holds nothing, but has the shape of the
        array.
    """

    values: PyTree
    indices: jax.Array
    like: jax.Array


class Quantized(NamedTuple):
    """Integers of ``b`` bits, 1 to 8, each worth ``scale``.

    Attributes:
      codes: Integers of any shape. Where their dtype is signed, at least ``-2 ** (b - 1)`` and
        less than ``2 ** (b - 1)``, else less than ``2 ** b``.
      scale: ``float32[]``, or whatever broadcasts against ``codes``.
      like: ``[b, 0]``, see :func:`shape_only`: holds nothing, but has the dtype of the values
        and the number of bits as its first axis.
    """

    codes: jax.Array
    scale: jax.Array
    like: jax.Array


class Encoded(NamedTuple):
    """Entropy-coded masks: about ``n H(p)`` bits for ``n`` bits with a share ``p`` of ones.

    See :mod:`fedjax_masks.communication.entropy`; worth its while for arrays of more than some 100 elements
    that are far from half full.

    Attributes:
      mask: Pytree of ``bool``.
    """

    mask: PyTree


_CHUNK = 1 << 20  # integers packed at a time: bounds the host's memory
_WRAPPERS = (Masked, Known, When, Passed, Sparse, Quantized, Encoded)


def shape_only(shape: tuple[int, ...], dtype: Any = bool) -> jax.Array:
    """An array that holds nothing and remembers a shape and a dtype.

    Numbers that must stay static ride through ``jit``, ``vmap`` and ``scan`` as shapes.

    >>> shape_only((3, 4), jnp.float32).shape
    (3, 4, 0)
    """
    return jnp.zeros((*shape, 0), dtype)


class _Part(NamedTuple):
    """One array of a payload, and what is sent of it.

    Attributes:
      leaf: The array, or anything with its shape and dtype.
      span: ``(low, high)`` where its elements are integers ``low <= x < high`` and sent with
        as few bits as that takes; None where they are sent as the bytes they are.
      mask: ``bool`` of the rank of ``leaf``, or None: which elements are sent.
      flag: ``bool[]`` or None: whether anything is sent.
      coded: Whether it is entropy-coded.
    """

    leaf: Any
    span: tuple[int, int] | None = None
    mask: Any = None
    flag: Any = None
    coded: bool = False

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
        if self.span is None:
            return 8 * self.dtype.itemsize
        return (self.span[1] - self.span[0] - 1).bit_length()


def _dtype(leaf: Any) -> Any:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        raise ValueError(f"payload: dtype {dtype} cannot be sent; accepted are numbers and bool")
    return dtype


def _span(dtype: Any) -> tuple[int, int] | None:
    if jnp.issubdtype(dtype, jnp.bool_):
        return 0, 2
    if jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits % 8:
        return int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max) + 1
    return None


def _both(a: Any, b: Any) -> Any:
    if a is None:
        return b
    if isinstance(b, jax.ShapeDtypeStruct):
        return jax.eval_shape(jnp.logical_and, a, b)
    return a & b


def _checked(part: _Part) -> _Part:
    shape, mask = part.shape, part.mask
    if part.coded and part.dtype != bool:
        raise ValueError(f"Encoded: mask is {part.dtype}{list(shape)}; accepted is a bool array")
    if mask is None:
        return part
    broadcasts = len(mask.shape) == len(shape) and all(m in (1, n) for m, n in zip(mask.shape, shape))
    if mask.dtype != bool or not broadcasts:
        raise ValueError(
            f"Masked: mask is {mask.dtype}{list(mask.shape)}, values are {list(shape)}; "
            "accepted is a bool array of the same rank, each axis equal or 1"
        )
    return part


_ALL = _Part(None)

Visit = Callable[[_Part], Any]


def _visit(fn: Visit, payload: PyTree, context: _Part = _ALL) -> PyTree:
    """Replaces every array that may be sent, in order, by ``fn(part)``.

    What the receiver has anyhow stays: masks, flags, and all that is Known.
    """

    def visit(node: Any) -> Any:
        if isinstance(node, _WRAPPERS):
            return _visit_wrapper(fn, node, context)
        return fn(_checked(context._replace(leaf=node, span=_span(_dtype(node)))))

    return jax.tree.map(visit, payload, is_leaf=lambda node: isinstance(node, _WRAPPERS))


def _visit_wrapper(fn: Visit, node: Any, context: _Part) -> PyTree:
    whole = context._replace(mask=None)
    match node:
        case Known() | Passed():
            return node
        case When(flag, tree):
            return When(flag, _visit(fn, tree, context._replace(flag=_both(context.flag, flag))))
        case Masked(values, mask):
            return Masked(
                jax.tree.map(
                    lambda m, v: _visit(fn, v, context._replace(mask=_both(context.mask, m))), mask, values
                ),
                mask,
            )
        case Encoded(mask):
            return Encoded(_visit(fn, mask, whole._replace(coded=True)))
        case Sparse(values, indices, like):
            span = (0, max(1, math.prod(like.shape[:-1])))
            return Sparse(_visit(fn, values, whole), fn(whole._replace(leaf=indices, span=span)), like)
        case Quantized(codes, scale, like):
            codes = _checked(context._replace(leaf=codes, span=_code_span(codes.dtype, like)))
            return Quantized(fn(codes), _visit(fn, scale, whole), like)


def _code_span(dtype: Any, like: Any) -> tuple[int, int]:
    num = like.shape[0]
    if len(like.shape) != 2 or not 1 <= num <= 8:
        raise ValueError(
            f"Quantized: like has shape {list(like.shape)}; accepted is [b, 0] with b from 1 to 8"
        )
    low = -(2 ** (num - 1)) if jnp.issubdtype(dtype, jnp.signedinteger) else 0
    return low, low + 2**num


def _parts(payload: PyTree) -> list[_Part]:
    parts: list[_Part] = []
    _visit(parts.append, payload)
    return parts


def _fixed_bits(part: _Part) -> int:
    """Bits that are sent whatever the mask, if anything is sent."""
    if part.coded:
        return entropy.count_bits(part.size)
    return 0 if part.mask is not None else part.size * part.width


def _max_bits(part: _Part) -> int:
    """The most that the data-dependent bits can be."""
    if part.coded:
        varying = entropy.max_pattern_bits(part.size)
    else:
        varying = 0 if part.mask is None else part.size * part.width
    return varying + (0 if part.flag is None else _fixed_bits(part))


def _varying_bits(part: _Part) -> tuple[Any, int]:
    """The data-dependent bits: ``uint32[]``, and a Python int to multiply it by."""
    if part.coded:
        units, factor = entropy.pattern_bits(jnp.asarray(part.leaf)), 1
        if part.flag is not None:
            units += _fixed_bits(part)
    elif part.mask is not None:
        factor = part.size // max(1, math.prod(part.mask.shape)) * part.width
        units = jnp.sum(part.mask, dtype=jnp.uint32)
    else:
        units, factor = jnp.ones((), jnp.uint32), _fixed_bits(part)
    return (units if part.flag is None else jnp.where(part.flag, units, 0)), factor


def static_bits(payload: PyTree) -> int:
    """The bits that follow from shapes and dtypes alone.

    Args:
      payload: Any payload; leaves may be ``ShapeDtypeStruct`` or tracers.

    Returns:
      A Python int, so that large models cannot overflow it.

    >>> static_bits({"weights": jax.ShapeDtypeStruct((134_301_514,), jnp.float32)})
    4297648448
    """
    return sum(_fixed_bits(part) for part in _parts(payload) if part.flag is None)


def traced_bits(payload: PyTree) -> jax.Array:
    """The bits that depend on masks, flags and entropy-coded masks.

    Args:
      payload: Any payload; its masks, flags and entropy-coded masks may be tracers.

    Returns:
      ``uint32[]``. Together with :func:`static_bits` the exact size of the payload.

    Raises:
      OverflowError: While tracing, if shapes and dtypes alone cannot exclude 2**32 bits.

    >>> payload = Masked(jnp.zeros((2, 3)), jnp.array([[True, False, True]]))
    >>> int(jax.jit(traced_bits)(payload)) == 2 * 2 * 32
    True
    """
    varying = [part for part in _parts(payload) if _max_bits(part)]
    bound = sum(_max_bits(part) for part in varying)
    if bound >= 2**32:
        raise OverflowError(f"payload: {bound} data-dependent bits may be sent; accepted are less than 2**32")
    total = jnp.zeros((), jnp.uint32)
    for part in varying:
        units, factor = _varying_bits(part)
        total += units * jnp.uint32(factor)
    return total


def bits(payload: PyTree) -> int:
    """The exact size of a concrete payload, of any size, in bits.

    >>> bits({"kernel": Masked(jnp.zeros(4), jnp.arange(4) < 1), "signs": jnp.zeros(7, bool)})
    39
    """
    varying = (_varying_bits(part) for part in _parts(payload) if _max_bits(part))
    return static_bits(payload) + sum(int(units) * factor for units, factor in varying)


def passed_bits(payload: PyTree) -> tuple[jax.Array, jax.Array]:
    """The sum of all that has :class:`Passed`, which is in no other count: ``uint32[]`` up and down."""
    nodes = jax.tree.leaves(payload, is_leaf=lambda node: isinstance(node, Passed))
    total = Passed(jnp.zeros((), jnp.uint32), jnp.zeros((), jnp.uint32))
    for node in nodes:
        if isinstance(node, Passed):
            total = Passed(total.up + node.up, total.down + node.down)
    return total.up, total.down


def messages(each_up: PyTree, each_down: PyTree, times: jax.Array, at_most: int) -> Passed:
    """Messages within a round that were sent so many times.

    Args:
      each_up: A payload of one message from the device; leaves may be ``ShapeDtypeStruct``.
      each_down: Of one message to it.
      times: ``int32[]``: how often both were sent.
      at_most: A static bound of it.

    Raises:
      OverflowError: If they may add up to 2**32 bits.

    >>> passed = messages(jax.ShapeDtypeStruct((3,), jnp.float32), (), jnp.int32(2), 5)
    >>> int(passed.up), int(passed.down)
    (192, 0)
    """
    sizes = [static_bits(each) for each in (each_up, each_down)]
    if max(sizes) * at_most >= 2**32:
        raise OverflowError(
            f"payload: {max(sizes) * at_most} bits may pass in a round; accepted are less than 2**32"
        )
    return Passed(*(times.astype(jnp.uint32) * jnp.uint32(size) for size in sizes))


def poison(payload: PyTree) -> PyTree:
    """The payload with everything that is not sent overwritten.

    A receiver that reads what it never received is found out: floats become NaN, integers
    the largest of their dtype, and bools their opposite.

    >>> poison(Masked(jnp.array([1.0, 2.0]), jnp.array([True, False]))).values.tolist()
    [1.0, nan]
    """

    def overwrite(part: _Part) -> Any:
        sent = part.mask if part.flag is None else _both(part.mask, part.flag)
        return part.leaf if sent is None else jnp.where(sent, part.leaf, _poison(part))

    return _visit(overwrite, payload)


def _poison(part: _Part) -> Any:
    if part.dtype == bool:
        return ~jnp.asarray(part.leaf)
    if jnp.issubdtype(part.dtype, jnp.inexact):
        return jnp.array(jnp.nan, part.dtype)
    return jnp.array(jnp.iinfo(part.dtype).max, part.dtype)


def _sent(part: _Part) -> np.ndarray | None:
    """``bool`` of the shape of the array; None where all of it is sent. Concrete."""
    if part.flag is not None and not part.flag:
        return np.zeros(part.shape, bool)
    return None if part.mask is None else np.broadcast_to(np.asarray(part.mask), part.shape)


def encode(payload: PyTree) -> bytes:
    r"""Serialises a concrete payload into ``ceil(bits(payload) / 8)`` bytes.

    Whole bytes are written little-endian; narrower integers, bools and indices with the most
    significant bit first, from their smallest possible value upwards.

    Args:
      payload: A payload of concrete arrays.

    Raises:
      ValueError: If a code or an index lies outside its range.

    >>> encode({"a": np.array([True, False, True]), "b": np.array([255], np.uint8)})
    b'\xbf\xe0'
    """
    return entropy.join(segment for part in _parts(payload) for segment in _write(part))


def _write(part: _Part) -> list[entropy.Segment]:
    sent = _sent(part)
    values = np.asarray(part.leaf, part.dtype)
    if part.coded:
        return list(entropy.encode_mask(values)) if sent is None else []
    values = values.ravel() if sent is None else values[sent]
    if part.span is None:
        return [(np.ascontiguousarray(values).view(np.uint8), 8 * values.nbytes)]
    starts = range(0, values.size, _CHUNK)
    return [entropy.pack_ints(values[i : i + _CHUNK], part.span, part.width) for i in starts]


def decode(data: bytes, like: PyTree) -> PyTree:
    """The inverse of :func:`encode`, for a receiver that trusts nobody.

    Args:
      data: What ``encode`` returned.
      like: A payload of the same structure: its arrays give shapes and dtypes (they may be
        ``ShapeDtypeStruct``), and what the receiver already knows is taken from it: masks,
        flags, and all that is Known.

    Returns:
      The payload, of NumPy arrays; what was not sent is 0.

    Raises:
      ValueError: If ``data`` is too short, too long, or no such payload.

    >>> like = Masked(np.zeros(3, np.uint8), np.array([True, False, True]))
    >>> decode(encode(like._replace(values=np.array([7, 8, 9], np.uint8))), like).values.tolist()
    [7, 0, 9]
    """
    reader = entropy.BitReader(data)
    payload = _visit(lambda part: _read(reader, part), like)
    reader.close()
    return payload


def _read(reader: entropy.BitReader, part: _Part) -> np.ndarray:
    sent = _sent(part)
    if part.coded and sent is None:
        return entropy.decode_mask(reader, part.size).reshape(part.shape)
    count = part.size if sent is None else int(sent.sum())
    if part.span is None:
        values = reader.take(count * part.width).view(part.dtype)
    else:
        # Lazily, like the blocks of a mask: how much is expected must not cost what is not there.
        sizes = (min(_CHUNK, count - start) for start in range(0, count, _CHUNK))
        pieces = [entropy.unpack_ints(reader, size, part.span, part.width) for size in sizes]
        values = np.concatenate([np.zeros(0, part.dtype), *(piece.astype(part.dtype) for piece in pieces)])
    if sent is None:
        return values.reshape(part.shape)
    out = np.zeros(part.shape, part.dtype)
    out[sent] = values
    return out
