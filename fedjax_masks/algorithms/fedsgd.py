"""FedSGD: one gradient per client and round, of all its data.

McMahan et al. 2017, arXiv 1602.05629, section 2. The server steps along the mean of the gradients,
weighted by the clients' numbers of examples: a step of centralised gradient descent on the data of the
whole cohort. The optimiser is the server's, and what it remembers lives on.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.algorithms.fedavg import averaging
from fedjax_masks.core import training, trees
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Metrics, Params
from fedjax_masks.core.options import Count
from fedjax_masks.models import Model


def fedsgd(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: Count = 1,
    batch_size: int = 10,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """Federated SGD.

    Args:
      model: The model that all clients share.
      optimizer: The server's optimiser, applied to the mean gradient.
      epochs: 1: a client takes one gradient, and no step of its own.
      batch_size: Examples at a time, of which gradients are added up. It decides memory and speed; the
        result only where the model has batch normalisation.
      augment: ``(key, inputs) -> inputs`` on every such batch.

    Returns:
      The algorithm. It has a global model and no personal ones; ``steps`` counts the batches.

    Raises:
      ValueError: ``epochs`` is not 1.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10, partition="iid")
      >>> algorithm = fm.fedsgd(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.3))
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["round"]
      2
    """
    if epochs != 1:
        raise ValueError(f"epochs={epochs}: fedsgd takes one gradient of all data; accepted is 1")
    mean_loss = training.cross_entropy(model.apply)

    def loss(params: Params, batch: training.Batch) -> tuple[jax.Array, Params]:
        # Constant for the training loop, which moves nothing: it only adds up what comes second.
        value, gradient = jax.value_and_grad(mean_loss)(jax.lax.stop_gradient(params), batch)
        return value, trees.scale(gradient, jnp.sum(batch.real))

    def train(
        key: chex.PRNGKey, common: Any, message: Params, client: Any, data: ClientData
    ) -> tuple[Any, Params, Metrics]:
        del common
        _, metrics, total = training.train_with_sums(
            key,
            message,
            data,
            loss=loss,
            optimizer=optax.set_to_zero(),
            epochs=1,
            batch_size=batch_size,
            augment=augment,
        )
        # An update, as the server expects one: against the gradient.
        return client, trees.scale(total, -1 / jnp.maximum(data.size, 1)), metrics._asdict()

    fit = training.supervised(model.apply, optimizer, epochs=1, batch_size=batch_size, augment=augment)
    return averaging(model, fit, server_optimizer=optimizer)._replace(train=train)
