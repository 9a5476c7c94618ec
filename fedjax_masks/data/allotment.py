"""Test examples of each client: those that resemble the client's training examples.

Each function takes ``(rng, train, rows, test)``, where ``rows`` holds each client's rows of
``train``, and returns each client's rows of ``test``. Clients may share test rows.
"""

from collections.abc import Callable

import numpy as np

from fedjax_masks.data.examples import Examples

Allot = Callable[[np.random.RandomState, Examples, list[np.ndarray], Examples], list[np.ndarray]]


def equal_parts(
    rng: np.random.RandomState, train: Examples, rows: list[np.ndarray], test: Examples
) -> list[np.ndarray]:
    """Random parts of the test set, of equal size; parts overlap only where clients outnumber examples."""
    del train
    num = len(test.labels)
    return np.array_split(np.resize(rng.permutation(num), max(num, len(rows))), len(rows))


def same_labels(
    rng: np.random.RandomState, train: Examples, rows: list[np.ndarray], test: Examples
) -> list[np.ndarray]:
    """All test examples of the labels that the client trains on."""
    del rng
    return [np.flatnonzero(np.isin(test.labels, train.labels[part])) for part in rows]


def label_proportions(
    rng: np.random.RandomState, train: Examples, rows: list[np.ndarray], test: Examples
) -> list[np.ndarray]:
    """Test examples drawn with the label proportions of the client's training examples.

    Every client draws, independently and without replacement, ``num_test / clients`` examples, or
    fewer where a label would run out and change the proportions.
    """
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    pools = [rng.permutation(np.flatnonzero(test.labels == label)) for label in range(classes)]
    available = np.array([len(pool) for pool in pools])
    equal_share = max(1, len(test.labels) // len(rows))
    parts = []
    for part in rows:
        counts = np.bincount(train.labels[part], minlength=classes) * (available > 0)
        quota = _apportion(counts, available, equal_share)
        parts.append(np.concatenate([_window(rng, pool, n) for pool, n in zip(pools, quota)]))
    return parts


def natural_clients(
    rng: np.random.RandomState, train: Examples, rows: list[np.ndarray], test: Examples
) -> list[np.ndarray]:
    """The client's test examples by the data set's client ids; label proportions where it has no ids."""
    if train.clients is None or test.clients is None:
        return label_proportions(rng, train, rows, test)
    ids, owner = np.unique(test.clients, return_inverse=True)
    order = np.argsort(owner, kind="stable")
    rows_by_id = dict(zip(ids.tolist(), np.split(order, np.cumsum(np.bincount(owner))[:-1])))
    train_ids = train.clients[[part[0] for part in rows]].tolist()
    return [rows_by_id.get(client_id, order[:0]) for client_id in train_ids]


def one_per_example(
    rng: np.random.RandomState, train: Examples, rows: list[np.ndarray], test: Examples
) -> list[np.ndarray]:
    """One test example for each training example of the client, of the same label, if there is any."""
    labels = train.labels[np.concatenate(rows)]
    has_test = np.isin(labels, test.labels)
    ends = np.cumsum([len(part) for part in rows])[:-1]
    test_rows = draw_by_label(rng, labels[has_test], test.labels)
    return np.split(test_rows, np.concatenate([[0], np.cumsum(has_test)])[ends])


def draw_by_label(rng: np.random.RandomState, requests: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draws a random example for each requested label, with replacement.

    Args:
      rng: The source of randomness.
      requests: Integer labels of any shape, each of which occurs in ``labels``.
      labels: ``[num]``: the labels of the examples.

    Returns:
      Rows of ``labels``: ``int32``, shaped like ``requests``.
    """
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=int(requests.max(initial=0)) + 1)
    first = np.cumsum(counts) - counts
    ranks = (rng.random_sample(requests.shape) * counts[requests]).astype(np.int64)
    return order[first[requests] + ranks].astype(np.int32)


def _window(rng: np.random.RandomState, pool: np.ndarray, size: int) -> np.ndarray:
    """Consecutive elements of a shuffled pool: much cheaper than a new shuffle per client."""
    return np.take(pool, rng.randint(len(pool)) + np.arange(size), mode="wrap") if size else pool[:0]


def _apportion(counts: np.ndarray, available: np.ndarray, limit: int) -> np.ndarray:
    """Whole numbers in proportion to ``counts``, at most ``available``, by largest remainder."""
    if not counts.any():
        return np.zeros_like(counts)
    shares = counts / counts.sum()
    present = shares > 0
    total = max(1, min(limit, int((available[present] / shares[present]).min())))
    quota = np.floor(shares * total).astype(int)
    rest = np.argsort(quota - shares * total, kind="stable")[: total - quota.sum()]
    quota[rest] += 1
    return np.minimum(quota, available)
