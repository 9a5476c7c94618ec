"""FedNova: normalized averaging for clients that take different numbers of steps.

Wang, Liu, Liang, Joshi, Poor: "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020, arXiv 2007.07481. A client divides its update by ``|a|``, the total weight of the
gradients in it, which grows with its number of steps (and with momentum, section 4). The server multiplies
the mean of these normalized updates by the mean of the ``|a|`` (eq. 6). Where all clients take equally many
steps, this is FedAvg.

We take ``|a|`` from the optimizer itself, with the learning rate as a factor, which cancels. A model's
parameters are its whole state here, so statistics of batch normalization are never normalized.
"""

from typing import NamedTuple, Unpack

import jax
import optax

from fedjax_masks.algorithms.fedavg import Server, averaging
from fedjax_masks.core import trees
from fedjax_masks.core.aggregation import WeightedSum
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round
from fedjax_masks.core.training import LocalTraining, Trainer, TrainingOptions, as_trainer
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Model


class Upload(NamedTuple):
    """A client's upload.

    Attributes:
      direction: Like the parameters: the client's update divided by ``length``.
      length: ``float32[]``: the path of the client's optimizer, learning rate times ``|a|``; see
        :func:`fedjax_masks.core.optimizers.unit_path`.
    """

    direction: Params
    length: jax.Array


def fednova(
    model: Model,
    trainer: LocalTraining,
    *,
    server_optimizer: optax.GradientTransformation | None = None,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """FedNova.

    Args:
      model: The model that all clients train.
      trainer: Local training, or its optimizer: SGD with any momentum, schedule and weight decay. With an
        adaptive optimizer, updates are divided as if all gradients were equal, for most optimizers by the
        number of steps.
      server_optimizer: Applied to the negative update; None takes the update itself.
      **training: Fields of the trainer.

    Returns:
      The algorithm. It has a global model and no personal ones.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="dirichlet:0.5")
      >>> algorithm = fm.fednova(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1, momentum=0.9))
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["round"]
      2
    """
    trainer = as_trainer(trainer, training)
    average = averaging(model, trainer.supervised(model.apply), server_optimizer=server_optimizer)
    return normalized(average, trainer)


def normalized(average: FederatedAlgorithm, trainer: Trainer) -> FederatedAlgorithm:
    """FedNova's normalization around a relative of FedAvg.

    Args:
      average: An algorithm of :func:`fedjax_masks.algorithms.fedavg.averaging`.
      trainer: The training of its clients.
    """

    def train(round: Round, message: Params, client: PyTree, data: ClientData) -> tuple[PyTree, Upload, Info]:
        client, update, info = average.train(round, message, client, data)
        length = trainer.path(round, data)
        return client, Upload(trees.scale(update, 1 / length), length), info

    def merge(round: Round, server: Server, total: WeightedSum) -> tuple[Server, Info | None]:
        direction, length = total.total
        update = trees.scale(direction, length / total.weight)
        return average.merge(round, server, WeightedSum(update, total.weight))

    return average._replace(train=train, merge=merge)
