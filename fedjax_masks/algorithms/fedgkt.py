"""FedGKT, as EcoFed compares with it: split training on local losses, with distillation both ways.

He, Annavaram, Avestimehr 2020, arXiv 2007.14513, in the variant of Wu et al. 2024, arXiv 2304.05495,
in which devices' halves are aggregated, too. For every batch a device sends activations, labels and
the logits of its own head. The server trains its half towards the labels and these logits, and sends back
its own logits, towards which the device trains. A step costs the device one forward pass for what it sends,
and a training step once the answer is there: our reading of the authors' count of four forward passes.
"""

from typing import Unpack

import chex
import jax
import optax

from fedjax_masks.algorithms.lgl import head_adder, head_logits
from fedjax_masks.algorithms.splitfed import LABEL, Protocol, Sides, split_training
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import FederatedAlgorithm
from fedjax_masks.core.minibatches import Batch
from fedjax_masks.core.options import Decay, Rate, checks_options
from fedjax_masks.core.training import (
    LocalTraining,
    TrainingOptions,
    as_trainer,
    mean_cross_entropy,
    mean_over_real,
)
from fedjax_masks.core.types import Params
from fedjax_masks.models import Model, cut_model


@checks_options
def fedgkt(
    model: Model,
    trainer: LocalTraining,
    *,
    split: str | None = None,
    temperature: Rate = 3.0,
    alpha: Decay = 1.0,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """Group knowledge transfer, with aggregated devices.

    Args:
      model: The model, to be cut in two.
      trainer: Training of devices and of the server's copies, or its optimizer.
      split: The device's last stage, see :func:`fedjax_masks.models.cut_model`.
      temperature: The temperature of both softmaxes in the distillation.
      alpha: Weight of the distillation beside the cross-entropy.
      **training: Fields of the trainer.

    Returns:
      The algorithm. Its global model is the device's half and the server's, without the head.

    Raises:
      UserError: The model cannot be cut there, or an option is out of range.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4)
      >>> algorithm = fm.fedgkt(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1), split="dense1")
      >>> fm.simulate(algorithm, task, rounds=1, cohort=3).records[-1]["round"]
      1
    """
    halves = cut_model(model, split)

    def distilled_loss(logits: jax.Array, teacher: jax.Array, batch: Batch) -> jax.Array:
        distance = distillation(logits, jax.lax.stop_gradient(teacher), temperature)
        return mean_cross_entropy(logits, batch) + alpha * mean_over_real(distance, batch.real)

    def device_loss(device: Params, batch: Batch, teacher: jax.Array) -> jax.Array:
        return distilled_loss(head_logits(halves, device, batch.inputs), teacher, batch)

    def server_loss(server: Params, activations: jax.Array, batch: Batch, teacher: jax.Array) -> jax.Array:
        return distilled_loss(halves.finish(server, activations), teacher, batch)

    def loss(sides: Sides, batch: Batch, key: chex.PRNGKey) -> jax.Array:
        del key
        activations = jax.lax.stop_gradient(halves.activate(sides.device, batch.inputs))
        device = head_logits(halves, sides.device, batch.inputs)
        server = halves.finish(sides.server, activations)
        return distilled_loss(device, server, batch) + distilled_loss(server, device, batch)

    def on_device(device: Params, batch: Batch) -> tuple[jax.Array, Params]:
        logits = head_logits(halves, device, batch.inputs)
        return logits, jax.grad(device_loss)(device, batch, logits)

    def on_server(server: Params, activations: jax.Array, batch: Batch) -> Params:
        logits = jax.eval_shape(halves.finish, server, activations)
        return jax.grad(server_loss)(server, activations, batch, trees.zeros_like(logits))

    protocol = Protocol(
        loss,
        on_device,
        on_server,
        up=lambda activation, logits: (activation, LABEL, logits),
        down=lambda activation, logits: logits,
        messages=2,
    )
    grow = head_adder(model, halves)
    return split_training(model, as_trainer(trainer, training), halves=halves, protocol=protocol, grow=grow)


def distillation(logits: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """``T**2 KL(teacher || student)`` of softened softmaxes, per example (Hinton et al. 2015).

    >>> import jax.numpy as jnp
    >>> distillation(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 2.0]]), 3.0).tolist()
    [0.0]
    """
    targets = jax.nn.log_softmax(teacher / temperature)
    predictions = jax.nn.log_softmax(logits / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(predictions, targets)
