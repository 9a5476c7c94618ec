"""The set of clients that have trained, as text that a checkpoint's JSON can hold.

The text is a bitmap in base64: client ``i`` is bit ``i % 8`` of byte ``i // 8``. It ends with the
largest client of the set, so that equal sets are equal texts; a million clients take 167 kB.
"""

from base64 import b64decode, b64encode

import numpy as np

from fedjax_masks.simulation import RoundMetrics

NOBODY = ""


def add_trained(seen: str, metrics: RoundMetrics) -> str:
    """The set, and the clients that trained in a chunk of rounds.

    Args:
      seen: The set before the chunk.
      metrics: Of the chunk.
    """
    return add(seen, metrics.ids[metrics.trained])


def add(seen: str, ids: np.ndarray) -> str:
    """The set with more clients in it.

    Args:
      seen: The set.
      ids: ``int[n]``, in any order, repeated or not.

    >>> add(add(NOBODY, np.array([9, 0])), np.array([0])) == add(NOBODY, np.array([0, 9]))
    True
    """
    if not ids.size:
        return seen
    bits = _bits(seen)
    bits = np.pad(bits, (0, max(0, int(ids.max()) // 8 + 1 - bits.size)))
    np.bitwise_or.at(bits, ids // 8, (1 << ids % 8).astype(np.uint8))
    return b64encode(bits.tobytes()).decode("ascii")


def members(seen: str, ids: np.ndarray) -> np.ndarray:
    """``bool[n]``: whether each client is in the set.

    Args:
      seen: The set.
      ids: ``int[n]``.

    >>> members(add(NOBODY, np.array([9, 0])), np.array([0, 8, 9, 99])).tolist()
    [True, False, True, False]
    """
    bits = np.unpackbits(_bits(seen), bitorder="little").astype(bool)
    return np.isin(ids, np.flatnonzero(bits))


def count(seen: str) -> int:
    """The number of clients in the set.

    >>> count(NOBODY), count(add(NOBODY, np.array([9, 0, 9])))
    (0, 2)
    """
    return int(np.unpackbits(_bits(seen)).sum())


def _bits(seen: str) -> np.ndarray:
    return np.frombuffer(b64decode(seen), np.uint8)
