"""FedNova: clients that take more steps do not pull harder.

Wang, Liu, Liang, Joshi, Poor: "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020, arXiv 2007.07481. A client's update is divided by the weight ``|a|`` of the
gradients in it, which grows with its number of steps (and with momentum, section 4); the server
multiplies the mean of these normalised updates by the mean of the ``|a|`` (eq. 6). Where all
clients take equally many steps, this is FedAvg.

``|a|`` comes from the optimiser itself, learning rate included, which cancels. Model parameters are
the whole state here, so no statistics of batch normalisation are ever normalised.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.algorithms.fedavg import fedavg
from fedjax_masks.core import training, trees
from fedjax_masks.core.aggregation import WeightedSum
from fedjax_masks.core.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, Params
from fedjax_masks.models import Model


class Upload(NamedTuple):
    """What a client sends.

    Attributes:
      direction: Like the parameters: its update divided by ``length``.
      length: ``float32[]``: the path of its optimiser, learning rate times ``|a|``; see
        :func:`fedjax_masks.core.training.unit_path`.
    """

    direction: Params
    length: jax.Array


def fednova(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 1,
    batch_size: int = 10,
    server_optimizer: optax.GradientTransformation | None = None,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """FedNova.

    Args:
      model: The model that all clients train.
      optimizer: The clients' optimiser, fresh in every round: SGD with any momentum, schedule and
        weight decay. With an adaptive one, updates are divided as if all gradients were equal,
        for most of them by the number of steps.
      epochs: Local epochs per round.
      batch_size: Examples per local step.
      server_optimizer: Applied to the negative update; None takes the update itself.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. It has a global model and no personal ones.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10, partition="dirichlet:0.5")
      >>> algorithm = fm.fednova(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1, momentum=0.9))
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["round"]
      2
    """
    average = fedavg(
        model,
        optimizer,
        epochs=epochs,
        batch_size=batch_size,
        server_optimizer=server_optimizer,
        augment=augment,
    )
    return normalized(average, optimizer)


def normalized(average: FederatedAlgorithm, optimizer: optax.GradientTransformation) -> FederatedAlgorithm:
    """FedNova's normalisation around a relative of FedAvg.

    Args:
      average: An algorithm of :func:`fedjax_masks.algorithms.fedavg.averaging`.
      optimizer: The optimiser that its clients use.
    """

    def train(
        key: chex.PRNGKey, common: Any, message: Params, client: Any, data: ClientData
    ) -> tuple[Any, Upload, Metrics]:
        client, update, metrics = average.train(key, common, message, client, data)
        length = training.unit_path(optimizer, metrics["steps"])
        return client, Upload(trees.scale(update, 1 / length), length), metrics

    def merge(key: chex.PRNGKey, common: Any, server: Any, uploads: WeightedSum, cohort: Cohort) -> Any:
        direction, length = uploads.total
        mean_length = length / jnp.where(uploads.weight > 0, uploads.weight, 1)
        update = WeightedSum(trees.scale(direction, mean_length), uploads.weight)
        return average.merge(key, common, server, update, cohort)

    return average._replace(train=train, merge=merge)
