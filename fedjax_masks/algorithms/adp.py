"""ADP: adaptive dynamic pruning, channel gates inside any federated optimizer.

Yu, Nguyen, Anwar, Jannesari: "Adaptive Dynamic Pruning for Non-IID Federated Learning", 2021, arXiv
2106.06921. Every convolution has a gate that keeps, for each example, its most salient channels and
suppresses the others, in training and evaluation alike. Only active channels get gradients. Gates are
trained and exchanged like all other parameters, by FedAvg, FedProx, FedNova or SCAFFOLD: see
:func:`fedjax_masks.models.gated`, whose models every algorithm takes.

As published, everything travels, gates included. ``upload_share`` is our extension: a client uploads
only the channels that its own data most often activate. A model's parameters are its whole state, so
neither control variates nor FedNova's normalization ever touch statistics of batch normalization.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.algorithms.fedavg import Server, averaging
from fedjax_masks.algorithms.fednova import normalized
from fedjax_masks.algorithms.fedprox import proximal
from fedjax_masks.algorithms.gate_report import pruned_layers, report_selections
from fedjax_masks.algorithms.gate_warm_up import warm_up_counts, warmed_up
from fedjax_masks.algorithms.scaffold import controlled
from fedjax_masks.communication.payload import Masked
from fedjax_masks.core import trees
from fedjax_masks.core.aggregation import MaskedSum, WeightedSum, masked, masked_mean
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.masks import filter_mask, top_count
from fedjax_masks.core.minibatches import Batch
from fedjax_masks.core.options import Decay, Natural, PositiveShare, Rate, checks_options
from fedjax_masks.core.training import (
    LocalTraining,
    SummingLoss,
    Trainer,
    TrainingOptions,
    as_trainer,
    mean_cross_entropy,
    mean_over_real,
)
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Gate, Kernel, Model, gated
from fedjax_masks.models.gates import Activity, count_active

Federation = Literal["fedavg", "fedprox", "fednova", "scaffold"]
_MU = 0.01


class Upload(NamedTuple):
    """A client's upload with ``upload_share`` below 1.

    Attributes:
      update: The change of the chosen channels of gated layers, and of all other parameters.
      channels: ``bool[outputs]`` by gated layer: the chosen channels.
    """

    update: Masked
    channels: dict[str, jax.Array]


@checks_options
def adp(
    model: Model,
    trainer: LocalTraining,
    *,
    ratio: PositiveShare = 0.7,
    warm_up: Natural = 0,
    saliency: Literal["mean", "sigmoid"] | None = None,
    gate_bias: float = 1.0,
    gate_scale: Rate = 1.0,
    l1: Decay = 0.0,
    federation: Federation = "fedavg",
    threshold: Decay = 0.0,
    upload_share: PositiveShare = 1.0,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """ADP.

    Args:
      model: The net that gets the gates; one with convolutions.
      trainer: Local training, or its optimizer; 10 epochs and minibatches of 64 as published.
      ratio: Share of channels that are active in an example, in (0, 1].
      warm_up: Rounds until that share is reached: it falls linearly from 1 in round 0 to ``ratio`` in round
        ``warm_up``, in evaluation as in training; 0 starts with ``ratio``, as published.
      saliency: A gate's view of an input channel: its ``mean``, or the ``sigmoid`` of that; by
        default, and as published, the mean in residual networks and the sigmoid in others.
      gate_bias: The initial value of the gates' biases. The published ResNet starts from 0, against its own
        gate's 1.
      gate_scale: Factor of the gates' initial weights; 1 is He et al.'s normal distribution, as published.
        In deep residual networks the gates, and with them the activations, then grow from block to block
        until training overflows; 0.1 avoids it and changes no selection whose gates are above 0.
      l1: Factor of the sum of all gates of an example in the loss; 1e-8 to 1e-5 in the gates'
        own paper, 0 as published.
      federation: The algorithm that combines the clients; ``fedprox`` with mu = 0.01. For other options,
        give :func:`fedjax_masks.models.gated` models to these algorithms themselves.
      threshold: After each local epoch, weights of convolutions up to this magnitude are set to zero;
        1e-3 in the published variant that does so, under FedAvg.
      upload_share: Share of each gated layer's channels that a client uploads, those most often
        active in its training; the server averages each over the clients that sent it. Below 1 only with
        FedAvg.
      **training: Fields of the trainer.

    Returns:
      The algorithm. It has a global model and no personal ones.

    Raises:
      UserError: An option is out of range or does not fit the federation.
      ValueError: The model has no convolution, or ``ratio`` leaves a layer without active channels.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="iid", examples_per_client=20)
      >>> algorithm = fm.adp(fm.models.cnn(task), optax.sgd(0.1), ratio=0.5)
      >>> run = fm.simulate(algorithm, task, rounds=1, cohort=2)
      >>> run.records[-1]["round"]
      1
    """
    if upload_share < 1 and federation != "fedavg":
        raise UserError(f"upload_share={upload_share}: must be 1, since {federation} uploads everything")
    trainer = as_trainer(trainer, training)
    after_epoch = zero_small_weights(model, threshold) if threshold else None

    def federated(net: Model) -> FederatedAlgorithm:
        loss = gated_loss(net, l1)
        report = partial(report_selections, net, pruned_layers(model, ratio), trainer.batch_size)
        if upload_share < 1:
            return salient(net, trainer, loss, share=upload_share, after_epoch=after_epoch, report=report)

        def plain_loss(params: Params, batch: Batch, key: chex.PRNGKey) -> jax.Array:
            return loss(params, batch, key)[0]

        def fit(round: Round, params: Params, data: ClientData, **options: Any) -> tuple[Params, Info]:
            params, info = trainer(round, params, data, plain_loss, after_epoch=after_epoch, **options)
            return params, info._replace(extra=report(params, data))

        match federation:
            case "fedavg":
                return averaging(net, fit)
            case "fedprox":
                return averaging(net, proximal(fit, _MU))
            case "fednova":
                return normalized(averaging(net, fit), trainer)
            case "scaffold":
                return controlled(net, trainer, fit)

    gates = partial(gated, model, saliency=saliency, bias=gate_bias, scale=gate_scale)
    if not warm_up:
        return federated(gates(ratio=ratio))
    return warmed_up(lambda counts: federated(gates(counts=counts)), warm_up_counts(model, ratio, warm_up))


def gated_loss(net: Model, l1: float) -> SummingLoss:
    """The cross-entropy of a gated model and ``l1`` times the mean sum of its gates; it sums activities."""

    def loss(params: Params, batch: Batch, key: chex.PRNGKey) -> tuple[jax.Array, Activity]:
        del key
        logits, gates = net.forward(params, batch.inputs)
        value = mean_cross_entropy(logits, batch)
        if l1:
            value += l1 * mean_over_real(_sum_of_gates(gates), batch.real)
        return value, count_active(gates, batch.real)

    return loss


def _sum_of_gates(gates: Mapping[str, Gate]) -> jax.Array:
    """``float32[batch]``: the sum over all layers and channels."""
    return sum((jnp.sum(gate.value, -1) for gate in gates.values()), jnp.zeros(()))


def zero_small_weights(model: Model, threshold: float) -> Callable[[Params], Params]:
    """A function of parameters that sets weights of convolutions up to a magnitude to zero."""

    def cut(params: Params) -> Params:
        for kernel in model.kernels:
            if kernel.kind == "conv":
                weights = trees.get(params, kernel.path)
                params = trees.put(params, kernel.path, jnp.where(jnp.abs(weights) > threshold, weights, 0))
        return params

    return cut


def salient(
    net: Model,
    trainer: Trainer,
    loss: SummingLoss,
    *,
    share: float,
    after_epoch: Callable[[Params], Params] | None = None,
    report: Callable[[Params, ClientData], dict[str, jax.Array]] = lambda params, data: {},
) -> FederatedAlgorithm:
    """FedAvg in which clients upload only the channels that matter for their own data.

    Args:
      net: A gated model.
      trainer: Local training.
      loss: Its loss, which sums activities.
      share: Share of each gated layer's channels that is uploaded, in (0, 1].
      after_epoch: ``params -> params``, applied at the end of every epoch.
      report: ``(params, data) -> metrics``: facts about a client's trained model.
    """
    average = averaging(net, trainer.supervised(net.apply))  # its clients' part is replaced
    layers = {kernel.name: kernel for kernel in net.kernels if kernel.gate is not None}
    count = {name: max(1, round(share * kernel.outputs)) for name, kernel in layers.items()}

    def parts(kernel: Kernel) -> list[tuple[str, ...]]:
        gate = kernel.gate or ()
        paths = (kernel.path, kernel.bias, *kernel.norm_paths, (*gate, "kernel"), (*gate, "bias"))
        return [path for path in paths if path]

    def train(round: Round, message: Params, client: PyTree, data: ClientData) -> tuple[PyTree, Upload, Info]:
        params, info, activity = trainer.summing(round, message, data, loss, after_epoch=after_epoch)
        channels = {name: top_count(activity[name], count[name]) for name in layers}
        # The server derives the mask from the channels, which the upload carries.
        update = Masked(trees.sub(params, message), filter_mask(net.kernels, params, channels, parts))
        return client, Upload(update, channels), info._replace(extra=report(params, data))

    def receive(
        round: Round, server: Server, profile: PyTree, upload: Upload, weight: jax.Array
    ) -> tuple[PyTree, MaskedSum]:
        del round, server
        return profile, masked(upload.update.values, upload.update.mask, weight)

    def merge(round: Round, server: Server, total: MaskedSum) -> tuple[Server, Info | None]:
        update = masked_mean(total, default=trees.zeros_like(server.params))
        return average.merge(round, server, WeightedSum(update, jnp.ones(())))

    return average._replace(train=train, receive=receive, merge=merge)
