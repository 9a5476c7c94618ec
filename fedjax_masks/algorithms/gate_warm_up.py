"""Warm-up of channel gates: the share of active channels falls from 1 to its final value over some rounds.

The schedule is our choice, and not part of the published system, which starts with the final share.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, State, Task
from fedjax_masks.core.types import PyTree
from fedjax_masks.models import Model
from fedjax_masks.models.gating import active_counts


class WarmUp(NamedTuple):
    """The server's state during and after a warm-up of gates.

    Attributes:
      round: ``int32[]``: the last merged round, whose numbers of channels evaluation uses.
      server: The federation's own state.
    """

    round: jax.Array
    server: PyTree


def warm_up_counts(model: Model, ratio: float, warm_up: int) -> dict[str, np.ndarray]:
    """The numbers of active channels in each round of a warm-up: ``int32[warm_up + 1]`` by layer.

    >>> from types import SimpleNamespace
    >>> from fedjax_masks.models import cnn
    >>> net = cnn(SimpleNamespace(input_shape=(8, 8, 1), num_classes=2))
    >>> warm_up_counts(net, 0.5, 2)["conv1"].tolist()
    [32, 24, 16]
    """
    ratios = [1 - (1 - ratio) * round / warm_up for round in range(warm_up)]
    rounds = [active_counts(model, share) for share in (*ratios, ratio)]
    return {name: np.array([counts[name] for counts in rounds], np.int32) for name in rounds[0]}


def warmed_up(
    make: Callable[[Mapping[str, int | jax.Array]], FederatedAlgorithm], counts: Mapping[str, np.ndarray]
) -> FederatedAlgorithm:
    """An algorithm whose gates keep fewer channels from round to round.

    Args:
      make: ``(counts) -> algorithm``: the algorithm with traced numbers of active channels by layer. Its
        state, messages and contributions do not depend on these numbers.
      counts: ``int32[rounds]`` by layer: the numbers in each round; the last ones hold for all later rounds.

    Returns:
      The algorithm. Its server's state is a :class:`WarmUp`.
    """

    def in_round(index: jax.Array) -> FederatedAlgorithm:
        return make(
            {
                name: jnp.asarray(values)[jnp.minimum(index, len(values) - 1)]
                for name, values in counts.items()
            }
        )

    final = make({name: int(values[-1]) for name, values in counts.items()})

    def init(key: chex.PRNGKey, task: Task) -> State:
        state = final.init(key, task)
        return state._replace(server=WarmUp(jnp.int32(0), state.server))

    def send(round: Round, server: WarmUp, profile: PyTree) -> PyTree:
        return final.send(round, server.server, profile)

    def train(round: Round, message: PyTree, client: PyTree, data: ClientData) -> tuple[PyTree, PyTree, Info]:
        return in_round(round.index).train(round, message, client, data)

    def receive(
        round: Round, server: WarmUp, profile: PyTree, upload: PyTree, weight: jax.Array
    ) -> tuple[PyTree, PyTree]:
        return final.receive(round, server.server, profile, upload, weight)

    def merge(round: Round, server: WarmUp, total: PyTree) -> tuple[WarmUp, Info | None]:
        merged, info = final.merge(round, server.server, total)
        return WarmUp(jnp.asarray(round.index, jnp.int32), merged), info

    def predict(server: WarmUp, client: PyTree, x: jax.Array) -> jax.Array:
        return in_round(server.round).predict["global"](server.server, client, x)

    return FederatedAlgorithm(init, send, train, receive, merge, {"global": predict}, final.schedule)
