"""Searches for masks and training of ``mpfl_sparsity.py``."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import optax
from mpfl_models import BATCH, Filters

import fedjax_masks as fm
from fedjax_masks.data.tasks import index_of
from fedjax_masks.models import Model

SHARE = 0.1  # of the filters is pruned in an iteration


class Trained(NamedTuple):
    """A model after training.

    Attributes:
      params: The parameters.
      accuracy: The accuracy on the test set.
      bytes_total: Bytes that all clients sent and received.
    """

    params: Any
    accuracy: float | None
    bytes_total: int


class Search(NamedTuple):
    """A search for masks.

    Attributes:
      masks: The mask after each iteration.
      bytes_total: Bytes that all clients sent and received up to each iteration.
    """

    masks: list[Filters]
    bytes_total: list[int]


def pooled(task: fm.Task) -> fm.Task:
    """The task with a single client that holds all data."""
    return replace(task, train=index_of([task.train.rows]), test=index_of([task.test.rows]))


def search(
    model: Model,
    task: fm.Task,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    epochs: int,
    iterations: int,
) -> Search:
    """Searches for masks by votes; iteration 0 prunes nothing."""
    algorithm = fm.mpfl_search(
        model, optimizer, epochs=epochs, batch_size=BATCH, prune_share=SHARE, prune_bias=True
    )
    simulation = fm.make_simulation(algorithm, task, cohort=task.num_clients, seeds=(seed,), chunk=1)
    state, masks, totals = simulation.init(), [], [0]
    for iteration in range(1 + iterations):
        state, (metrics,) = simulation.run(state, iteration, 1)
        masks.append(jax.device_get(state.server.filters))
        totals.append(totals[-1] + int(metrics.bytes_up.sum() + metrics.bytes_down.sum()))
    return Search(masks, totals[1:])


def train(
    model: Model,
    params: Any,
    task: fm.Task,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    rounds: int,
) -> Trained:
    """Runs FedAvg from the parameters; with a pooled task, this is central training."""
    algorithm = fm.fedavg(model, optimizer, batch_size=BATCH)
    simulation = fm.make_simulation(algorithm, task, cohort=task.num_clients, seeds=(seed,), chunk=rounds)
    state = simulation.init()
    state = state._replace(server=state.server._replace(params=jax.device_put(params)))
    state, (metrics,) = simulation.run(state, 0, rounds)
    accuracy = simulation.evaluate(state)[0].global_accuracy
    total = int(metrics.bytes_up.sum() + metrics.bytes_down.sum())
    return Trained(jax.device_get(state.server.params), accuracy, total)
