"""FedSkel: every client trains and exchanges only the filters that matter for its own data.

Luo, Yang, Ye, Guo, Zhao: "FedSkel: Efficient Federated Learning on Heterogeneous Systems with
Skeleton Gradients Update", CIKM 2021, doi 10.1145/3459637.3482107, arXiv 2108.09081.

Rounds come in cycles. In the first round of a cycle (*SetSkel*) a client trains and exchanges the whole
model, and sums up the activity of each filter; the most active filters are its *skeleton*. In the other
rounds (*UpdateSkel*) the forward pass is whole, the backward pass is computed for the skeleton alone, and
only the skeleton travels, in both directions. The other filters stay as the client has them.

Where the paper is silent we choose: a cohort stays for a whole cycle; the server averages each filter
over the clients that sent it (``stale_mean`` averages whole models, as published); a client's tier
is its id modulo the number of ratios.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.algorithms.ratios import ratio_tiers
from fedjax_masks.algorithms.skeletons import Skeleton, keep_count, skeleton_mask, train_skeleton, train_whole
from fedjax_masks.communication.payload import AlreadyKnown, Conditional, Masked
from fedjax_masks.core import algorithm, trees
from fedjax_masks.core.aggregation import MaskedSum, WeightedSum, masked, masked_mean, weighted, weighted_mean
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, Schedule, State, Task
from fedjax_masks.core.masks import all_filters
from fedjax_masks.core.options import Count, PositiveShare, checks_options
from fedjax_masks.core.training import LocalTraining, TrainingOptions, as_trainer
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Model, prunable_kernels


class Client(NamedTuple):
    """A client's state. A client's profile is its skeleton.

    Attributes:
      params: The client's model.
      skeleton: The client's skeleton.
    """

    params: Params
    skeleton: Skeleton


class Server(NamedTuple):
    """The server's state.

    Attributes:
      params: The global model.
    """

    params: Params


class Upload(NamedTuple):
    """A client's upload.

    Attributes:
      update: Its parameters less those that it started from; in UpdateSkel rounds of the skeleton.
      skeleton: The new skeleton, in SetSkel rounds.
      params: The client's model as the server knows it: the client sent each filter when it last changed.
        Empty unless ``stale_mean``.
    """

    update: Masked
    skeleton: Conditional
    params: AlreadyKnown


@checks_options
def fedskel(
    model: Model,
    trainer: LocalTraining,
    *,
    ratios: Sequence[PositiveShare] | Literal["devices"] = (0.2,),
    capability: np.ndarray | None = None,
    updates: Count = 4,
    prune_dense: bool = False,
    local_dense: bool = False,
    stale_mean: bool = False,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """FedSkel.

    Args:
      model: The model.
      trainer: Local training, or its optimizer. Neither momentum nor weight decay moves a parameter
        outside the skeleton.
      ratios: Share of filters in the skeleton, in (0, 1]; client ``i`` has
        ``ratios[i % len(ratios)]``. Each is a program of its own. ``"devices"``: as capable as its
        device is, see :func:`~fedjax_masks.algorithms.ratios.ratios_of`.
      capability: ``float[num_clients]``, in any unit, for ``"devices"``.
      updates: UpdateSkel rounds after each SetSkel round, the paper's k.
      prune_dense: Hidden dense layers have skeletons too, of neurons.
      local_dense: Dense layers are never exchanged (LG-FedAvg, Liang et al. 2020, arXiv 2001.01523).
      stale_mean: The server averages the clients' whole models, stale filters included.
      **training: Fields of the trainer.

    Returns:
      The algorithm. Its global model is the server's (the paper's "new test"), its personal model
      the client's own (its "local test").

    Raises:
      UserError: An option is out of range, or no layer has a skeleton.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="shards:2")
      >>> model = fm.models.mlp(task, hidden=(16,))
      >>> algorithm = fm.fedskel(model, optax.sgd(0.1), ratios=(0.5,), prune_dense=True)
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=2, eval_every=1)
      >>> first, later = run.records[0]["bytes_up"], run.records[-1]["bytes_up"]
      >>> first > later
      True
    """
    ratios, tier_of = ratio_tiers(ratios, capability)
    trainer = as_trainer(trainer, training)
    kernels = prunable_kernels(model, dense=prune_dense)
    counts = [{k.name: keep_count(k.outputs, ratio) for k in kernels} for ratio in ratios]
    set_skeleton = train_whole(model, trainer, counts)
    update_skeleton = [train_skeleton(model, trainer, kernels, numbers) for numbers in counts]

    def is_whole(round: Round) -> jax.Array:
        return round.index % (updates + 1) == 0

    def exchange_mask(params: Params, skeleton: Skeleton, whole: jax.Array) -> PyTree:
        mask = skeleton_mask(kernels, params, {name: m | whole for name, m in skeleton.items()})
        return _without_dense(model, mask) if local_dense else mask

    def init(key: chex.PRNGKey, task: Task) -> State:
        params = model.init(key)
        clients = trees.replicate(Client(params, all_filters(kernels)), task.num_clients)
        return State(Server(params), clients, clients.skeleton)

    def send(round: Round, server: Server, profile: Skeleton) -> Masked:
        # The client knows the mask: it has chosen its skeleton, and counts the rounds.
        return Masked(server.params, exchange_mask(server.params, profile, is_whole(round)))

    def train(round: Round, message: Masked, client: Client, data: ClientData) -> tuple[Client, Upload, Info]:
        whole = is_whole(round)
        mask = exchange_mask(client.params, client.skeleton, whole)
        start = jax.tree.map(jnp.where, mask, message.values, client.params)
        arguments = (round, start, data, client.skeleton)
        branches = [partial(update, *arguments) for update in update_skeleton]
        params, info, skeleton = jax.lax.cond(
            whole, partial(set_skeleton, *arguments), lambda: jax.lax.switch(data.tier, branches)
        )

        share = sum(jnp.sum(m) for m in client.skeleton.values()) / sum(k.outputs for k in kernels)
        info = info._replace(extra={"density": jnp.where(whole, 1.0, share)})
        upload = Upload(
            # The server knows the mask: it got the skeleton in the last SetSkel round, and counts the rounds.
            Masked(trees.sub(params, start), mask),
            Conditional(whole, skeleton),
            AlreadyKnown(params if stale_mean else ()),
        )
        return Client(params, skeleton), upload, info

    def personal(server: Server, client: Client, x: jax.Array) -> jax.Array:
        del server
        return model.apply(client.params, x)

    def globally(server: Server, client: PyTree, x: jax.Array) -> jax.Array:
        del client
        return model.apply(server.params, x)

    receive, merge = _server_side(stale_mean=stale_mean)
    models = {"global": globally, "personal": personal}
    schedule = Schedule(lambda index, draw: draw(index - index % (updates + 1)), len(ratios), tier_of)
    return FederatedAlgorithm(init, send, train, receive, merge, models, schedule)


def _server_side(*, stale_mean: bool) -> tuple[algorithm.Receive, algorithm.Merge]:
    """Reception and merging of uploads."""

    def receive(
        round: Round, server: Server, profile: Skeleton, upload: Upload, weight: jax.Array
    ) -> tuple[Skeleton, WeightedSum | MaskedSum]:
        del round, server
        skeleton = trees.where(upload.skeleton.flag, upload.skeleton.tree, profile)
        if stale_mean:
            return skeleton, weighted(upload.params.tree, weight)
        return skeleton, masked(upload.update.values, upload.update.mask, weight)

    def merge(round: Round, server: Server, total: WeightedSum | MaskedSum) -> tuple[Server, None]:
        del round
        if isinstance(total, WeightedSum):
            return Server(weighted_mean(total, default=server.params)), None
        update = masked_mean(total, trees.zeros_like(server.params))
        return Server(trees.add(server.params, update)), None

    return receive, merge


def _without_dense(model: Model, mask: PyTree) -> PyTree:
    """The mask, False in dense layers."""
    for kernel in model.kernels:
        if kernel.kind == "dense":
            for path in filter(None, (kernel.path, kernel.bias)):
                mask = trees.put(mask, path, jnp.zeros_like(trees.get(mask, path)))
    return mask
