"""ADP: adaptive dynamic pruning, channel gates inside any federated optimiser.

Yu, Nguyen, Anwar, Jannesari: "Adaptive Dynamic Pruning for Non-IID Federated Learning", 2021, arXiv
2106.06921. Every convolution has a gate that keeps, for each example, its most salient channels and
suppresses the others, in training and evaluation alike; only active channels get gradients. Gates are
trained and exchanged like all other parameters, by FedAvg, FedProx, FedNova or SCAFFOLD: see
:func:`fedjax_masks.models.gated`, whose models every algorithm takes.

As published, everything travels, gates included. ``upload_share`` is our extension: a client uploads
only the channels that its own data most often activate. A model's parameters are its whole state, so
neither control variates nor FedNova's normalisation ever touch statistics of batch normalisation.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.algorithms.fedavg import Server, averaging
from fedjax_masks.algorithms.fednova import normalized
from fedjax_masks.algorithms.scaffold import controlled
from fedjax_masks.communication.payload import Masked
from fedjax_masks.core import training, trees
from fedjax_masks.core.aggregation import WeightedSum, masked_mean
from fedjax_masks.core.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, Params
from fedjax_masks.core.masks import filter_mask, top_count
from fedjax_masks.core.options import Decay, PositiveShare
from fedjax_masks.models import Gate, Kernel, Model, gated
from fedjax_masks.models.gates import Activity, count_active

Federation = Literal["fedavg", "fedprox", "fednova", "scaffold"]
_MU = 0.01


class Upload(NamedTuple):
    """What a client sends with ``upload_share`` below 1.

    Attributes:
      update: What training added: the chosen channels of gated layers, and all other parameters.
      channels: By gated layer: ``bool[outputs]``: the chosen channels.
    """

    update: Masked
    channels: dict[str, jax.Array]


def adp(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 1,
    batch_size: int = 10,
    ratio: PositiveShare = 0.7,
    saliency: Literal["mean", "sigmoid"] | None = None,
    gate_bias: float = 1.0,
    l1: Decay = 0.0,
    federation: Federation = "fedavg",
    threshold: Decay = 0.0,
    upload_share: PositiveShare = 1.0,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """ADP.

    Args:
      model: The net that gets the gates; one with convolutions.
      optimizer: The clients' optimiser, fresh in every round.
      epochs: Local epochs per round; 10 as published.
      batch_size: Examples per local step; 64 as published.
      ratio: Share of channels that are active in an example, in (0, 1].
      saliency: What a gate sees of an input channel: its ``mean``, or the ``sigmoid`` of that; by
        default, and as published, the mean in residual networks and the sigmoid in others.
      gate_bias: Where the gates' biases start. The published ResNet starts from 0, against its own
        gate's 1.
      l1: Factor of the sum of all gates of an example in the loss; 1e-8 to 1e-5 in the gates'
        own paper, 0 as published.
      federation: What combines the clients; ``fedprox`` with mu = 0.01. For other options, give
        :func:`fedjax_masks.models.gated` models to these algorithms themselves.
      threshold: After each local epoch, weights of convolutions up to this magnitude are set to zero;
        1e-3 in the published variant that does, under FedAvg.
      upload_share: Share of each gated layer's channels that a client uploads, those most often
        active in its training; the server averages each over those who sent it. Below 1 only with
        FedAvg.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. It has a global model and no personal ones.

    Raises:
      ValueError: An option is out of range or does not fit the federation, or the model has no
        convolution.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10, partition="dirichlet:0.5")
      >>> algorithm = fm.adp(fm.models.cnn(task), optax.sgd(0.1), ratio=0.5, federation="scaffold")
      >>> run = fm.simulate(algorithm, task, rounds=1, cohort=2)
      >>> run.records[-1]["round"]
      1
    """
    if federation not in get_args(Federation):
        raise ValueError(f"federation={federation}: accepted are {', '.join(get_args(Federation))}")
    if not 0 < upload_share <= 1:
        raise ValueError(f"upload_share={upload_share}: accepted is above 0 and at most 1")
    if upload_share < 1 and federation != "fedavg":
        raise ValueError(f"upload_share={upload_share}: {federation} uploads everything; accepted is 1")
    net = gated(model, ratio=ratio, saliency=saliency, bias=gate_bias)

    def loss(params: Params, batch: training.Batch) -> tuple[jax.Array, Activity]:
        logits, gates = net.forward(params, batch.inputs)
        value = training.mean_cross_entropy(logits, batch)
        if l1:
            value += l1 * training.mean_over_real(_sum_of_gates(gates), batch.real)
        return value, count_active(gates, batch.real)

    def cut(params: Params) -> Params:
        for kernel in model.kernels:
            if kernel.kind == "conv":
                weights = trees.get(params, kernel.path)
                params = trees.put(params, kernel.path, jnp.where(jnp.abs(weights) > threshold, weights, 0))
        return params

    choices = {
        "optimizer": optimizer,
        "epochs": epochs,
        "batch_size": batch_size,
        "augment": augment,
        "after_epoch": cut if threshold else None,
    }
    if upload_share < 1:
        return salient(net, partial(training.train_with_sums, loss=loss, **choices), upload_share)
    fit = partial(training.train, loss=lambda params, batch: loss(params, batch)[0], **choices)
    return {
        "fedavg": averaging(net, fit),
        "fedprox": averaging(net, partial(fit, proximal=_MU)),
        "fednova": normalized(averaging(net, fit), optimizer),
        "scaffold": controlled(net, fit, optimizer),
    }[federation]


def _sum_of_gates(gates: Mapping[str, Gate]) -> jax.Array:
    """``float32[batch]``: the sum over all layers and channels."""
    return sum((jnp.sum(gate.value, -1) for gate in gates.values()), jnp.zeros(()))


def salient(net: Model, fit: Any, share: float) -> FederatedAlgorithm:
    """FedAvg in which clients upload only the channels that matter for their own data.

    Args:
      net: A gated model.
      fit: ``(key, params, data) -> (params, metrics, activity)``: how one client trains, and in how
        many examples each channel was active.
      share: Share of each gated layer's channels that is uploaded, in (0, 1].
    """
    average = averaging(net, lambda *args: fit(*args)[:2])
    layers = {kernel.name: kernel for kernel in net.kernels if kernel.gate is not None}
    count = {name: max(1, round(share * kernel.outputs)) for name, kernel in layers.items()}

    def parts(kernel: Kernel) -> list[tuple[str, ...]]:
        gate = kernel.gate or ()
        paths = (kernel.path, kernel.bias, *kernel.norm_paths, (*gate, "kernel"), (*gate, "bias"))
        return [path for path in paths if path]

    def train(
        key: chex.PRNGKey, common: Any, message: Params, client: Any, data: ClientData
    ) -> tuple[Any, Upload, Metrics]:
        del common
        params, metrics, activity = fit(key, message, data)
        channels = {name: top_count(activity[name], count[name]) for name in layers}
        # The server derives the mask from the channels, which the upload carries.
        update = Masked(trees.sub(params, message), filter_mask(net.kernels, params, channels, parts))
        return client, Upload(update, channels), metrics._asdict()

    def merge(key: chex.PRNGKey, common: Any, server: Server, uploads: Upload, cohort: Cohort) -> Server:
        zeros = trees.zeros_like(server.params)
        update = masked_mean(*uploads.update, cohort.weight, default=zeros)
        anyone = jnp.any(cohort.weight > 0).astype(jnp.float32)
        return average.merge(key, common, server, WeightedSum(update, anyone), cohort)

    return average._replace(train=train, merge=merge, reduce=None)
