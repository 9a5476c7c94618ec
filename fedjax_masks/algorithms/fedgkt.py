"""FedGKT, as EcoFed compares with it: split training on local losses, with distillation both ways.

He, Annavaram, Avestimehr 2020, arXiv 2007.14513, in the variant of Wu et al. 2024, arXiv 2304.05495,
in which devices' halves are aggregated, too. For every batch a device sends activations, labels and
the logits of its own head; the server trains its half towards labels and these logits, and returns its
own, towards which the device trains. That takes the device a forward pass for what it sends, and a
step once the answer is there: our reading of the authors' count of four forward passes.
"""

import jax
import optax

from fedjax_masks.algorithms.lgl import head_for, own_logits
from fedjax_masks.algorithms.splitfed import LABEL, Protocol, Sides, split_training
from fedjax_masks.core import training, trees
from fedjax_masks.core.algorithm import FederatedAlgorithm, Params
from fedjax_masks.core.options import Decay, Rate
from fedjax_masks.models import Model, cut_model


def fedgkt(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 1,
    batch_size: int = 10,
    split: str | None = None,
    temperature: Rate = 3.0,
    alpha: Decay = 1.0,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """Group knowledge transfer, with aggregated devices.

    Args:
      model: The model, to be cut in two.
      optimizer: Of devices and of the server's copies, fresh in every round.
      epochs: Local epochs per round.
      batch_size: Examples per step.
      split: The device's last stage, see :func:`fedjax_masks.models.cut_model`.
      temperature: Of both softmaxes in the distillation.
      alpha: Weight of the distillation beside the cross-entropy.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. Its global model is the device's half and the server's, without the head.

    Raises:
      UserError: The model cannot be cut there.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10)
      >>> algorithm = fm.fedgkt(fm.models.cnn(task), optax.sgd(0.1), split="conv1")
      >>> fm.simulate(algorithm, task, rounds=1, cohort=3).records[-1]["round"]
      1
    """
    halves = cut_model(model, split)

    def towards(logits: jax.Array, teacher: jax.Array, batch: training.Batch) -> jax.Array:
        distance = distillation(logits, jax.lax.stop_gradient(teacher), temperature)
        return training.mean_cross_entropy(logits, batch) + alpha * training.mean_over_real(
            distance, batch.real
        )

    def own_loss(device: Params, batch: training.Batch, teacher: jax.Array) -> jax.Array:
        return towards(own_logits(halves, device, batch.inputs), teacher, batch)

    def server_loss(
        server: Params, activations: jax.Array, batch: training.Batch, teacher: jax.Array
    ) -> jax.Array:
        return towards(halves.finish(server, activations), teacher, batch)

    def loss(sides: Sides, batch: training.Batch) -> jax.Array:
        activations = jax.lax.stop_gradient(halves.activate(sides.device, batch.inputs))
        own, server = own_logits(halves, sides.device, batch.inputs), halves.finish(sides.server, activations)
        return towards(own, server, batch) + towards(server, own, batch)

    def on_device(device: Params, batch: training.Batch) -> tuple[jax.Array, Params]:
        logits = own_logits(halves, device, batch.inputs)
        return logits, jax.grad(own_loss)(device, batch, logits)

    def on_server(server: Params, activations: jax.Array, batch: training.Batch) -> Params:
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
    return split_training(
        model, halves, optimizer, protocol, epochs, batch_size, augment, head_for(model, halves)
    )


def distillation(logits: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """``T**2 KL(teacher || student)`` of softened softmaxes, per example (Hinton et al. 2015).

    >>> import jax.numpy as jnp
    >>> distillation(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 2.0]]), 3.0).tolist()
    [0.0]
    """
    theirs = jax.nn.log_softmax(teacher / temperature)
    ours = jax.nn.log_softmax(logits / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(ours, theirs)
