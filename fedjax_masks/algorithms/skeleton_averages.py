"""FedSkel's server: the reception of skeletons, and three averages of them.

The algorithm is :func:`fedjax_masks.algorithms.fedskel.fedskel`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_masks.algorithms.skeletons import Skeleton
from fedjax_masks.communication.payload import AlreadyKnown, Conditional, Masked
from fedjax_masks.core import algorithm, trees
from fedjax_masks.core.aggregation import MaskedSum, WeightedSum, masked, masked_mean, weighted, weighted_mean
from fedjax_masks.core.algorithm import Round
from fedjax_masks.core.types import Params, PyTree

Absent = Literal["ignore", "zero", "stale"]


class Cycle(NamedTuple):
    """A client's profile: where it is in its cycle of rounds. The client has a copy.

    Attributes:
      skeleton: The client's skeleton.
      visits: ``int32[]``: the number of its rounds after the warm-up.
    """

    skeleton: Skeleton
    visits: jax.Array


class Server(NamedTuple):
    """The server's state.

    Attributes:
      params: The global model.
      clients: The sum over all clients' models; None without ``mean_model``.
    """

    params: Params
    clients: WeightedSum | None = None


class Upload(NamedTuple):
    """A client's upload.

    Attributes:
      update: Its parameters less those that it started from; in UpdateSkel rounds of the skeleton.
      skeleton: The new skeleton, in SetSkel rounds.
      params: The client's model as the server knows it: the client sent each filter when it last changed.
        Empty unless ``absent="stale"``.
      change: The change of the client's model, which the server follows in the same way. Empty without
        ``mean_model``.
    """

    update: Masked
    skeleton: Conditional
    params: AlreadyKnown
    change: AlreadyKnown


class Contribution(NamedTuple):
    """One client's part in the server's new state.

    Attributes:
      update: Its part in the global model.
      change: The change of its own model.
    """

    update: WeightedSum | MaskedSum
    change: PyTree


def next_cycle(cycle: Cycle, skeleton: Skeleton, warm_up: jax.Array) -> Cycle:
    """A client's cycle after a round; a warm-up round is no part of it."""
    return trees.where(warm_up, cycle, Cycle(skeleton, cycle.visits + 1))


def server_side(
    absent: Absent, is_warm_up: Callable[[Round], jax.Array]
) -> tuple[algorithm.Receive, algorithm.Merge]:
    """Makes the functions ``receive`` and ``merge`` of the algorithm."""

    def receive(
        round: Round, server: Server, profile: Cycle, upload: Upload, weight: jax.Array
    ) -> tuple[Cycle, Contribution]:
        del server
        skeleton = trees.where(upload.skeleton.flag, upload.skeleton.tree, profile.skeleton)
        profile = next_cycle(profile, skeleton, is_warm_up(round))
        values, mask = upload.update
        match absent:
            case "ignore":
                update = masked(values, mask, weight)
            case "zero":
                update = weighted(jax.tree.map(lambda v, m: jnp.where(m, v, 0), values, mask), weight)
            case "stale":
                update = weighted(upload.params.tree, weight)
        return profile, Contribution(update, upload.change.tree)

    def merge(round: Round, server: Server, total: Contribution) -> tuple[Server, None]:
        del round
        update, change = total
        none = trees.zeros_like(server.params)
        if isinstance(update, MaskedSum):
            params = trees.add(server.params, masked_mean(update, none))
        elif absent == "stale":
            params = weighted_mean(update, default=server.params)
        else:
            params = trees.add(server.params, weighted_mean(update, none))
        if server.clients is None:
            return Server(params), None
        return Server(params, server.clients._replace(total=trees.add(server.clients.total, change))), None

    return receive, merge


def mean_model(server: Server) -> Params:
    """The mean over all clients' models."""
    assert server.clients is not None
    return weighted_mean(server.clients, default=server.params)
