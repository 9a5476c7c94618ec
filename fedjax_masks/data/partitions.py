"""How training examples are divided among clients.

A partition is written as a short text, ``name`` or ``name:argument:...``: ``iid``, ``shards:2``,
``dirichlet:0.1``. Every partition is a pure function of its seed; the rows of different clients
never overlap, but for ``draw``; every client gets at least one example. What cannot be done is refused.

All draws come from ``numpy.random.RandomState``: its stream is frozen, so a partition can be
reproduced from its text and seed with any version of NumPy.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedjax_masks.data import allotment
from fedjax_masks.data.examples import Examples

Rows = list[np.ndarray]

_LOGGER = logging.getLogger("fedjax_masks")
_ATTEMPTS = 500
_MOST_DRAWN = 10**8  # examples of all clients together; their index takes 4 bytes each


def iid(rng: np.random.RandomState, train: Examples, clients: int) -> Rows:
    """Shuffles and deals out; sizes differ by at most one."""
    return np.array_split(rng.permutation(len(train.labels)), clients)


def shards(rng: np.random.RandomState, train: Examples, clients: int, per_client: int) -> Rows:
    """The pathological partition of McMahan et al. 2017: a few label-sorted shards per client.

    Examples are sorted by label and cut into ``clients * per_client`` equal shards, of which
    each client draws ``per_client`` without replacement.
    """
    num, wanted = len(train.labels), clients * per_client
    if wanted > num:
        raise ValueError(
            f"partition 'shards:{per_client}': {clients} clients need {wanted} shards, but there are "
            f"{num} examples: at most {num // per_client} clients"
        )
    pieces = np.array_split(np.argsort(train.labels, kind="stable"), wanted)
    return _deal(rng.permutation(wanted).reshape(clients, per_client), pieces)


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
        raise ValueError(
            f"partition 'lotteryfl:{per_client}:{balance:g}:{shard_size}': {clients} clients need "
            f"{clients * per_client} shards of {shard_size}, but there are {available}: at most "
            f"{available // per_client} clients"
        )
    order = np.argsort(train.labels, kind="stable")
    whole = order[: available * shard_size].reshape(available, shard_size)
    drawn = rng.permutation(available)[: clients * per_client].reshape(clients, per_client)
    keep = max(1, round(balance * shard_size))
    return [np.concatenate([whole[first], *(whole[i, :keep] for i in rest)]) for first, *rest in drawn]


def dirichlet(
    rng: np.random.RandomState, train: Examples, clients: int, beta: float, smallest: int | None = None
) -> Rows:
    """Label skew as in NIID-Bench (Li et al. 2022, section 4.1).

    Class by class, the shares of the clients are drawn from ``Dirichlet(beta)``; a client that
    already holds its fair share of all examples gets nothing more. The whole draw is repeated, at most
    500 times, until every client has ``smallest`` examples: by default 10, or a tenth of the mean where
    that is less. Where no draw reaches that, the draw whose smallest client has most is taken, as long as
    every client has at least one example; without such a draw the partition is refused.
    """

    def draw() -> Rows | None:
        return _draw_labels(rng, train.labels, clients, beta)

    return _redraw(draw, train, clients, f"dirichlet:{beta:g}", smallest)


def quantity(
    rng: np.random.RandomState, train: Examples, clients: int, beta: float, smallest: int | None = None
) -> Rows:
    """Quantity skew as in NIID-Bench: iid examples, sizes drawn from ``Dirichlet(beta)``.

    Draws are repeated as in :func:`dirichlet`.
    """

    def draw() -> Rows | None:
        order = rng.permutation(len(train.labels))
        shares = rng.dirichlet(np.full(clients, beta))
        return None if np.isnan(shares).any() else _cut(order, shares)

    return _redraw(draw, train, clients, f"quantity:{beta:g}", smallest)


def draw(
    rng: np.random.RandomState, train: Examples, clients: int, size: int, num_labels: int | None = None
) -> Rows:
    """``size`` examples each, drawn from all of ``num_labels`` random labels (by default of all labels).

    Clients share examples, so there may be any number of clients: a population of millions by a rule.
    """
    labels = np.unique(train.labels)
    kept = len(labels) if num_labels is None else num_labels
    if kept > len(labels):
        raise ValueError(f"partition 'draw:{size}:{kept}': there are {len(labels)} labels")
    if clients * size > _MOST_DRAWN:
        raise ValueError(
            f"partition 'draw:{size}': {clients} clients of {size} examples are more than the "
            f"{_MOST_DRAWN} that are accepted"
        )
    own = labels[rng.random_sample((clients, len(labels))).argsort(1)[:, :kept]]
    wanted = np.take_along_axis(own, rng.randint(kept, size=(clients, size)), 1)
    return list(allotment.any_of(rng, wanted, train.labels))


def natural(rng: np.random.RandomState, train: Examples, clients: int) -> Rows:
    """By the data set's own client ids, in sorted order; a random choice of them where fewer are wanted."""
    if train.clients is None:
        raise ValueError(
            "partition 'natural': this data set has no client ids; accepted: npz: or npy: data that name "
            "them client, client_train or client_test (or client_id, user, user_id)"
        )
    ids, owner = np.unique(train.clients, return_inverse=True)
    if clients > len(ids):
        raise ValueError(f"partition 'natural': {clients} clients asked for, but the data set has {len(ids)}")
    order = np.argsort(owner, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(owner))[:-1])
    chosen = range(len(ids)) if clients == len(ids) else np.sort(rng.permutation(len(ids))[:clients])
    return [rows[i] for i in chosen]


def _deal(drawn: np.ndarray, pieces: Rows) -> Rows:
    return [np.concatenate([pieces[i] for i in mine]) for mine in drawn]


def _cut(rows: np.ndarray, shares: np.ndarray) -> Rows:
    """Cuts rows in consecutive pieces, in proportion to ``shares``, which sum to one."""
    return np.split(rows, (np.cumsum(shares) * len(rows)).astype(int)[:-1])


def _draw_labels(rng: np.random.RandomState, labels: np.ndarray, clients: int, beta: float) -> Rows | None:
    """One draw of the label-skewed partition, or None where it ran into a dead end."""
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
    return [np.concatenate(mine) for mine in zip(*pieces)]


def _redraw(
    draw: Callable[[], Rows | None], train: Examples, clients: int, text: str, smallest: int | None
) -> Rows:
    """Repeats a draw until the smallest client is large enough, a bounded number of times."""
    num = len(train.labels)
    wanted = min(10, max(1, num // (10 * clients))) if smallest is None else smallest
    best, most = None, 0
    for _ in range(_ATTEMPTS if wanted * clients <= num else 0):
        rows = draw()
        if rows is None:
            continue
        least = min(map(len, rows))
        if least >= wanted:
            return rows
        if least > most:
            best, most = rows, least
    drawn = f"partition '{text}': no draw of {_ATTEMPTS} gave each of {clients} clients"
    if best is None or smallest is not None:
        needed = f"{1 if smallest is None else smallest} of {num} examples"
        fewer = "" if smallest is None else f"{text}:MIN with a smaller MIN, "
        raise ValueError(f"{drawn} {needed}; accepted: {fewer}fewer clients or a larger beta")
    _LOGGER.warning("%s %d examples; the smallest has %d, %s:MIN asks for MIN", drawn, wanted, most, text)
    return best


def positive_int(text: str) -> int:
    """Reads an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def positive(text: str) -> float:
    """Reads a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def fraction(text: str) -> float:
    """Reads a number above 0, at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError
    return value


@dataclass(frozen=True)
class Partition:
    """A way to divide a data set.

    Attributes:
      usage: How it is written; capitals stand for arguments, brackets for optional ones.
      help: One line for people.
      divide: ``(rng, train, clients, *arguments) -> rows`` of each client.
      allot: ``(rng, train, rows, test) -> test rows`` of each client.
      arguments: One reader per argument.
      required: How many arguments cannot be left out; all of them by default.
      shared: Whether clients share examples, so that there may be more clients than examples.
    """

    usage: str
    help: str
    divide: Callable[..., Rows]
    allot: allotment.Allot
    arguments: tuple[Callable[[str], Any], ...] = ()
    required: int | None = None
    shared: bool = False


#: Partitions by name.
PARTITIONS: dict[str, Partition] = {
    "iid": Partition("iid", "shuffled and dealt out evenly", iid, allotment.evenly),
    "shards": Partition(
        "shards:N",
        "N label-sorted shards per client (McMahan 2017)",
        shards,
        allotment.by_label,
        (positive_int,),
    ),
    "dirichlet": Partition(
        "dirichlet:BETA[:MIN]",
        "label skew (NIID-Bench), drawn again until every client has MIN (10, else at least 1) examples",
        dirichlet,
        allotment.in_proportion,
        (positive, positive_int),
        1,
    ),
    "lotteryfl": Partition(
        "lotteryfl:N:BALANCE[:SIZE]",
        "N label-sorted shards of SIZE (20) examples, all but the first cut to BALANCE (LotteryFL)",
        lotteryfl,
        allotment.by_label,
        (positive_int, fraction, positive_int),
        2,
    ),
    "quantity": Partition(
        "quantity:BETA[:MIN]",
        "iid, of very different sizes (NIID-Bench), every client with MIN (10, else at least 1) examples",
        quantity,
        allotment.in_proportion,
        (positive, positive_int),
        1,
    ),
    "draw": Partition(
        "draw:N[:LABELS]",
        "any number of clients that draw N examples of LABELS labels each, and share them",
        draw,
        allotment.alike,
        (positive_int, positive_int),
        1,
        shared=True,
    ),
    "natural": Partition("natural", "by the data set's own client ids", natural, allotment.by_client),
}
