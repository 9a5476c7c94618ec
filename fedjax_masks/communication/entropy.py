"""Bits on the host: an unaligned bit stream, and an enumerative code for masks.

A mask is cut into blocks of :data:`BLOCK` elements (the last one may be shorter). Each block
is sent as its number of ones, and the rank of its pattern among all patterns with that
number (Cover 1973, "Enumerative source encoding", doi 10.1109/TIT.1973.1054929). The length
is an integer function of the blocks' counts alone, so that it can be looked up inside a jit
compiled program, and the coder below reaches it to the bit.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 2**14

Segment = tuple[np.ndarray, int]
"""``uint8[ceil(n / 8)]`` with ``n`` bits, the most significant first, then zeros; and ``n``."""


def join(segments: Iterable[Segment]) -> bytes:
    r"""Puts bit strings end to end; only the very last byte is filled up with zeros.

    >>> join([(np.array([0b10100000], np.uint8), 3), (np.array([0b11000000], np.uint8), 2)])
    b'\xb8'
    """
    segments = list(segments)
    total = sum(num_bits for _, num_bits in segments)
    out = np.zeros(-(-total // 8) + 1, np.uint8)
    at = 0
    for data, num_bits in segments:
        start, shift = divmod(at, 8)
        out[start : start + len(data)] |= data >> shift
        if shift:
            out[start + 1 : start + 1 + len(data)] |= data << (8 - shift)
        at += num_bits
    return out[:-1].tobytes()


class BitReader:
    r"""Reads a bit string from its start.

    >>> reader = BitReader(b"\xb8")
    >>> reader.take(3), reader.take(2)
    (array([160], dtype=uint8), array([192], dtype=uint8))
    >>> reader.close()
    """

    def __init__(self, data: bytes):
        self._data = np.frombuffer(data, np.uint8)
        self._at = 0

    def take(self, num_bits: int) -> np.ndarray:
        """The next bits, as ``uint8[ceil(num_bits / 8)]`` filled up with zeros.

        Raises:
          ValueError: If fewer bits are left.
        """
        left = 8 * len(self._data) - self._at
        if num_bits > left:
            raise ValueError(f"payload is truncated: {num_bits} bits expected, {left} bits left")
        start, shift = divmod(self._at, 8)
        length = -(-num_bits // 8)
        out = self._data[start : start + length] << shift
        if shift:
            rest = self._data[start + 1 : start + 1 + length] >> (8 - shift)
            out[: len(rest)] |= rest
        if num_bits % 8:
            out[-1] &= 0xFF & (0xFF << (-num_bits % 8))
        self._at += num_bits
        return out

    def close(self) -> None:
        """Checks that nothing but the zeros of the last byte is left.

        Raises:
          ValueError: If there is more.
        """
        left = 8 * len(self._data) - self._at
        if left > 7 or self.take(left).any():
            raise ValueError(f"payload is too long: {left} bits left after the last value")


def pack_ints(values: np.ndarray, span: tuple[int, int], width: int) -> Segment:
    """Integers ``low <= x < high`` as ``width`` bits each, the most significant first.

    Args:
      values: ``[n]``, integers or bool.
      span: ``(low, high)``.
      width: Bits for ``high - low`` different values.

    Raises:
      ValueError: If a value lies outside of the span.

    >>> pack_ints(np.array([-1, 1, 0]), (-2, 2), 2)
    (array([120], dtype=uint8), 6)
    """
    low, high = span
    offsets = values.astype(np.int64) - low
    if offsets.size and not 0 <= offsets.min() <= offsets.max() < high - low:
        raise ValueError(
            f"payload: integers from {low} to {high - 1} expected, {_range(offsets + low)} given"
        )
    bits = offsets[:, None] >> np.arange(width)[::-1] & 1
    return np.packbits(bits.astype(bool)), values.size * width


def unpack_ints(reader: BitReader, count: int, span: tuple[int, int], width: int) -> np.ndarray:
    """The inverse of :func:`pack_ints`: reads ``int64[count]``.

    Raises:
      ValueError: If a value lies outside of the span, or bits are missing.
    """
    low, high = span
    bits = np.unpackbits(reader.take(count * width), count=count * width).reshape(count, width)
    values = np.full(count, low, np.int64)
    for column, place in zip(bits.T, reversed(range(width))):
        values += column.astype(np.int64) << place
    if count and values.max() >= high:
        raise ValueError(f"payload: integers from {low} to {high - 1} expected, {_range(values)} received")
    return values


def _range(values: np.ndarray) -> str:
    return f"{values.min()} to {values.max()}"


@functools.lru_cache(maxsize=256)
def rank_bits(num: int) -> np.ndarray:
    """Bits of a rank among the patterns of ``num`` bits, by their number of ones.

    Args:
      num: Length of the patterns.

    Returns:
      ``uint32[num + 1]``: entry ``k`` is ``ceil(log2(comb(num, k)))``, exactly.

    >>> rank_bits(4).tolist()
    [0, 2, 3, 2, 0]
    """
    log_factorial = np.array([math.lgamma(i + 1) for i in range(num + 1)])
    logs = (log_factorial[-1] - log_factorial - log_factorial[::-1]) / math.log(2)
    bits = np.ceil(logs).astype(np.uint32)
    # Logarithms are good to about 1e-10. Next to an integer they decide nothing.
    for k in np.flatnonzero(np.abs(logs - np.round(logs)) < 1e-6):
        bits[k] = (math.comb(num, int(k)) - 1).bit_length()
    bits.flags.writeable = False
    return bits


def _block_sizes(size: int) -> Iterator[int]:
    full, tail = divmod(size, BLOCK)
    return itertools.chain(itertools.repeat(BLOCK, full), [tail] * (tail > 0))


def count_bits(size: int) -> int:
    """Bits for the number of ones of every block of a mask of ``size`` elements."""
    return sum(num.bit_length() for num in _block_sizes(size))


def max_pattern_bits(size: int) -> int:
    """The most that :func:`pattern_bits` can be for a mask of ``size`` elements."""
    return sum(int(rank_bits(num).max()) for num in _block_sizes(size))


def pattern_bits(mask: jax.Array) -> jax.Array:
    """``uint32[]``: bits for the ranks of all blocks of a bool array; traceable.

    >>> int(pattern_bits(jnp.array([True, False, False, True])))
    3
    """
    full, tail = divmod(mask.size, BLOCK)
    flat = mask.ravel()
    counts = jnp.sum(flat[: full * BLOCK].reshape(full, BLOCK), axis=1, dtype=jnp.int32)
    total = jnp.zeros((), jnp.uint32)
    if full:
        total += jnp.sum(jnp.asarray(rank_bits(BLOCK))[counts], dtype=jnp.uint32)
    if tail:
        ones = jnp.sum(flat[full * BLOCK :], dtype=jnp.int32)
        total += jnp.asarray(rank_bits(tail))[ones]
    return total


def _rank(bits: list[bool], ones: int) -> int:
    """The place of a pattern among those with as many ones (combinatorial number system)."""
    position = len(bits) - 1
    smaller = math.comb(position, ones)  # patterns with a 0 here
    rank = 0
    # Where ``smaller`` is 0 the rest is all ones, where ``ones`` is 0 all zeros.
    while ones and smaller:
        if bits[position]:
            rank += smaller
            smaller = smaller * ones // position
            ones -= 1
        else:
            smaller = smaller * (position - ones) // position
        position -= 1
    return rank


def _unrank(rank: int, num: int, ones: int) -> np.ndarray:
    """The pattern of ``num`` bits with a given number of ones and a given rank."""
    bits = np.zeros(num, bool)
    position = num - 1
    smaller = math.comb(position, ones)
    while ones and smaller:
        if rank >= smaller:
            bits[position] = True
            rank -= smaller
            smaller = smaller * ones // position
            ones -= 1
        else:
            smaller = smaller * (position - ones) // position
        position -= 1
    bits[:ones] = True
    return bits


def _int_to_segment(value: int, num_bits: int) -> Segment:
    length = -(-num_bits // 8)
    data = (value << (-num_bits % 8)).to_bytes(length, "big")
    return np.frombuffer(data, np.uint8), num_bits


def _take_int(reader: BitReader, num_bits: int) -> int:
    return int.from_bytes(reader.take(num_bits).tobytes(), "big") >> (-num_bits % 8)


def encode_mask(mask: np.ndarray) -> Iterator[Segment]:
    """The code of a bool array, ``count_bits(mask.size) + pattern_bits(mask)`` bits long."""
    for block in np.split(mask.ravel(), range(BLOCK, mask.size, BLOCK)) if mask.size else ():
        ones = int(block.sum())
        width = int(rank_bits(block.size)[ones])
        yield _int_to_segment(ones, block.size.bit_length())
        yield _int_to_segment(_rank(block.tolist(), ones), width)


def decode_mask(reader: BitReader, size: int) -> np.ndarray:
    """The inverse of :func:`encode_mask`.

    Args:
      reader: The bit string.
      size: Number of elements of the mask.

    Returns:
      ``bool[size]``.

    Raises:
      ValueError: If the bits are no code of such a mask.
    """
    blocks = [np.zeros(0, bool)]
    for num in _block_sizes(size):
        ones = _take_int(reader, num.bit_length())
        if ones > num:
            raise ValueError(f"payload is corrupt: {ones} ones in a block of {num} bits")
        rank = _take_int(reader, int(rank_bits(num)[ones]))
        if rank >= math.comb(num, ones):
            raise ValueError(f"payload is corrupt: no pattern of {num} bits, {ones} ones, has this rank")
        blocks.append(_unrank(rank, num, ones))
    return np.concatenate(blocks)
