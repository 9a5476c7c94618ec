"""Serialization of payloads on the host, without headers and without pickle."""

import numpy as np

from fedjax_masks.communication import bitstream, entropy
from fedjax_masks.communication.visitor import Part, fold_sent, map_sent
from fedjax_masks.core.algorithm import PyTree

_CHUNK = 1 << 20  # integers packed at once, which bounds the host's memory


def _sent_mask(part: Part) -> np.ndarray | None:
    """The elements that are sent, a concrete bool array of the part's shape; None for all elements."""
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
      ValueError: A code or an index is out of its range.

    >>> encode({"a": np.array([True, False, True]), "b": np.array([255], np.uint8)})
    b'\xbf\xe0'
    """
    return bitstream.join(segment for segments in fold_sent(_write, payload) for segment in segments)


def _write(part: Part) -> list[bitstream.Segment]:
    mask = _sent_mask(part)
    values = np.asarray(part.leaf, part.dtype)
    if part.is_coded:
        return list(entropy.encode_mask(values)) if mask is None else []
    values = values.ravel() if mask is None else values[mask]
    if part.span is None:
        return [(np.ascontiguousarray(values).view(np.uint8), 8 * values.nbytes)]
    starts = range(0, values.size, _CHUNK)
    return [bitstream.pack_ints(values[i : i + _CHUNK], part.span, part.width) for i in starts]


def decode(data: bytes, like: PyTree) -> PyTree:
    """The inverse of :func:`encode`, safe for bytes from untrusted senders.

    Args:
      data: The result of :func:`encode`.
      like: A payload of the same structure. Its arrays give shapes and dtypes (they may be
        ``ShapeDtypeStruct``); masks, flags and all that is AlreadyKnown are the receiver's own, and are taken
        from ``like``.

    Returns:
      The payload, of NumPy arrays; values that are not sent are 0.

    Raises:
      ValueError: ``data`` is too short, too long, or no such payload.

    >>> from fedjax_masks.communication.payload import Masked
    >>> like = Masked(np.zeros(3, np.uint8), np.array([True, False, True]))
    >>> decode(encode(like._replace(values=np.array([7, 8, 9], np.uint8))), like).values.tolist()
    [7, 0, 9]
    """
    reader = bitstream.BitReader(data)
    payload = map_sent(lambda part: _read(reader, part), like)
    reader.close()
    return payload


def _read(reader: bitstream.BitReader, part: Part) -> np.ndarray:
    mask = _sent_mask(part)
    if part.is_coded and mask is None:
        return entropy.decode_mask(reader, part.size).reshape(part.shape)
    count = part.size if mask is None else int(mask.sum())
    if part.span is None:
        values = reader.take(count * part.width).view(part.dtype)
    else:
        # Chunk by chunk: an error for missing bytes must come before memory for all values is allocated.
        sizes = (min(_CHUNK, count - start) for start in range(0, count, _CHUNK))
        pieces = [bitstream.unpack_ints(reader, size, part.span, part.width) for size in sizes]
        values = np.concatenate([np.zeros(0, part.dtype), *(piece.astype(part.dtype) for piece in pieces)])
    if mask is None:
        return values.reshape(part.shape)
    array = np.zeros(part.shape, part.dtype)
    array[mask] = values
    return array
