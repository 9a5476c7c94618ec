"""FedAvg of a model of which some filters are pruned for good: only what survives travels.

The second half of MPFL (see :mod:`fedjax_masks.algorithms.mpfl`), and what any filter mask needs
that is to be scored or fine-tuned. A mask is sent to a client once, a bit per filter, before its
first round; from then on both ends know it, and no indices travel. Pruned weights are zero and never
move. With ``prune_bias`` the same parameters come, for less computation, from FedAvg of the compacted
model (:mod:`fedjax_masks.models.compaction`); pruned filters whose outputs enter a residual sum stay in it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.algorithms import fedavg as plain
from fedjax_masks.communication.payload import Masked, When
from fedjax_masks.core import training, trees
from fedjax_masks.core.aggregation import WeightedSum, noted, weighted
from fedjax_masks.core.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, Params, State, Task
from fedjax_masks.core.errors import unknown
from fedjax_masks.core.masks import density, filter_mask, prune
from fedjax_masks.models import Kernel, Model

Filters = dict[str, jax.Array]


class Server(NamedTuple):
    """The server's state.

    Attributes:
      model: FedAvg's.
      filters: By layer: ``bool[outputs]``: False = pruned.
      told: ``bool[num_clients]``: who has been told.
    """

    model: plain.Server
    filters: Filters
    told: jax.Array


class Message(NamedTuple):
    """What the server sends.

    Attributes:
      params: The parameters that survive.
      filters: The mask, to a client that has not got it yet; a client's state is the mask that it got.
    """

    params: Masked
    filters: When


def survivors(kernels: Any, params: Params, filters: Filters, *, prune_bias: bool) -> Params:
    """What a filter mask leaves of a model's parameters.

    Args:
      kernels: The model's kernels, ``model.kernels``.
      params: The model's parameters, for their shapes.
      filters: By layer: ``bool[outputs]``; layers that are not in it are whole.
      prune_bias: Whether bias and normalisation of a pruned filter go with its weights.

    Returns:
      Pytree of bool like ``params``, with axes of size 1: False = pruned.
    """

    def parts(kernel: Kernel) -> list[tuple[str, ...]]:
        rest = [kernel.bias, *kernel.norm_paths] if prune_bias else []
        return [kernel.path, *filter(None, rest)]

    return filter_mask(kernels, params, filters, parts)


def masked_fedavg(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    filters: Mapping[str, Any],
    prune_bias: bool = False,
    epochs: int = 1,
    batch_size: int = 10,
    server_optimizer: optax.GradientTransformation | None = None,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """Federated averaging of what a filter mask leaves.

    Args:
      model: The model that all clients train, pruned.
      optimizer: The clients' optimiser, fresh in every round.
      filters: By layer: ``bool[outputs]``: False prunes the filter; layers that are not in it
        stay whole.
      prune_bias: Whether bias and normalisation of a pruned filter go with its weights. Without
        it, it still emits its bias, and that is trained; from a bias of 0, at the kink of relu,
        it does not move.
      epochs: Local epochs per round.
      batch_size: Examples per local step.
      server_optimizer: As in :func:`~fedjax_masks.algorithms.fedavg.fedavg`.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm; ``_replace`` a state's ``server.model`` to start from other parameters.

    Raises:
      ValueError: A mask is not of a layer's shape, or empties it.

    Example:
      >>> import numpy as np, optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10)
      >>> halves = {"conv1": np.arange(32) % 2 == 0, "conv2": np.arange(64) % 2 == 0}
      >>> algorithm = fm.masked_fedavg(fm.models.cnn(task), optax.sgd(0.1), filters=halves)
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["density"]
      0.5
    """
    _check(model, filters)
    fit = training.supervised(model.apply, optimizer, epochs=epochs, batch_size=batch_size, augment=augment)
    base = plain.averaging(model, fit, server_optimizer=server_optimizer)

    def surviving(params: Params, filters: Filters) -> Params:
        return survivors(model.kernels, params, filters, prune_bias=prune_bias)

    def init(key: chex.PRNGKey, task: Task) -> State:
        state = base.init(key, task)
        chosen = {name: jnp.asarray(mask) for name, mask in filters.items()}
        params = prune(state.server.params, surviving(state.server.params, chosen))
        server = Server(state.server._replace(params=params), chosen, jnp.zeros(task.num_clients, bool))
        return State((), server, trees.replicate(jax.tree.map(jnp.ones_like, chosen), task.num_clients))

    def send(server: Server, client_id: jax.Array) -> Message:
        params = server.model.params
        # The client knows the mask: it comes along, or has come with an earlier message.
        sent = Masked(params, surviving(params, server.filters))
        return Message(sent, When(~server.told[client_id], server.filters))

    def train(
        key: chex.PRNGKey, common: Any, message: Message, client: Filters, data: ClientData
    ) -> tuple[Filters, Masked, Metrics]:
        del common
        filters = trees.where(message.filters.flag, message.filters.tree, client)
        kept = surviving(message.params.values, filters)
        start = prune(message.params.values, kept)
        params, metrics = fit(key, start, data, update_mask=kept)
        # The server knows the mask: it has chosen it.
        upload = Masked(trees.sub(params, start), kept)
        return filters, upload, {**metrics._asdict(), "density": density(filters)}

    def reduce(upload: Masked, weight: jax.Array) -> WeightedSum:
        return weighted(prune(upload.values, upload.mask), weight)

    def merge(key: chex.PRNGKey, common: Any, server: Server, uploads: WeightedSum, cohort: Cohort) -> Server:
        new = base.merge(key, common, server.model, uploads, cohort)
        return Server(new, server.filters, noted(server.told, True, cohort.ids, cohort.weight > 0))

    def predict_global(common: Any, server: Server, x: jax.Array) -> jax.Array:
        del common
        return model.apply(server.model.params, x)

    return FederatedAlgorithm(init, send, train, merge, reduce=reduce, predict_global=predict_global)


def _check(model: Model, filters: Mapping[str, Any]) -> None:
    outputs = {kernel.name: kernel.outputs for kernel in model.kernels}
    for name, mask in filters.items():
        if name not in outputs:
            raise unknown("filters", name, outputs)
        if mask.dtype != bool or mask.shape != (outputs[name],):
            raise ValueError(
                f"filters[{name!r}] is {mask.dtype}{list(mask.shape)}; accepted is bool[{outputs[name]}]"
            )
        if not mask.any():
            raise ValueError(f"filters[{name!r}]: no filter would be left; accepted is one or more")
