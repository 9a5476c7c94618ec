"""Standalone ("local") training: every client alone, nothing exchanged.

The yardstick of every personalised method: what a device reaches on its own data.
"""

from typing import Any

import chex
import jax
import optax

from fedjax_masks.core import training, trees
from fedjax_masks.core.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, Params, State, Task
from fedjax_masks.models import Model


def local(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 1,
    batch_size: int = 10,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """Standalone training.

    Args:
      model: The model that every client trains on its own, all from the same start.
      optimizer: The clients' optimiser, fresh in every round.
      epochs: Local epochs per round.
      batch_size: Examples per local step.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. Clients' states are their parameters; there is no global model, and
      messages and uploads are empty.
    """
    fit = training.supervised(model.apply, optimizer, epochs=epochs, batch_size=batch_size, augment=augment)

    def init(key: chex.PRNGKey, task: Task) -> State:
        return State(common=(), server=(), clients=trees.replicate(model.init(key), task.num_clients))

    def send(server: Any, client_id: jax.Array) -> Any:
        del server, client_id
        return ()

    def train(
        key: chex.PRNGKey, common: Any, message: Any, client: Params, data: ClientData
    ) -> tuple[Params, Any, Metrics]:
        del common, message
        params, metrics = fit(key, client, data)
        return params, (), metrics._asdict()

    def merge(key: chex.PRNGKey, common: Any, server: Any, uploads: Any, cohort: Cohort) -> Any:
        del key, common, uploads, cohort
        return server

    def reduce(upload: Any, weight: jax.Array) -> Any:
        del weight
        return upload

    def predict(common: Any, server: Any, client: Params, x: jax.Array) -> jax.Array:
        del common, server
        return model.apply(client, x)

    return FederatedAlgorithm(init, send, train, merge, reduce=reduce, predict=predict)
