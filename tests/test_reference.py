"""FedAvg against a second implementation: plain NumPy, float64, loops."""

import cases
import jax
import numpy as np
import optax
import pytest
import reference

import fedjax_masks as fm
from fedjax_masks.core.training import shuffled_rows
from fedjax_masks.data.tasks import rows_of
from fedjax_masks.simulation import make_simulation


def fedavg(params, task, *, seed, rounds, cohort, lr, **batches):
    """McMahan et al. 2017, algorithm 1, with the simulator's order of clients and examples."""
    for clients in reference.rounds(task, seed=seed, num=rounds, cohort=cohort):
        trained = [
            reference.sgd(params, reference.minibatches(task, client, key, **batches), lr=lr)[0]
            for client, key in clients
        ]
        params = reference.weighted_mean(trained, [task.train.sizes[client] for client, _ in clients])
    return params


@pytest.mark.parametrize("plan", ["scan", "blocks:4"])
def test_fedavg_is_the_textbook_algorithm(plan):
    task = cases.task()
    algorithm = fm.fedavg(fm.models.mlp(task, hidden=(8,)), optax.sgd(0.1), batch_size=4, epochs=2)
    simulation = make_simulation(algorithm, task, cohort=5, seed=7, chunk=3, plan=plan)
    state = simulation.init()
    start = reference.layers(state.server.params)
    state, _ = simulation.run(state, 0, 3)
    expected = fedavg(start, task, seed=7, rounds=3, cohort=5, lr=0.1, batch_size=4, epochs=2)
    reference.assert_close(state.server.params, expected)


def test_every_example_is_seen_once_per_epoch():
    task = cases.task()
    for client in range(task.num_clients):
        data = cases.data_of(task, client)
        rows = np.asarray(shuffled_rows(jax.random.key(client), data, 4))
        mine = rows_of(task.train, client)
        assert sorted(rows[: len(mine)]) == sorted(mine)
