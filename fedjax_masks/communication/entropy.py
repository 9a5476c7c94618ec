"""Enumerative entropy coding of masks.

A mask is cut into blocks of :data:`BLOCK` elements (the last block may be shorter). The code of a block is
the number of its ones, and the rank of its pattern among all patterns with that number of ones (Cover 1973,
"Enumerative source encoding", doi 10.1109/TIT.1973.1054929). The length of the code is an integer function
of the numbers of ones alone. A jit-compiled program therefore looks the length up, and the coder on the host
reaches it to the bit.
"""

import functools
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.communication.bitstream import BitReader, Segment, int_to_segment, take_int

BLOCK = 2**14
"""Elements of a block."""


@functools.lru_cache(maxsize=256)
def rank_bits(num: int) -> np.ndarray:
    """The bits of a rank among the patterns of ``num`` bits, by the number of ones.

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
    # The error of the logarithms is about 1e-10: near an integer, only exact arithmetic can decide.
    for k in np.flatnonzero(np.abs(logs - np.round(logs)) < 1e-6):
        bits[k] = (math.comb(num, int(k)) - 1).bit_length()
    bits.flags.writeable = False
    return bits


def _block_sizes(size: int) -> Iterator[int]:
    full, tail = divmod(size, BLOCK)
    return itertools.chain(itertools.repeat(BLOCK, full), [tail] * (tail > 0))


def count_bits(size: int) -> int:
    """The bits for the numbers of ones in all blocks of a mask of ``size`` elements."""
    return sum(num.bit_length() for num in _block_sizes(size))


def max_pattern_bits(size: int) -> int:
    """The largest value of :func:`pattern_bits` for masks of ``size`` elements."""
    return sum(int(rank_bits(num).max()) for num in _block_sizes(size))


def pattern_bits(mask: jax.Array) -> jax.Array:
    """The bits for the ranks of all blocks of a bool array, ``uint32[]``; traceable.

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
    """The rank of a pattern among the patterns with as many ones (combinatorial number system)."""
    position = len(bits) - 1
    smaller = math.comb(position, ones)  # number of patterns with a 0 at the position
    rank = 0
    # If ``smaller`` is 0, the remaining bits are all ones; if ``ones`` is 0, they are all zeros.
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


def encode_mask(mask: np.ndarray) -> Iterator[Segment]:
    """The code of a bool array, ``count_bits(mask.size) + pattern_bits(mask)`` bits long."""
    for block in np.split(mask.ravel(), range(BLOCK, mask.size, BLOCK)) if mask.size else ():
        ones = int(block.sum())
        width = int(rank_bits(block.size)[ones])
        yield int_to_segment(ones, block.size.bit_length())
        yield int_to_segment(_rank(block.tolist(), ones), width)


def decode_mask(reader: BitReader, size: int) -> np.ndarray:
    """The inverse of :func:`encode_mask`.

    Args:
      reader: A reader of the bits.
      size: Number of elements of the mask.

    Returns:
      ``bool[size]``.

    Raises:
      ValueError: The bits are no code of such a mask.
    """
    blocks = [np.zeros(0, bool)]
    for num in _block_sizes(size):
        ones = take_int(reader, num.bit_length())
        if ones > num:
            raise ValueError(f"payload: must be intact, and has {ones} ones in a block of {num} bits")
        rank = take_int(reader, int(rank_bits(num)[ones]))
        if rank >= math.comb(num, ones):
            raise ValueError(f"payload: must be intact; no pattern of {num} bits, {ones} ones, has its rank")
        blocks.append(_unrank(rank, num, ones))
    return np.concatenate(blocks)
