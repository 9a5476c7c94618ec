"""LGL: split training on local losses; a head of the device's own takes the place of the gradient.

Han, Bhatti, Lee, Moon, "Accelerating federated learning with split learning on locally generated
losses", ICML Workshop on Federated Learning 2021; the form that Wu et al. 2024, arXiv 2304.05495,
compare with. A device trains its half under a dense layer on the flattened activations and sends
activations and labels; the server trains its half on them, and nothing comes back within the round. Half
and head travel at its beginning and end.
"""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.algorithms.splitfed import LABEL, Protocol, Sides, split_training
from fedjax_masks.core import training
from fedjax_masks.core.algorithm import FederatedAlgorithm, Params
from fedjax_masks.models import Halves, Model, cut_model
from fedjax_masks.models.layers import flatten

HEAD = "head"


def lgl(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 1,
    batch_size: int = 10,
    split: str | None = None,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """Split training on locally generated losses.

    Args:
      model: The model, to be cut in two.
      optimizer: Of devices and of the server's copies, fresh in every round.
      epochs: Local epochs per round.
      batch_size: Examples per step.
      split: The device's last stage, see :func:`fedjax_masks.models.cut_model`.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. Its global model is the device's half and the server's, without the head.

    Raises:
      UserError: The model cannot be cut there.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10)
      >>> algorithm = fm.lgl(fm.models.cnn(task), optax.sgd(0.1), split="conv1")
      >>> record = fm.simulate(algorithm, task, rounds=1, cohort=3).records[-1]
      >>> record["bytes_down"]  # three times a convolution of 320 and a head of 5,130 parameters
      65400
    """
    halves = cut_model(model, split)

    def own_loss(device: Params, batch: training.Batch) -> jax.Array:
        return training.mean_cross_entropy(own_logits(halves, device, batch.inputs), batch)

    def server_loss(server: Params, activations: jax.Array, batch: training.Batch) -> jax.Array:
        return training.mean_cross_entropy(halves.finish(server, activations), batch)

    def loss(sides: Sides, batch: training.Batch) -> jax.Array:
        activations = jax.lax.stop_gradient(halves.activate(sides.device, batch.inputs))
        return own_loss(sides.device, batch) + server_loss(sides.server, activations, batch)

    protocol = Protocol(
        loss,
        on_device=jax.grad(own_loss),
        on_server=jax.grad(server_loss),
        up=lambda activation, logits: (activation, LABEL),
        down=lambda activation, logits: (),
        messages=1,
    )
    return split_training(
        model, halves, optimizer, protocol, epochs, batch_size, augment, head_for(model, halves)
    )


def own_logits(halves: Halves, device: Params, inputs: jax.Array) -> jax.Array:
    """The head's, ``[batch, num_classes]``."""
    head = device[HEAD]
    return flatten(halves.activate(device, inputs)) @ head["kernel"] + head["bias"]


def head_for(model: Model, halves: Halves) -> Any:
    """What adds a head to a device's parameters: ``(key, device's params) -> device's params``."""

    def grow(key: chex.PRNGKey, device: Params) -> Params:
        images = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
        inputs = jax.eval_shape(lambda x: flatten(halves.activate(device, x)), images).shape[1]
        kernel = nn.initializers.lecun_normal()(key, (inputs, model.kernels[-1].outputs), jnp.float32)
        return {**device, HEAD: {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1], jnp.float32)}}

    return grow
