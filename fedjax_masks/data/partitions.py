"""Partitions: divisions of training examples among clients, by name.

A partition is written as a short text, ``name`` or ``name:argument:...``: ``iid``, ``shards:2``,
``dirichlet:0.1``. Every partition is a pure function of its seed; clients share no training examples,
but for ``draw``; every client gets at least one. A division that cannot be made is refused.

All draws come from ``numpy.random.RandomState``: its stream is frozen, so a partition can be
reproduced from its text and seed with any version of NumPy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedjax_masks.data import allotment, divisions


def positive_int(text: str) -> int:
    """Reads an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def positive_number(text: str) -> float:
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
    """A division of a data set.

    Attributes:
      usage: The text form; capitals stand for arguments, brackets for optional ones.
      help: One line of help.
      divide: ``(rng, train, clients, *arguments) -> rows`` of each client.
      allot: ``(rng, train, rows, test) -> test rows`` of each client.
      arguments: One reader per argument; a reader raises ValueError for text that it refuses.
      required: The number of arguments that cannot be left out; all of them by default.
      shared: Whether clients share examples, so that there may be more clients than examples.
    """

    usage: str
    help: str
    divide: Callable[..., divisions.Rows]
    allot: allotment.Allot
    arguments: tuple[Callable[[str], Any], ...] = ()
    required: int | None = None
    shared: bool = False


#: Partitions by name.
PARTITIONS: dict[str, Partition] = {
    "iid": Partition("iid", "shuffled and dealt out evenly", divisions.iid, allotment.equal_parts),
    "shards": Partition(
        "shards:N",
        "N label-sorted shards per client (McMahan 2017)",
        divisions.shards,
        allotment.same_labels,
        (positive_int,),
    ),
    "dirichlet": Partition(
        "dirichlet:BETA[:MIN]",
        "label skew (NIID-Bench), drawn again until every client has MIN (10, else at least 1) examples",
        divisions.dirichlet,
        allotment.label_proportions,
        (positive_number, positive_int),
        1,
    ),
    "lotteryfl": Partition(
        "lotteryfl:N:BALANCE[:SIZE]",
        "N label-sorted shards of SIZE (20) examples, all but the first cut to BALANCE (LotteryFL)",
        divisions.lotteryfl,
        allotment.same_labels,
        (positive_int, fraction, positive_int),
        2,
    ),
    "quantity": Partition(
        "quantity:BETA[:MIN]",
        "iid, very different sizes (NIID-Bench); every client has MIN (10, else at least 1) examples",
        divisions.quantity,
        allotment.label_proportions,
        (positive_number, positive_int),
        1,
    ),
    "draw": Partition(
        "draw:N[:LABELS]",
        "any number of clients that draw N examples of LABELS labels each, and share them",
        divisions.draw,
        allotment.one_per_example,
        (positive_int, positive_int),
        1,
        shared=True,
    ),
    "natural": Partition(
        "natural", "the data set's own client ids", divisions.natural, allotment.natural_clients
    ),
}
