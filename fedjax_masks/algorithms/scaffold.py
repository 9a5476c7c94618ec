"""SCAFFOLD: control variates take the drift out of local training.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", ICML 2020, arXiv 1910.06378, algorithm 1 with option II. A client adds ``c - c_i`` to every
gradient, where ``c_i`` is the mean of its own gradients in its last round and ``c`` the mean of all
``c_i``; all start from zero.

Where we differ: both means are weighted by numbers of examples, as the objective is (with equal clients the
paper's), so that ``c`` stays the mean of all ``c_i``. Option II divides a client's change by ``K * lr``. We
divide it by the path of the optimizer, which is the same for plain SGD and the right number under momentum,
too. A model's parameters are its whole state here, so statistics of batch normalization are never controlled.
"""

from typing import NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.algorithms import fedavg
from fedjax_masks.core import trees
from fedjax_masks.core.aggregation import WeightedSum
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, State, Task
from fedjax_masks.core.training import Fit, LocalTraining, Trainer, TrainingOptions, as_trainer
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Model


class Server(NamedTuple):
    """The server's state. A client's state is its own control variate, like the parameters.

    Attributes:
      average: FedAvg's.
      control: Like the parameters: the mean of the clients' control variates.
      examples: ``float32[]``: training examples of all clients, which never change.
    """

    average: fedavg.Server
    control: Params
    examples: jax.Array


class Message(NamedTuple):
    """The server's message.

    Attributes:
      params: The global model.
      control: The server's control variate.
    """

    params: Params
    control: Params


class Upload(NamedTuple):
    """A client's upload.

    Attributes:
      update: The client's trained parameters less those that it received.
      control: The change of the client's control variate.
    """

    update: Params
    control: Params


def scaffold(
    model: Model,
    trainer: LocalTraining,
    *,
    server_optimizer: optax.GradientTransformation | None = None,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """SCAFFOLD.

    Args:
      model: The model that all clients train.
      trainer: Local training, or its optimizer: SGD with any momentum and schedule. With an adaptive
        optimizer, control variates are not means of gradients.
      server_optimizer: Applied to the negative mean update; None takes the mean itself, and
        ``optax.sgd(lr)`` is the paper's global step size.
      **training: Fields of the trainer.

    Returns:
      The algorithm. It has a global model and no personal ones; every client's state is as large as
      the model.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="shards:2")
      >>> algorithm = fm.scaffold(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1))
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["bytes_up"]  # three clients' updates and control variates, 1,210 floats each
      29040
    """
    trainer = as_trainer(trainer, training)
    return controlled(model, trainer, trainer.supervised(model.apply), server_optimizer=server_optimizer)


def controlled(
    model: Model, trainer: Trainer, fit: Fit, *, server_optimizer: optax.GradientTransformation | None = None
) -> FederatedAlgorithm:
    """SCAFFOLD's control variates around any training of one client.

    Args:
      model: The model that all clients train.
      trainer: The trainer that ``fit`` uses.
      fit: The training of one client.
      server_optimizer: Applied to the negative mean update; None takes the mean itself.
    """
    average = fedavg.averaging(model, fit, server_optimizer=server_optimizer)

    def init(key: chex.PRNGKey, task: Task) -> State:
        server = average.init(key, task).server
        zeros = trees.zeros_like(server.params)
        examples = jnp.asarray(task.train.sizes.sum(), jnp.float32)
        return State(Server(server, zeros, examples), trees.replicate(zeros, task.num_clients))

    def send(round: Round, server: Server, profile: PyTree) -> Message:
        del round, profile
        return Message(server.average.params, server.control)

    def train(
        round: Round, message: Message, client: Params, data: ClientData
    ) -> tuple[Params, Upload, Info]:
        correction = trees.sub(message.control, client)
        params, info = fit(
            round, message.params, data, gradient=lambda grads, params, start: trees.add(grads, correction)
        )
        update = trees.sub(params, message.params)
        # Option II: c_i <- c_i - c + (x - y_i) / (K lr).
        mean_gradient = trees.scale(update, -1 / trainer.path(round, data))
        change = trees.sub(mean_gradient, message.control)
        return trees.add(client, change), Upload(update, change), info

    def merge(round: Round, server: Server, total: WeightedSum) -> tuple[Server, None]:
        (update, change), weight = total
        new, _ = average.merge(round, server.average, WeightedSum(update, weight))
        control = trees.add(server.control, trees.scale(change, 1 / server.examples))
        return server._replace(average=new, control=control), None

    def predict(server: Server, client: PyTree, x: jax.Array) -> jax.Array:
        del client
        return model.apply(server.average.params, x)

    return average._replace(init=init, send=send, train=train, merge=merge, predict={"global": predict})
