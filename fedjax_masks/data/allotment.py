"""Which test examples belong to a client: those that resemble its training examples.

Each function takes ``(rng, train, rows, test)``, where ``rows`` holds each client's rows of
``train``, and returns each client's rows of ``test``. Test rows may be shared between clients.
"""

from collections.abc import Callable

import numpy as np

from fedjax_masks.data.sources import Examples

Allot = Callable[[np.random.RandomState, Examples, list[np.ndarray], Examples], list[np.ndarray]]


def evenly(
    rng: np.random.RandomState, train: Examples, rows: list[np.ndarray], test: Examples
) -> list[np.ndarray]:
    """An equal random part of the test set each; overlaps only where clients outnumber the rows."""
    del train
    num = len(test.labels)
    return np.array_split(np.resize(rng.permutation(num), max(num, len(rows))), len(rows))


def by_label(
    rng: np.random.RandomState, train: Examples, rows: list[np.ndarray], test: Examples
) -> list[np.ndarray]:
    """Every test example whose label the client trains on."""
    del rng
    return [np.flatnonzero(np.isin(test.labels, train.labels[mine])) for mine in rows]


def in_proportion(
    rng: np.random.RandomState, train: Examples, rows: list[np.ndarray], test: Examples
) -> list[np.ndarray]:
    """Test examples drawn with the label proportions of the client's training examples.

    Every client draws, on its own and without replacement, ``num_test / clients`` examples, or
    fewer where a label would run out and bend the proportions.
    """
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    pools = [rng.permutation(np.flatnonzero(test.labels == label)) for label in range(classes)]
    available = np.array([len(pool) for pool in pools])
    fair = max(1, len(test.labels) // len(rows))
    parts = []
    for mine in rows:
        counts = np.bincount(train.labels[mine], minlength=classes) * (available > 0)
        quota = _apportion(counts, available, fair)
        parts.append(np.concatenate([_window(rng, pool, n) for pool, n in zip(pools, quota)]))
    return parts


def by_client(
    rng: np.random.RandomState, train: Examples, rows: list[np.ndarray], test: Examples
) -> list[np.ndarray]:
    """The client's own test examples where the data set says whose they are, else in proportion."""
    if train.clients is None or test.clients is None:
        return in_proportion(rng, train, rows, test)
    ids, owner = np.unique(test.clients, return_inverse=True)
    order = np.argsort(owner, kind="stable")
    own = dict(zip(ids.tolist(), np.split(order, np.cumsum(np.bincount(owner))[:-1])))
    names = train.clients[[mine[0] for mine in rows]].tolist()
    return [own.get(name, order[:0]) for name in names]


def alike(
    rng: np.random.RandomState, train: Examples, rows: list[np.ndarray], test: Examples
) -> list[np.ndarray]:
    """For each of a client's training examples, one test example of its label, if there is any."""
    wanted = train.labels[np.concatenate(rows)]
    there = np.isin(wanted, test.labels)
    ends = np.cumsum([len(mine) for mine in rows])[:-1]
    drawn = any_of(rng, wanted[there], test.labels)
    return np.split(drawn, np.concatenate([[0], np.cumsum(there)])[ends])


def any_of(rng: np.random.RandomState, wanted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``int32``, shaped like ``wanted``: for each wanted label the row of some example that has it."""
    order = np.argsort(labels, kind="stable")
    number = np.bincount(labels, minlength=int(wanted.max(initial=0)) + 1)
    first = np.cumsum(number) - number
    picked = (rng.random_sample(wanted.shape) * number[wanted]).astype(np.int64)
    return order[first[wanted] + picked].astype(np.int32)


def _window(rng: np.random.RandomState, pool: np.ndarray, size: int) -> np.ndarray:
    """A random run of a shuffled pool: much cheaper than a new shuffle per client."""
    return np.take(pool, rng.randint(len(pool)) + np.arange(size), mode="wrap") if size else pool[:0]


def _apportion(counts: np.ndarray, available: np.ndarray, wanted: int) -> np.ndarray:
    """Whole numbers in proportion to ``counts``, at most ``available``, by largest remainder."""
    if not counts.any():
        return np.zeros_like(counts)
    shares = counts / counts.sum()
    held = shares > 0
    total = max(1, min(wanted, int((available[held] / shares[held]).min())))
    quota = np.floor(shares * total).astype(int)
    rest = np.argsort(quota - shares * total, kind="stable")[: total - quota.sum()]
    quota[rest] += 1
    return np.minimum(quota, available)
