"""FedSGD: one gradient per client and round, of all its data.

McMahan et al. 2017, arXiv 1602.05629, section 2. The server steps along the mean of the gradients,
weighted by the clients' numbers of examples: a step of centralised gradient descent on the data of the
whole cohort. The optimizer is the server's, and its state lives on from round to round.
"""

from dataclasses import replace
from typing import Unpack

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.algorithms.fedavg import averaging
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.minibatches import Batch
from fedjax_masks.core.training import LocalTraining, Trainer, TrainingOptions, as_trainer, cross_entropy
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Model


def fedsgd(model: Model, trainer: LocalTraining, **training: Unpack[TrainingOptions]) -> FederatedAlgorithm:
    """Federated SGD.

    Args:
      model: The model that all clients share.
      trainer: The server's optimizer, applied to the mean gradient, or a trainer with it. Its schedule and
        its clipping act on the mean gradient, too. Gradients of minibatches are added up:
        their size decides memory and speed, and the result only under batch normalization.
      **training: Fields of the trainer; ``epochs`` is 1, as a client takes one gradient and no step.

    Returns:
      The algorithm. It has a global model and no personal ones; ``steps`` counts the batches.

    Raises:
      UserError: ``epochs`` is not 1.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="iid")
      >>> algorithm = fm.fedsgd(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.3))
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["round"]
      2
    """
    trainer = as_trainer(trainer, training)
    if trainer.epochs != 1:
        raise UserError(f"epochs={trainer.epochs}: must be 1, fedsgd takes one gradient of all data")
    still = replace(trainer, optimizer=optax.set_to_zero(), schedule=None, clip_norm=None)
    mean_loss = cross_entropy(model.apply)

    def loss(params: Params, batch: Batch, key: chex.PRNGKey) -> tuple[jax.Array, Params]:
        # Constant for the training loop, which moves nothing: it only sums the second result.
        value, gradient = jax.value_and_grad(mean_loss)(jax.lax.stop_gradient(params), batch, key)
        return value, trees.scale(gradient, jnp.sum(batch.real))

    def train(round: Round, message: Params, client: PyTree, data: ClientData) -> tuple[PyTree, Params, Info]:
        _, info, total = still.summing(round, message, data, loss)
        # An update, as the server expects one: against the gradient.
        return client, trees.scale(total, -1 / jnp.maximum(data.size, 1)), info

    average = averaging(model, trainer.supervised(model.apply), server_optimizer=_server_step(trainer))
    return average._replace(train=train)


def _server_step(trainer: Trainer) -> optax.GradientTransformation:
    links = [] if trainer.clip_norm is None else [optax.clip_by_global_norm(trainer.clip_norm)]
    links.append(trainer.optimizer)
    if trainer.schedule is not None:
        links.append(optax.scale_by_schedule(trainer.schedule))
    return links[0] if len(links) == 1 else optax.chain(*links)
