"""FedSkel: every client trains and exchanges only the filters that matter for its own data.

Luo, Yang, Ye, Guo, Zhao: "FedSkel: Efficient Federated Learning on Heterogeneous Systems with
Skeleton Gradients Update", CIKM 2021, doi 10.1145/3459637.3482107, arXiv 2108.09081.

Rounds come in cycles. In the first of a cycle (*SetSkel*) a client trains and exchanges everything and
sums up how active each filter is; the most active ones are its *skeleton*. In the others
(*UpdateSkel*) the forward pass is whole, the backward pass is computed for the skeleton only, and
only the skeleton travels, in both directions; the rest stays the client's own.

Where the paper is silent we choose: a cohort stays for a whole cycle; the server averages each filter
over the clients that sent it (``stale_mean`` averages whole models, as published); a client's tier
is its id modulo the number of ratios.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_masks.communication.payload import Known, Masked, When
from fedjax_masks.core import training, trees
from fedjax_masks.core.aggregation import masked_mean, noted
from fedjax_masks.core.algorithm import (
    ClientData,
    Cohort,
    FederatedAlgorithm,
    Metrics,
    Params,
    State,
    Task,
    Tiers,
)
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.masks import all_filters, filter_mask, top_count
from fedjax_masks.core.options import Count, PositiveShare
from fedjax_masks.models import Layer, Model, prunable_kernels

Skeleton = dict[str, jax.Array]


class Client(NamedTuple):
    """A client's state.

    Attributes:
      params: Its own model.
      skeleton: By layer: ``bool[outputs]``.
    """

    params: Params
    skeleton: Skeleton


class Server(NamedTuple):
    """The server's state.

    Attributes:
      params: The global model.
      skeletons: By layer: ``bool[num_clients, outputs]``: what clients have told.
      round: ``int32[]``: rounds done.
    """

    params: Params
    skeletons: Skeleton
    round: jax.Array


class Message(NamedTuple):
    """What the server sends.

    Attributes:
      params: The global model; in UpdateSkel rounds the client's skeleton of it.
      whole: Whether this is a SetSkel round: known to all, by the number of the round.
    """

    params: Masked
    whole: Known


class Upload(NamedTuple):
    """What a client sends.

    Attributes:
      update: What training added; in UpdateSkel rounds to the skeleton.
      skeleton: The new skeleton, in SetSkel rounds.
      params: The client's model as the server knows it without being told: it has been told each
        filter when it last changed. Empty unless ``stale_mean``.
    """

    update: Masked
    skeleton: When
    params: Known


def keep_count(outputs: int, ratio: float) -> int:
    """How many of a layer's filters the skeleton keeps: ``n - floor((1 - ratio) n)``, at least 1.

    >>> [keep_count(20, r) for r in (1.0, 0.5, 0.1, 0.01)]
    [20, 10, 2, 1]
    """
    # Without the rounding, (1 - 0.1) * 20 could fall just short of 18.
    return max(1, outputs - math.floor(round((1 - ratio) * outputs, 9)))


def ratios_of(capability: np.ndarray, *, least: float = 0.1) -> tuple[tuple[float, ...], np.ndarray]:
    """Ratios that let every device finish with the most capable one: its share of that one's rate.

    Args:
      capability: ``float[num_clients]``, above 0, in any unit.
      least: No ratio is smaller.

    Returns:
      The ratios that occur, in tenths, rounded down, and ``int32[num_clients]``: which of them is whose.

    >>> ratios_of(np.array([1.2, 40.0, 2.5, 12.0]))
    ((0.1, 0.3, 1.0), array([0, 2, 0, 1], dtype=int32))
    """
    tenths = np.floor(10 * np.maximum(capability / np.max(capability), least) + 1e-6).astype(int)
    found, tier_of = np.unique(tenths, return_inverse=True)
    return tuple((found / 10).tolist()), tier_of.astype(np.int32)


def ratio_tiers(
    ratios: Sequence[float] | Literal["devices"], capability: np.ndarray | None
) -> tuple[Sequence[float], Tiers]:
    """Which client has which ratio.

    Args:
      ratios: In (0, 1]; client ``i`` has ``ratios[i % len(ratios)]``. ``"devices"``: :func:`ratios_of`.
      capability: ``float[num_clients]``, for ``"devices"``.

    Returns:
      The ratios, and the tiers of clients that share one.

    Raises:
      UserError: The ratios are those of devices, and there are none.
      ValueError: A ratio is out of range.
    """
    if ratios != "devices":
        tiers = Tiers(len(ratios), lambda ids: ids % len(ratios))
    elif capability is None:
        raise UserError("ratios=devices: the clients have no devices; accepted with --devices SPEC")
    else:
        ratios, tier_of = ratios_of(capability)
        tiers = Tiers(len(ratios), lambda ids: tier_of[ids])
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratios={ratio}: accepted is above 0 and at most 1")
    return ratios, tiers


def fedskel(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 1,
    batch_size: int = 10,
    ratios: Sequence[PositiveShare] | Literal["devices"] = (0.2,),
    capability: np.ndarray | None = None,
    updates: Count = 4,
    prune_dense: bool = False,
    local_dense: bool = False,
    stale_mean: bool = False,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """FedSkel.

    Args:
      model: The model.
      optimizer: The clients' optimiser, fresh in every round, so that its momentum cannot move
        what is outside the skeleton; its weight decay is kept from doing so.
      epochs: Local epochs per round.
      batch_size: Examples per local step.
      ratios: Share of filters in the skeleton, in (0, 1]; client ``i`` has
        ``ratios[i % len(ratios)]``. Each is a program of its own. ``"devices"``: as capable as its
        device is, see :func:`ratios_of`.
      capability: ``float[num_clients]``, in any unit, for ``"devices"``.
      updates: UpdateSkel rounds after each SetSkel round, the paper's k.
      prune_dense: Hidden dense layers have skeletons too, of neurons.
      local_dense: Dense layers are never exchanged (LG-FedAvg, Liang et al. 2020, arXiv 2001.01523).
      stale_mean: The server averages the clients' whole models, stale filters included.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. ``predict_global`` is the server's model (the paper's "new test"), ``predict``
      the client's own (its "local test").

    Raises:
      ValueError: A ratio is out of range, or no layer has a skeleton.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10, partition="shards:2")
      >>> algorithm = fm.fedskel(fm.models.cnn(task), optax.sgd(0.1), ratios=(0.5,))
      >>> run = fm.simulate(algorithm, task, rounds=5, cohort=4)
      >>> first, later = run.records[0]["bytes_up"], run.records[-1]["bytes_up"]
      >>> first > later
      True
    """
    ratios, tiers = ratio_tiers(ratios, capability)
    pruned = prunable_kernels(model, dense=prune_dense)
    keep = {k.name: [keep_count(k.outputs, ratio) for ratio in ratios] for k in pruned}
    fit = {"optimizer": optimizer, "epochs": epochs, "batch_size": batch_size, "augment": augment}

    def moves(params: Params, skeleton: Skeleton) -> Any:
        """Pytree of bool like the parameters, with axes of size 1: what a skeleton lets train."""
        return filter_mask(pruned, params, skeleton, lambda k: filter(None, (k.path, k.bias)))

    def travels(params: Params, skeleton: Skeleton) -> Any:
        """The same, of what is exchanged."""
        mask = moves(params, skeleton)
        for kernel in model.kernels:
            if local_dense and kernel.kind == "dense":
                for path in filter(None, (kernel.path, kernel.bias)):
                    mask = trees.put(mask, path, jnp.zeros_like(trees.get(mask, path)))
        return mask

    def init(key: chex.PRNGKey, task: Task) -> State:
        params = model.init(key)
        clients = trees.replicate(Client(params, all_filters(pruned)), task.num_clients)
        return State((), Server(params, clients.skeleton, jnp.zeros((), jnp.int32)), clients)

    def send(server: Server, client_id: jax.Array) -> Message:
        whole = server.round % (updates + 1) == 0
        skeleton = {name: rows[client_id] | whole for name, rows in server.skeletons.items()}
        # The client knows its skeleton: it has chosen it.
        return Message(Masked(server.params, travels(server.params, skeleton)), Known(whole))

    def train(
        key: chex.PRNGKey, common: Any, message: Message, client: Client, data: ClientData
    ) -> tuple[Client, Upload, Metrics]:
        del common
        whole = message.whole.tree
        received = travels(client.params, {n: s | whole for n, s in client.skeleton.items()})
        start = jax.tree.map(jnp.where, received, message.params.values, client.params)

        def set_skeleton(params: Params) -> tuple[Params, training.LocalMetrics, Skeleton]:
            def loss(params: Params, batch: training.Batch) -> tuple[jax.Array, Any]:
                def hook(layer: Layer, x: jax.Array) -> tuple[jax.Array, Any]:
                    y = layer.linear(x)
                    real = batch.real.reshape(-1, *(1,) * (y.ndim - 1))
                    activity = jnp.sum(jnp.where(real, jnp.abs(y), 0), range(y.ndim - 1))
                    return layer.norm(y), jax.lax.stop_gradient(activity)

                logits, activity = model.forward(params, batch.inputs, hook=hook)
                return training.mean_cross_entropy(logits, batch), {name: activity[name] for name in keep}

            params, metrics, importance = training.train_with_sums(key, params, data, loss=loss, **fit)
            chosen = {n: top_count(v, jnp.array(keep[n])[data.tier]) for n, v in importance.items()}
            return params, metrics, chosen

        def update_skeleton(params: Params, tier: int) -> tuple[Params, training.LocalMetrics, Skeleton]:
            indices = {
                name: jnp.nonzero(mask, size=keep[name][tier])[0] for name, mask in client.skeleton.items()
            }

            def loss(params: Params, batch: training.Batch) -> jax.Array:
                def hook(layer: Layer, x: jax.Array) -> tuple[jax.Array, None]:
                    return layer(x, indices.get(layer.name)), None

                return training.mean_cross_entropy(model.forward(params, batch.inputs, hook=hook)[0], batch)

            mask = moves(params, client.skeleton)
            return *training.train(key, params, data, loss=loss, update_mask=mask, **fit), client.skeleton

        branches = [lambda params, t=t: update_skeleton(params, t) for t in range(len(ratios))]
        params, metrics, skeleton = jax.lax.cond(
            whole, set_skeleton, lambda params: jax.lax.switch(data.tier, branches, params), start
        )
        share = sum(jnp.sum(s) for s in client.skeleton.values()) / sum(k.outputs for k in pruned)
        upload = Upload(
            # The server knows the skeleton: it was told in the last SetSkel round.
            Masked(trees.sub(params, start), received),
            When(whole, skeleton),
            Known(params if stale_mean else ()),
        )
        return (
            Client(params, skeleton),
            upload,
            {**metrics._asdict(), "density": jnp.where(whole, 1.0, share)},
        )

    def merge(key: chex.PRNGKey, common: Any, server: Server, uploads: Upload, cohort: Cohort) -> Server:
        del key, common
        update = uploads.update
        if stale_mean:
            everything = jax.tree.map(jnp.ones_like, update.mask)
            params = masked_mean(uploads.params.tree, everything, cohort.weight, default=server.params)
        else:
            zeros = trees.zeros_like(server.params)
            params = trees.add(server.params, masked_mean(*update, cohort.weight, default=zeros))
        heard = uploads.skeleton.flag & (cohort.weight > 0)
        skeletons = noted(server.skeletons, uploads.skeleton.tree, cohort.ids, heard)
        return Server(params, skeletons, server.round + 1)

    def predict(common: Any, server: Server, client: Client, x: jax.Array) -> jax.Array:
        del common, server
        return model.apply(client.params, x)

    def predict_global(common: Any, server: Server, x: jax.Array) -> jax.Array:
        del common
        return model.apply(server.params, x)

    return FederatedAlgorithm(
        init,
        send,
        train,
        merge,
        predict=predict,
        predict_global=predict_global,
        tiers=tiers,
        select=lambda index, draw: draw(index - index % (updates + 1)),
    )
