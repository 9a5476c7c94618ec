"""The set of clients that have trained, as text that a checkpoint's JSON can hold.

The text is a bitmap in base64: client ``i`` is bit ``i % 8`` of byte ``i // 8``. It ends with the
largest client of the set, so that equal sets are equal texts; a million clients take 167 kB.
"""

from base64 import b64decode, b64encode

import numpy as np

from fedjax_masks.simulation import RoundMetrics

EMPTY = ""


def add_trained(clients: str, metrics: RoundMetrics) -> str:
    """The set with the clients that trained in a chunk of rounds.

    Args:
      clients: The set before the chunk.
      metrics: The chunk's metrics.
    """
    return add(clients, metrics.ids[metrics.trained])


def add(clients: str, ids: np.ndarray) -> str:
    """The set with more clients in it.

    Args:
      clients: The set.
      ids: ``int[n]``: client ids, in any order, repeated or not.

    >>> add(add(EMPTY, np.array([9, 0])), np.array([0])) == add(EMPTY, np.array([0, 9]))
    True
    """
    if not ids.size:
        return clients
    bits = _bits(clients)
    bits = np.pad(bits, (0, max(0, int(ids.max()) // 8 + 1 - bits.size)))
    np.bitwise_or.at(bits, ids // 8, (1 << ids % 8).astype(np.uint8))
    return b64encode(bits.tobytes()).decode("ascii")


def members(clients: str, ids: np.ndarray) -> np.ndarray:
    """Whether each client is in the set: ``bool[n]``.

    Args:
      clients: The set.
      ids: ``int[n]``: client ids.

    >>> members(add(EMPTY, np.array([9, 0])), np.array([0, 8, 9, 99])).tolist()
    [True, False, True, False]
    """
    bits = np.unpackbits(_bits(clients), bitorder="little").astype(bool)
    return np.isin(ids, np.flatnonzero(bits))


def count(clients: str) -> int:
    """The number of clients in the set.

    >>> count(EMPTY), count(add(EMPTY, np.array([9, 0, 9])))
    (0, 2)
    """
    return int(np.unpackbits(_bits(clients)).sum())


def _bits(clients: str) -> np.ndarray:
    return np.frombuffer(b64decode(clients), np.uint8)
