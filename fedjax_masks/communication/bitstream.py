"""Unaligned streams of bits on the host."""

from collections.abc import Iterable

import numpy as np

Segment = tuple[np.ndarray, int]
"""``(data, n)``: ``n`` bits in ``uint8[ceil(n / 8)]``, the most significant bit first, then zeros."""


def join(segments: Iterable[Segment]) -> bytes:
    r"""Concatenates segments; zeros fill the last byte.

    >>> join([(np.array([0b10100000], np.uint8), 3), (np.array([0b11000000], np.uint8), 2)])
    b'\xb8'
    """
    segments = list(segments)
    total = sum(num_bits for _, num_bits in segments)
    result = np.zeros(-(-total // 8) + 1, np.uint8)
    position = 0
    for data, num_bits in segments:
        start, shift = divmod(position, 8)
        result[start : start + len(data)] |= data >> shift
        if shift:
            result[start + 1 : start + 1 + len(data)] |= data << (8 - shift)
        position += num_bits
    return result[:-1].tobytes()


class BitReader:
    r"""Reads a stream of bits from its start.

    >>> reader = BitReader(b"\xb8")
    >>> reader.take(3), reader.take(2)
    (array([160], dtype=uint8), array([192], dtype=uint8))
    >>> reader.close()
    """

    def __init__(self, data: bytes) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self._position = 0

    def take(self, num_bits: int) -> np.ndarray:
        """Reads the next bits: ``uint8[ceil(num_bits / 8)]``, padded with zeros.

        Raises:
          ValueError: The stream has fewer bits.
        """
        remaining = 8 * len(self._data) - self._position
        if num_bits > remaining:
            raise ValueError(f"payload: must have {num_bits} more bits, and is truncated after {remaining}")
        start, shift = divmod(self._position, 8)
        length = -(-num_bits // 8)
        result = self._data[start : start + length] << shift
        if shift:
            rest = self._data[start + 1 : start + 1 + length] >> (8 - shift)
            result[: len(rest)] |= rest
        if num_bits % 8:
            result[-1] &= 0xFF & (0xFF << (-num_bits % 8))
        self._position += num_bits
        return result

    def close(self) -> None:
        """Checks that only the padding of the last byte remains.

        Raises:
          ValueError: Other bits remain.
        """
        remaining = 8 * len(self._data) - self._position
        if remaining > 7 or self.take(remaining).any():
            raise ValueError(f"payload: must end with its last value, and is too long by {remaining} bits")


def pack_ints(values: np.ndarray, span: tuple[int, int], width: int) -> Segment:
    """Packs integers ``low <= x < high`` into ``width`` bits each, the most significant bit first.

    Args:
      values: ``[n]``, integers or bool.
      span: ``(low, high)``.
      width: Bits for ``high - low`` different values.

    Raises:
      ValueError: A value is outside the span.

    >>> pack_ints(np.array([-1, 1, 0]), (-2, 2), 2)
    (array([120], dtype=uint8), 6)
    """
    low, high = span
    offsets = values.astype(np.int64) - low
    if offsets.size and not 0 <= offsets.min() <= offsets.max() < high - low:
        raise ValueError(f"payload: integers must be {low} to {high - 1}, and are {_range(offsets + low)}")
    bits = offsets[:, None] >> np.arange(width)[::-1] & 1
    return np.packbits(bits.astype(bool)), values.size * width


def unpack_ints(reader: BitReader, count: int, span: tuple[int, int], width: int) -> np.ndarray:
    """The inverse of :func:`pack_ints`: reads ``int64[count]``.

    Raises:
      ValueError: A value is outside the span, or bits are missing.
    """
    low, high = span
    bits = np.unpackbits(reader.take(count * width), count=count * width).reshape(count, width)
    values = np.full(count, low, np.int64)
    for column, place in zip(bits.T, reversed(range(width))):
        values += column.astype(np.int64) << place
    if count and values.max() >= high:
        raise ValueError(f"payload: integers must be {low} to {high - 1}, and are {_range(values)}")
    return values


def _range(values: np.ndarray) -> str:
    return f"{values.min()} to {values.max()}"


def int_to_segment(value: int, num_bits: int) -> Segment:
    """A non-negative integer of any size as ``num_bits`` bits."""
    length = -(-num_bits // 8)
    data = (value << (-num_bits % 8)).to_bytes(length, "big")
    return np.frombuffer(data, np.uint8), num_bits


def take_int(reader: BitReader, num_bits: int) -> int:
    """The inverse of :func:`int_to_segment`."""
    return int.from_bytes(reader.take(num_bits).tobytes(), "big") >> (-num_bits % 8)
