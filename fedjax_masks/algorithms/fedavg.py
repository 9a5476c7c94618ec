"""FedAvg: a weighted mean of locally trained models.

McMahan et al. 2017, arXiv 1602.05629, algorithm 1. With a server optimizer, the mean update serves as a
pseudo-gradient: FedAdam, FedYogi, FedAdagrad (Reddi et al. 2021, arXiv 2003.00295, algorithm 2). Clients
upload their update instead of their parameters, which costs the same and composes with compression.
"""

from typing import NamedTuple, Unpack

import chex
import jax
import optax

from fedjax_masks.core import trees
from fedjax_masks.core.aggregation import WeightedSum, weighted, weighted_mean
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, State, Task
from fedjax_masks.core.training import Fit, LocalTraining, TrainingOptions, as_trainer
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Model


class Server(NamedTuple):
    """The server's state.

    Attributes:
      params: The global model.
      opt_state: The server optimizer's state.
    """

    params: Params
    opt_state: optax.OptState


def fedavg(
    model: Model,
    trainer: LocalTraining,
    *,
    server_optimizer: optax.GradientTransformation | None = None,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """Federated averaging.

    Args:
      model: The model that all clients train.
      trainer: Local training, or its optimizer.
      server_optimizer: Applied to the negative mean update; None takes the mean itself.
      **training: Fields of the trainer.

    Returns:
      The algorithm. It has a global model and no personal ones.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="iid")
      >>> algorithm = fm.fedavg(fm.models.mlp(task, hidden=(16,)), fm.Trainer(optax.sgd(0.1), epochs=2))
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["round"]
      2
    """
    fit = as_trainer(trainer, training).supervised(model.apply)
    return averaging(model, fit, server_optimizer=server_optimizer)


def averaging(
    model: Model, fit: Fit, *, server_optimizer: optax.GradientTransformation | None = None
) -> FederatedAlgorithm:
    """Federated averaging of whatever the clients train: what FedAvg's relatives are variants of.

    Args:
      model: The model that all clients train.
      fit: The training of one client.
      server_optimizer: Applied to the negative mean update; None takes the mean itself.

    Returns:
      The algorithm. Its server's state is a :class:`Server`, its messages are parameters, its uploads are
      updates of them, and its contributions add up to a
      :class:`~fedjax_masks.core.aggregation.WeightedSum` of updates.
    """
    server_step = optax.sgd(1.0) if server_optimizer is None else server_optimizer

    def init(key: chex.PRNGKey, task: Task) -> State:
        del task
        params = model.init(key)
        return State(Server(params, server_step.init(params)))

    def send(round: Round, server: Server, profile: PyTree) -> Params:
        del round, profile
        return server.params

    def train(round: Round, message: Params, client: PyTree, data: ClientData) -> tuple[PyTree, Params, Info]:
        params, info = fit(round, message, data)
        return client, trees.sub(params, message), info

    def receive(
        round: Round, server: Server, profile: PyTree, upload: Params, weight: jax.Array
    ) -> tuple[PyTree, WeightedSum]:
        del round, server
        return profile, weighted(upload, weight)

    def merge(round: Round, server: Server, total: WeightedSum) -> tuple[Server, None]:
        del round
        mean = weighted_mean(total, default=trees.zeros_like(server.params))
        updates, opt_state = server_step.update(trees.scale(mean, -1.0), server.opt_state, server.params)
        return Server(optax.apply_updates(server.params, updates), opt_state), None

    def predict(server: Server, client: PyTree, x: jax.Array) -> jax.Array:
        del client
        return model.apply(server.params, x)

    return FederatedAlgorithm(init, send, train, receive, merge, {"global": predict})
