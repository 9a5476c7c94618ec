"""LG-FedAvg: every client sees in its own way, all judge alike.

Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency: "Think Locally, Act Globally: Federated
Learning with Local and Global Representations", 2020, arXiv 2001.01523. A client trains its whole model;
the first layers, its representation, never leave it, and the head behind them is FedAvg's.

A client's model is its own representation under the newest head. For data of unknown origin the paper
asks all clients; there is no global model here. The authors start from some rounds of FedAvg, we from the
common initial parameters, or from whatever the model was pre-trained to.
"""

from collections.abc import Sequence
from typing import Unpack

import chex
import jax
import optax

from fedjax_masks.algorithms.fedavg import Server, averaging
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, State, Task
from fedjax_masks.core.errors import unknown_name
from fedjax_masks.core.training import LocalTraining, TrainingOptions, as_trainer
from fedjax_masks.core.types import Params
from fedjax_masks.models import Model


def lgfedavg(
    model: Model,
    trainer: LocalTraining,
    *,
    shared: Sequence[str] | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """LG-FedAvg.

    Args:
      model: The architecture, and where all clients start.
      trainer: Local training of all layers, or its optimizer.
      shared: The stages that are averaged, by name (``["dense1", "dense2"]``); None is the last two,
        or the last of a model with two. The others stay with the client.
      server_optimizer: Applied to the negative mean update of what is shared; None takes the mean.
      **training: Fields of the trainer.

    Returns:
      The algorithm. Its clients' states are their local layers; there is no global model.

    Raises:
      UserError: There is no such stage, or none is shared.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="shards:2")
      >>> algorithm = fm.lgfedavg(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1), shared=("dense2",))
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["bytes_up"]  # of three clients, (16 + 1) * 10 floats each
      2040
    """
    stages = tuple(jax.eval_shape(model.init, jax.random.key(0)))
    ordered = (*model.splits, *(name for name in stages if name not in model.splits))
    chosen = ordered[1:][-2:] if shared is None else tuple(shared)
    for name in chosen or ("",):
        if name not in stages:
            raise unknown_name("shared", name, ordered)

    def head(params: Params) -> Params:
        return {name: stage for name, stage in params.items() if name in chosen}

    def representation(params: Params) -> Params:
        return {name: stage for name, stage in params.items() if name not in chosen}

    fit = as_trainer(trainer, training).supervised(model.apply)
    average = averaging(
        model._replace(init=lambda key: head(model.init(key))), fit, server_optimizer=server_optimizer
    )

    def init(key: chex.PRNGKey, task: Task) -> State:
        clients = trees.replicate(representation(model.init(key)), task.num_clients)
        return average.init(key, task)._replace(clients=clients)

    def train(round: Round, message: Params, client: Params, data: ClientData) -> tuple[Params, Params, Info]:
        params, info = fit(round, client | message, data)
        return representation(params), trees.sub(head(params), message), info

    def predict(server: Server, client: Params, x: jax.Array) -> jax.Array:
        return model.apply(client | server.params, x)

    return average._replace(init=init, train=train, predict={"personal": predict})
