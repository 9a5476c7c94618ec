"""FedAvg: a weighted mean of locally trained models.

McMahan et al. 2017, arXiv 1602.05629, algorithm 1. With a server optimiser, the mean update
serves as a pseudo-gradient: FedAdam, FedYogi, FedAdagrad (Reddi et al. 2021, arXiv
2003.00295, algorithm 2). Clients upload their update instead of their parameters, which
costs the same and composes with compression.
"""

from typing import Any, NamedTuple

import chex
import jax
import optax

from fedjax_masks.core import training, trees
from fedjax_masks.core.aggregation import WeightedSum, weighted, weighted_mean
from fedjax_masks.core.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, Params, State, Task
from fedjax_masks.models import Model


class Server(NamedTuple):
    """The server's state.

    Attributes:
      params: The global model.
      opt_state: The server optimiser's state.
    """

    params: Params
    opt_state: optax.OptState


def fedavg(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 1,
    batch_size: int = 10,
    server_optimizer: optax.GradientTransformation | None = None,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """Federated averaging.

    Args:
      model: The model that all clients train.
      optimizer: The clients' optimiser, fresh in every round.
      epochs: Local epochs per round.
      batch_size: Examples per local step.
      server_optimizer: Applied to the negative mean update; None takes the mean itself.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. It has a global model and no personal ones.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10, partition="iid")
      >>> algorithm = fm.fedavg(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1))
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["round"]
      2
    """
    fit = training.supervised(model.apply, optimizer, epochs=epochs, batch_size=batch_size, augment=augment)
    return averaging(model, fit, server_optimizer=server_optimizer)


def averaging(
    model: Model, fit: training.Fit, *, server_optimizer: optax.GradientTransformation | None = None
) -> FederatedAlgorithm:
    """Federated averaging of whatever the clients train: what FedAvg's relatives are variants of.

    Args:
      model: The model that all clients train.
      fit: How one client trains.
      server_optimizer: Applied to the negative mean update; None takes the mean itself.

    Returns:
      The algorithm; its server's state is a :class:`Server`, its messages are parameters and its
      uploads updates of them.
    """
    server_step = optax.sgd(1.0) if server_optimizer is None else server_optimizer

    def init(key: chex.PRNGKey, task: Task) -> State:
        del task
        params = model.init(key)
        return State(common=(), server=Server(params, server_step.init(params)), clients=())

    def send(server: Server, client_id: jax.Array) -> Params:
        del client_id
        return server.params

    def train(
        key: chex.PRNGKey, common: Any, message: Params, client: Any, data: ClientData
    ) -> tuple[Any, Params, Metrics]:
        del common
        params, metrics = fit(key, message, data)
        return client, trees.sub(params, message), metrics._asdict()

    def merge(key: chex.PRNGKey, common: Any, server: Server, uploads: WeightedSum, cohort: Cohort) -> Server:
        del key, common, cohort
        mean = weighted_mean(uploads, default=trees.zeros_like(server.params))
        updates, opt_state = server_step.update(trees.scale(mean, -1.0), server.opt_state, server.params)
        new = Server(optax.apply_updates(server.params, updates), opt_state)
        # Nobody's update is not an update of 0: momentum must not move the model.
        return trees.where(uploads.weight > 0, new, server)

    def predict_global(common: Any, server: Server, x: jax.Array) -> jax.Array:
        del common
        return model.apply(server.params, x)

    return FederatedAlgorithm(init, send, train, merge, reduce=weighted, predict_global=predict_global)
