"""LGL: split training on local losses; a head of the device's own takes the place of the gradient.

Han, Bhatti, Lee, Moon, "Accelerating federated learning with split learning on locally generated
losses", ICML Workshop on Federated Learning 2021; the form that Wu et al. 2024, arXiv 2304.05495,
compare with. A device trains its half under a dense layer on the flattened activations, and sends
activations and labels. The server trains its half on them, and sends nothing back within the round. The
device's half and head travel at its beginning and end.
"""

from collections.abc import Callable
from typing import Unpack

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_masks.algorithms.splitfed import LABEL, Protocol, Sides, server_loss, split_training
from fedjax_masks.core.algorithm import FederatedAlgorithm
from fedjax_masks.core.minibatches import Batch
from fedjax_masks.core.training import LocalTraining, TrainingOptions, as_trainer, mean_cross_entropy
from fedjax_masks.core.types import Params
from fedjax_masks.models import Halves, Model, cut_model
from fedjax_masks.models.layers import flatten

HEAD = "head"


def lgl(
    model: Model, trainer: LocalTraining, *, split: str | None = None, **training: Unpack[TrainingOptions]
) -> FederatedAlgorithm:
    """Split training on locally generated losses.

    Args:
      model: The model, to be cut in two.
      trainer: Training of devices, with their heads, and of the server's copies; or its optimizer.
      split: The device's last stage, see :func:`fedjax_masks.models.cut_model`.
      **training: Fields of the trainer.

    Returns:
      The algorithm. Its global model is the device's half and the server's, without the head.

    Raises:
      UserError: The model cannot be cut there.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="shards:2")
      >>> algorithm = fm.lgl(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1), split="dense1")
      >>> record = fm.simulate(algorithm, task, rounds=1, cohort=3).records[-1]
      >>> record["bytes_down"]  # three times a layer of 1,040 and a head of 170 parameters
      14520
    """
    halves = cut_model(model, split)
    on_server = server_loss(halves)

    def device_loss(device: Params, batch: Batch) -> jax.Array:
        return mean_cross_entropy(head_logits(halves, device, batch.inputs), batch)

    def loss(sides: Sides, batch: Batch, key: chex.PRNGKey) -> jax.Array:
        del key
        activations = jax.lax.stop_gradient(halves.activate(sides.device, batch.inputs))
        return device_loss(sides.device, batch) + on_server(sides.server, activations, batch)

    protocol = Protocol(
        loss,
        on_device=jax.grad(device_loss),
        on_server=jax.grad(on_server),
        up=lambda activation, logits: (activation, LABEL),
        down=lambda activation, logits: (),
        messages=1,
    )
    grow = head_adder(model, halves)
    return split_training(model, as_trainer(trainer, training), halves=halves, protocol=protocol, grow=grow)


def head_logits(halves: Halves, device: Params, inputs: jax.Array) -> jax.Array:
    """The logits of the device's head, ``[batch, num_classes]``."""
    head = device[HEAD]
    return flatten(halves.activate(device, inputs)) @ head["kernel"] + head["bias"]


def head_adder(model: Model, halves: Halves) -> Callable[[chex.PRNGKey, Params], Params]:
    """A function that adds a head to a device's parameters: ``(key, params) -> params``."""

    def grow(key: chex.PRNGKey, device: Params) -> Params:
        images = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
        inputs = jax.eval_shape(lambda x: flatten(halves.activate(device, x)), images).shape[1]
        kernel = nn.initializers.lecun_normal()(key, (inputs, model.kernels[-1].outputs), jnp.float32)
        return {**device, HEAD: {"kernel": kernel, "bias": jnp.zeros(kernel.shape[1], jnp.float32)}}

    return grow
