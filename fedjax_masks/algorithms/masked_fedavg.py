"""FedAvg of a model of which some filters are pruned for good: only the surviving parameters travel.

This is the second half of MPFL (see :mod:`fedjax_masks.algorithms.mpfl`), and scores or fine-tunes any other
filter mask. The server sends the mask to a client once, a bit per filter, in the client's
first round; from then on both ends know it, and no indices travel. Pruned weights are zero and never
move. With ``prune_bias`` FedAvg of the compacted model (:mod:`fedjax_masks.models.compaction`) gives the same
parameters for less computation; pruned filters whose outputs enter a residual sum stay in it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_masks.algorithms import fedavg as plain
from fedjax_masks.communication.payload import Conditional, Masked
from fedjax_masks.core import trees
from fedjax_masks.core.aggregation import WeightedSum, weighted
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, State, Task
from fedjax_masks.core.errors import UserError, unknown_name
from fedjax_masks.core.masks import density, filter_mask, prune
from fedjax_masks.core.training import LocalTraining, TrainingOptions, as_trainer
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Kernel, Model

Filters = dict[str, jax.Array]
"""``bool[outputs]`` by layer: False = pruned. A client's state is the mask that it received."""


class Server(NamedTuple):
    """The server's state. A client's profile is ``informed``, ``bool[]``: whether it has the mask.

    Attributes:
      model: FedAvg's.
      filters: The mask.
    """

    model: plain.Server
    filters: Filters


class Message(NamedTuple):
    """The server's message.

    Attributes:
      params: The parameters that survive.
      filters: The mask, to a client that lacks it.
    """

    params: Masked
    filters: Conditional


def survivors(kernels: PyTree, params: Params, filters: Filters, *, prune_bias: bool) -> Params:
    """The mask of all parameters that belongs to a mask of filters.

    Args:
      kernels: The model's kernels, ``model.kernels``.
      params: The model's parameters, for their shapes.
      filters: ``bool[outputs]`` by layer; missing layers are whole.
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
    trainer: LocalTraining,
    *,
    filters: Mapping[str, Any],
    prune_bias: bool = False,
    server_optimizer: optax.GradientTransformation | None = None,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """Federated averaging of the parameters that survive a filter mask.

    Args:
      model: The model that all clients train, pruned.
      trainer: Local training, or its optimizer.
      filters: ``bool[outputs]`` by layer: False prunes the filter; missing layers stay whole.
      prune_bias: Whether bias and normalisation of a pruned filter go with its weights. Without
        it, the filter still emits its bias, and that is trained; from a bias of 0, at the kink of relu,
        it does not move.
      server_optimizer: As in :func:`~fedjax_masks.algorithms.fedavg.fedavg`.
      **training: Fields of the trainer.

    Returns:
      The algorithm; ``_replace`` a state's ``server.model`` to start from other parameters.

    Raises:
      UserError: A mask is not of a layer's shape, or empties it.

    Example:
      >>> import numpy as np, optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4)
      >>> model, half = fm.models.mlp(task, hidden=(16,)), {"dense1": np.arange(16) % 2 == 0}
      >>> algorithm = fm.masked_fedavg(model, optax.sgd(0.1), filters=half)
      >>> run = fm.simulate(algorithm, task, rounds=1, cohort=3)
      >>> run.records[-1]["density"]
      0.5
    """
    _check(model, filters)
    fit = as_trainer(trainer, training).supervised(model.apply)
    base = plain.averaging(model, fit, server_optimizer=server_optimizer)

    def surviving(params: Params, filters: Filters) -> Params:
        return survivors(model.kernels, params, filters, prune_bias=prune_bias)

    def init(key: chex.PRNGKey, task: Task) -> State:
        average = base.init(key, task).server
        mask = {name: jnp.asarray(m) for name, m in filters.items()}
        params = prune(average.params, surviving(average.params, mask))
        clients = trees.replicate(jax.tree.map(jnp.ones_like, mask), task.num_clients)
        server = Server(average._replace(params=params), mask)
        return State(server, clients, profiles=jnp.zeros(task.num_clients, bool))

    def send(round: Round, server: Server, profile: jax.Array) -> Message:
        del round
        params = server.model.params
        # The client knows the mask: it comes along, or has come with an earlier message.
        values = Masked(params, surviving(params, server.filters))
        return Message(values, Conditional(~profile, server.filters))

    def train(
        round: Round, message: Message, client: Filters, data: ClientData
    ) -> tuple[Filters, Masked, Info]:
        filters = trees.where(message.filters.flag, message.filters.tree, client)
        mask = surviving(message.params.values, filters)
        start = prune(message.params.values, mask)
        params, info = fit(round, start, data, update_mask=mask)
        # The server knows the mask: it has chosen it.
        upload = Masked(trees.sub(params, start), mask)
        return filters, upload, info._replace(extra={"density": density(filters)})

    def receive(
        round: Round, server: Server, profile: jax.Array, upload: Masked, weight: jax.Array
    ) -> tuple[jax.Array, WeightedSum]:
        del round, server
        return jnp.ones_like(profile), weighted(prune(upload.values, upload.mask), weight)

    def merge(round: Round, server: Server, total: WeightedSum) -> tuple[Server, Info | None]:
        average, info = base.merge(round, server.model, total)
        return server._replace(model=average), info

    def predict(server: Server, client: PyTree, x: jax.Array) -> jax.Array:
        del client
        return model.apply(server.model.params, x)

    return FederatedAlgorithm(init, send, train, receive, merge, {"global": predict})


def _check(model: Model, filters: Mapping[str, Any]) -> None:
    outputs = {kernel.name: kernel.outputs for kernel in model.kernels}
    if not filters:
        raise UserError("filters={}: must have a mask for one layer or more; without masks, choose fedavg")
    for name, mask in filters.items():
        if name not in outputs:
            raise unknown_name("filters", name, outputs)
        if mask.dtype != bool or mask.shape != (outputs[name],):
            kind = f"{mask.dtype}{list(mask.shape)}"
            raise UserError(f"filters[{name!r}]={kind}: must be bool[{outputs[name]}], one bit per filter")
        if not np.any(mask):
            raise UserError(f"filters[{name!r}]: must have a True; a layer needs one filter or more")
