"""FedAvg and the means of a server against a second implementation: plain NumPy, float64, loops."""

from functools import reduce

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import fedjax_masks as fm
from fedjax_masks.core import trees
from fedjax_masks.core.aggregation import masked, masked_mean, weighted, weighted_mean
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


@pytest.mark.parametrize("plan", ["scan", pytest.param("blocks:4", marks=pytest.mark.slow)])
def test_fedavg_is_the_textbook_algorithm(plan):
    task = cases.task()
    algorithm = fm.fedavg(fm.models.mlp(task, hidden=(8,)), optax.sgd(0.1), batch_size=4, epochs=2)
    simulation = make_simulation(algorithm, task, cohort=5, seeds=(7,), chunk=3, plan=plan)
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


def sum_of(parts):
    return reduce(trees.add, parts)


@pytest.mark.parametrize("shape", [(4, 3), (1, 3), (4, 1), (1, 1)])
def test_a_masked_mean_is_taken_per_element_over_its_senders(shape):
    """Elements that nobody sent keep their default, and nothing of unsent values is read."""
    rng = np.random.default_rng(sum(shape))
    weights = np.array([3.0, 0.5, 2.0, 7.0], np.float32)
    values = rng.normal(size=(4, 4, 3)).astype(np.float32)
    masks = rng.random((4, *shape)) < 0.5
    masks[:, :1, :1] = False  # nobody's
    default = rng.normal(size=(4, 3)).astype(np.float32)
    sent = np.broadcast_to(masks, values.shape)
    unsent = np.where(sent, values, np.nan)

    parts = [masked({"w": v}, {"w": m}, jnp.float32(w)) for v, m, w in zip(unsent, masks, weights)]
    mean = masked_mean(sum_of(parts), {"w": default})["w"]
    for index in np.ndindex(4, 3):
        owners = [client for client in range(4) if sent[client][index]]
        expected = float(default[index])
        if owners:
            total = sum(float(weights[client]) * float(values[client][index]) for client in owners)
            expected = total / sum(float(weights[client]) for client in owners)
        np.testing.assert_allclose(mean[index], expected, rtol=1e-5)
    assert parts[0].weight["w"].shape == shape  # weights stay as small as the mask


def test_a_masked_mean_of_whole_values_is_the_weighted_mean():
    values = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    weights, ones = np.array([1, 0, 4, 2, 0.25], np.float32), np.ones(6, bool)
    by_element = masked_mean(sum_of(masked(v, ones, w) for v, w in zip(values, weights)), np.zeros(6))
    whole = weighted_mean(sum_of(weighted(v, w) for v, w in zip(values, weights)), np.zeros(6))
    expected = np.average(values.astype(np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(by_element, expected, rtol=1e-5)
    np.testing.assert_allclose(whole, expected, rtol=1e-5)


def test_a_mean_of_no_weight_is_the_default():
    nothing, default = jnp.float32(0), np.arange(3, dtype=np.float32)
    assert weighted_mean(weighted(np.ones(3, np.float32), nothing), default).tolist() == [0, 1, 2]
    assert masked_mean(masked(np.ones(3, np.float32), np.ones(1, bool), nothing), default).tolist() == [
        0,
        1,
        2,
    ]
