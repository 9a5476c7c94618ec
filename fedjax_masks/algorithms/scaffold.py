"""SCAFFOLD: control variates take the drift out of local training.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", ICML 2020, arXiv 1910.06378, algorithm 1 with option II. A client adds ``c - c_i`` to every
gradient, where ``c_i`` is the mean of its own gradients in its last round and ``c`` the mean of all
``c_i``; all start from zero.

Where we differ: both means are weighted by numbers of examples, as the objective is (with equal
clients the paper's), so that ``c`` stays the mean of all ``c_i``. Option II divides a client's
change by ``K * lr``; we divide by the path of the optimiser, the same for plain SGD and the right
number under momentum, too. Model parameters are the whole state here, so no statistics of batch
normalisation are ever controlled.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.algorithms import fedavg
from fedjax_masks.core import training, trees
from fedjax_masks.core.aggregation import WeightedSum
from fedjax_masks.core.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, Params, State, Task
from fedjax_masks.models import Model


class Server(NamedTuple):
    """The server's state. A client's state is its own control variate, like the parameters.

    Attributes:
      average: FedAvg's.
      control: Like the parameters: the mean of the clients' control variates.
      examples: ``float32[]``: training examples of all clients.
    """

    average: fedavg.Server
    control: Params
    examples: jax.Array


class Message(NamedTuple):
    """What the server sends: the global model and its control variate."""

    params: Params
    control: Params


class Upload(NamedTuple):
    """What a client sends: what its training added to the model, and to its control variate."""

    update: Params
    control: Params


def scaffold(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 1,
    batch_size: int = 10,
    server_optimizer: optax.GradientTransformation | None = None,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """SCAFFOLD.

    Args:
      model: The model that all clients train.
      optimizer: The clients' optimiser, fresh in every round: SGD with any momentum and schedule. With
        an adaptive one, control variates are not means of gradients.
      epochs: Local epochs per round.
      batch_size: Examples per local step.
      server_optimizer: Applied to the negative mean update; None takes the mean itself, and
        ``optax.sgd(lr)`` is the paper's global step size.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. It has a global model and no personal ones; every client's state is as large as
      the model.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10, partition="shards:2")
      >>> algorithm = fm.scaffold(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1))
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["round"]
      2
    """
    fit = training.supervised(model.apply, optimizer, epochs=epochs, batch_size=batch_size, augment=augment)
    return controlled(model, fit, optimizer, server_optimizer=server_optimizer)


def controlled(
    model: Model,
    fit: training.Fit,
    optimizer: optax.GradientTransformation,
    *,
    server_optimizer: optax.GradientTransformation | None = None,
) -> FederatedAlgorithm:
    """SCAFFOLD of whatever the clients train.

    Args:
      model: The model that all clients train.
      fit: How one client trains.
      optimizer: The optimiser that ``fit`` uses.
      server_optimizer: Applied to the negative mean update; None takes the mean itself.
    """
    average = fedavg.averaging(model, fit, server_optimizer=server_optimizer)

    def init(key: chex.PRNGKey, task: Task) -> State:
        server = average.init(key, task).server
        zeros = trees.zeros_like(server.params)
        examples = jnp.asarray(task.train.sizes.sum(), jnp.float32)
        return State((), Server(server, zeros, examples), trees.replicate(zeros, task.num_clients))

    def send(server: Server, client_id: jax.Array) -> Message:
        del client_id
        return Message(server.average.params, server.control)

    def train(
        key: chex.PRNGKey, common: Any, message: Message, client: Params, data: ClientData
    ) -> tuple[Params, Upload, Metrics]:
        del common
        params, metrics = fit(key, message.params, data, correction=trees.sub(message.control, client))
        update = trees.sub(params, message.params)
        # Option II: c_i <- c_i - c + (x - y_i) / (K lr).
        mean_gradient = trees.scale(update, -1 / training.unit_path(optimizer, metrics.steps))
        change = trees.sub(mean_gradient, message.control)
        return trees.add(client, change), Upload(update, change), metrics._asdict()

    def merge(key: chex.PRNGKey, common: Any, server: Server, uploads: WeightedSum, cohort: Cohort) -> Server:
        (update, change), weight = uploads
        new = average.merge(key, common, server.average, WeightedSum(update, weight), cohort)
        control = trees.add(server.control, trees.scale(change, 1 / server.examples))
        return Server(new, control, server.examples)

    def predict_global(common: Any, server: Server, x: jax.Array) -> jax.Array:
        del common
        return model.apply(server.average.params, x)

    return average._replace(init=init, send=send, train=train, merge=merge, predict_global=predict_global)
