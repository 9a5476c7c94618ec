"""Local training alone: every client for itself, nothing exchanged.

The yardstick of every personalised method: the accuracy that a device reaches on its own data.
"""

from typing import Any, Unpack

import chex
import jax

from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, State, Task
from fedjax_masks.core.training import LocalTraining, TrainingOptions, as_trainer
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Model


def local(model: Model, trainer: LocalTraining, **training: Unpack[TrainingOptions]) -> FederatedAlgorithm:
    """Local training without federation.

    Args:
      model: The model that every client trains on its own, all from the same start.
      trainer: Local training, or its optimizer.
      **training: Fields of the trainer.

    Returns:
      The algorithm. Clients' states are their parameters; there is no global model, and messages and uploads
      are empty.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4)
      >>> run = fm.simulate(
      ...     fm.local(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1)), task, rounds=1, cohort=3
      ... )
      >>> run.records[-1]["bytes_up"]
      0
    """
    fit = as_trainer(trainer, training).supervised(model.apply)

    def init(key: chex.PRNGKey, task: Task) -> State:
        return State(server=(), clients=trees.replicate(model.init(key), task.num_clients))

    def send(round: Round, server: PyTree, profile: PyTree) -> tuple[()]:
        del round, server, profile
        return ()

    def train(round: Round, message: PyTree, client: Params, data: ClientData) -> tuple[Params, Any, Info]:
        del message
        params, info = fit(round, client, data)
        return params, (), info

    def receive(
        round: Round, server: PyTree, profile: PyTree, upload: PyTree, weight: jax.Array
    ) -> tuple[PyTree, PyTree]:
        del round, server, upload, weight
        return profile, ()

    def merge(round: Round, server: PyTree, total: PyTree) -> tuple[PyTree, None]:
        del round, total
        return server, None

    def predict(server: PyTree, client: Params, x: jax.Array) -> jax.Array:
        del server
        return model.apply(client, x)

    return FederatedAlgorithm(init, send, train, receive, merge, {"personal": predict})
