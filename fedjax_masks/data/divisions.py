"""Divisions of training examples among clients; :mod:`fedjax_masks.data.partitions` names them.

Each function takes ``(rng, train, clients, ...)`` and returns each client's rows of ``train``. A division
is a pure function of the random state; it never gives one example to two clients, but for :func:`draw`,
and gives every client at least one example.
"""

from collections.abc import Callable

import numpy as np

from fedjax_masks.core.errors import UserError
from fedjax_masks.core.messages import warn
from fedjax_masks.data.allotment import draw_by_label
from fedjax_masks.data.examples import Examples

Rows = list[np.ndarray]

_ATTEMPTS = 500
_MAX_DRAWS = 10**8  # examples of all clients together; their index takes 4 bytes each


def iid(rng: np.random.RandomState, train: Examples, clients: int) -> Rows:
    """Shuffled examples, dealt out; sizes differ by at most one."""
    return np.array_split(rng.permutation(len(train.labels)), clients)


def shards(rng: np.random.RandomState, train: Examples, clients: int, per_client: int) -> Rows:
    """The pathological partition of McMahan et al. 2017: a few label-sorted shards per client.

    Examples are sorted by label and cut into ``clients * per_client`` equal shards, of which
    each client draws ``per_client`` without replacement.
    """
    examples, num_shards = len(train.labels), clients * per_client
    if num_shards > examples:
        raise UserError(
            f"partition='shards:{per_client}': must cut {clients} x {per_client} = {num_shards} shards from "
            f"{examples} examples; they suffice for at most {examples // per_client} clients"
        )
    pieces = np.array_split(np.argsort(train.labels, kind="stable"), num_shards)
    hands = rng.permutation(num_shards).reshape(clients, per_client)
    return [np.concatenate([pieces[shard] for shard in hand]) for hand in hands]


def lotteryfl(
    rng: np.random.RandomState,
    train: Examples,
    clients: int,
    per_client: int,
    balance: float,
    shard_size: int = 20,
) -> Rows:
    """The partition of LotteryFL (Li et al. 2020), also FedMask's: few, small, unequal shards.

    Examples are sorted by label and cut into shards of ``shard_size``; each client draws
    ``per_client`` of them without replacement and keeps all of the first, but only
    ``balance * shard_size`` examples of each other one. As published, two shards of one client
    may happen to hold the same label.
    """
    available = len(train.labels) // shard_size
    if clients * per_client > available:
        raise UserError(
            f"partition='lotteryfl:{per_client}:{balance:g}:{shard_size}': must draw {clients} x {per_client}"
            f" = {clients * per_client} shards of {shard_size} from {available}; they suffice for at most "
            f"{available // per_client} clients"
        )
    order = np.argsort(train.labels, kind="stable")
    pieces = order[: available * shard_size].reshape(available, shard_size)
    hands = rng.permutation(available)[: clients * per_client].reshape(clients, per_client)
    part = max(1, round(balance * shard_size))
    return [np.concatenate([pieces[first], *(pieces[i, :part] for i in rest)]) for first, *rest in hands]


def dirichlet(
    rng: np.random.RandomState, train: Examples, clients: int, beta: float, smallest: int | None = None
) -> Rows:
    """Label skew as in NIID-Bench (Li et al. 2022, section 4.1).

    Class by class, the shares of the clients are drawn from ``Dirichlet(beta)``; a client that
    already holds its equal share of all examples gets nothing more. The whole draw is repeated, at most
    500 times, until every client has ``smallest`` examples: by default 10, or a tenth of the mean where
    that is less. Where no draw reaches that, the draw whose smallest client has most is taken, as long as
    every client has at least one example; without such a draw the partition is refused.
    """

    def attempt() -> Rows | None:
        return _skewed_labels(rng, train.labels, clients, beta)

    return _repeat(attempt, train, clients, f"dirichlet:{beta:g}", smallest)


def quantity(
    rng: np.random.RandomState, train: Examples, clients: int, beta: float, smallest: int | None = None
) -> Rows:
    """Quantity skew as in NIID-Bench: iid examples, sizes drawn from ``Dirichlet(beta)``.

    Draws are repeated as in :func:`dirichlet`.
    """

    def attempt() -> Rows | None:
        order = rng.permutation(len(train.labels))
        shares = rng.dirichlet(np.full(clients, beta))
        return None if np.isnan(shares).any() else _cut(order, shares)

    return _repeat(attempt, train, clients, f"quantity:{beta:g}", smallest)


def draw(
    rng: np.random.RandomState, train: Examples, clients: int, size: int, num_labels: int | None = None
) -> Rows:
    """``size`` examples each, drawn from all of ``num_labels`` random labels (by default of all labels).

    Clients share examples, so there may be any number of clients: a population of millions by a rule.
    """
    labels = np.unique(train.labels)
    per_client = len(labels) if num_labels is None else num_labels
    if per_client > len(labels):
        raise UserError(
            f"partition='draw:{size}:{per_client}': must draw from at most {len(labels)} labels, which is all"
        )
    if clients * size > _MAX_DRAWS:
        raise UserError(
            f"partition='draw:{size}': must draw at most {_MAX_DRAWS} examples in all, not "
            f"{clients} x {size} = {clients * size}"
        )
    choices = labels[rng.random_sample((clients, len(labels))).argsort(1)[:, :per_client]]
    requests = np.take_along_axis(choices, rng.randint(per_client, size=(clients, size)), 1)
    return list(draw_by_label(rng, requests, train.labels))


def natural(rng: np.random.RandomState, train: Examples, clients: int) -> Rows:
    """Clients of the data set's own, in the order of their ids; a random choice where fewer are requested."""
    if train.clients is None:
        raise UserError(
            "partition='natural': must go with client ids, and this data set has none; npz: and npy: data "
            "name them client, client_train or client_test (or client_id, user, user_id)"
        )
    ids, owner = np.unique(train.clients, return_inverse=True)
    if clients > len(ids):
        raise UserError(
            f"clients={clients}: must be at most {len(ids)}, the clients of the data set, with "
            "partition='natural'"
        )
    order = np.argsort(owner, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(owner))[:-1])
    choice = range(len(ids)) if clients == len(ids) else np.sort(rng.permutation(len(ids))[:clients])
    return [rows[i] for i in choice]


def _cut(rows: np.ndarray, shares: np.ndarray) -> Rows:
    """Cuts rows in consecutive pieces, in proportion to ``shares``, which sum to one."""
    return np.split(rows, (np.cumsum(shares) * len(rows)).astype(int)[:-1])


def _skewed_labels(rng: np.random.RandomState, labels: np.ndarray, clients: int, beta: float) -> Rows | None:
    """One draw of the label-skewed partition, or None where the draw cannot be completed."""
    pieces: list[Rows] = []
    sizes = np.zeros(clients, int)
    for rows in [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]:
        rng.shuffle(rows)
        shares = rng.dirichlet(np.full(clients, beta)) * (sizes < len(labels) / clients)
        # Tiny betas underflow, and a class may fall wholly to clients that are full.
        if not shares.sum() > 0:
            return None
        pieces.append(_cut(rows, shares / shares.sum()))
        sizes += [len(piece) for piece in pieces[-1]]
    return [np.concatenate(parts) for parts in zip(*pieces)]


def _repeat(
    attempt: Callable[[], Rows | None], train: Examples, clients: int, text: str, smallest: int | None
) -> Rows:
    """Repeats a draw until the smallest client is large enough, a bounded number of times."""
    examples = len(train.labels)
    target = min(10, max(1, examples // (10 * clients))) if smallest is None else smallest
    best, best_size = None, 0
    for _ in range(_ATTEMPTS if target * clients <= examples else 0):
        rows = attempt()
        if rows is None:
            continue
        size = min(map(len, rows))
        if size >= target:
            return rows
        if size > best_size:
            best, best_size = rows, size
    if best is None or smallest is not None:
        fewer = "" if smallest is None else f"{text}:MIN with a smaller MIN, "
        raise UserError(
            f"partition={text!r}: must give each of {clients} clients {1 if smallest is None else smallest} "
            f"of {examples} examples, and no draw of {_ATTEMPTS} does; choose {fewer}fewer clients or a "
            "larger beta"
        )
    warn(
        f"partition '{text}': no draw of {_ATTEMPTS} gave each of {clients} clients {target} examples; the "
        f"smallest has {best_size}, {text}:MIN asks for MIN"
    )
    return best
