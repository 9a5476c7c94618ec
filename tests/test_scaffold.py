"""SCAFFOLD against its paper."""

from functools import cache

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import fedjax_masks as fm
from fedjax_masks.communication import size
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Round
from fedjax_masks.data import synthetic_task
from fedjax_masks.simulation import make_simulation


@pytest.mark.slow
def test_one_client_is_plain_sgd():
    task = synthetic_task((6,), 3, np.array([22]), seed=3)
    algorithm = fm.scaffold(fm.models.mlp(task, hidden=(8,)), optax.sgd(0.1), batch_size=4, epochs=2)
    simulation = make_simulation(algorithm, task, cohort=1, seeds=(7,), chunk=4)
    state = simulation.init()
    expected = reference.layers(state.server.average.params)
    for ((client, key),) in reference.rounds(task, seed=7, num=4, cohort=1):
        batches = reference.minibatches(task, client, key, batch_size=4, epochs=2)
        expected, _ = reference.sgd(expected, batches, lr=0.1)
    state, _ = simulation.run(state, 0, 4)
    reference.assert_close(state.server.average.params, expected)
    assert optax.tree.norm(state.server.control) > 0.1


@cache
def ran(momentum, *, scheduled=False):
    """The states before and after three rounds of five clients, at a rate of 0.1, or of half of 0.2."""
    task = cases.task()
    model = fm.models.mlp(task, hidden=(8,))
    rate, schedule = (0.2, lambda index: 0.5) if scheduled else (0.1, None)
    trainer = fm.Trainer(optax.sgd(rate, momentum=momentum), batch_size=4, epochs=2, schedule=schedule)
    simulation = make_simulation(
        fm.scaffold(model, trainer), task, cohort=5, seeds=(7,), chunk=3, plan="scan"
    )
    state = simulation.init()
    before = jax.device_get(state)
    return before, jax.device_get(simulation.run(state, 0, 3)[0])


MOMENTA = [pytest.param(0.0, marks=pytest.mark.slow), 0.5]


@pytest.mark.parametrize("momentum", MOMENTA)
def test_against_numpy_with_partial_participation(momentum):
    """Algorithm 1, option II, with the number of steps in the place that momentum's weights take."""
    task, (before, state) = cases.task(), ran(momentum)
    params = reference.layers(before.server.average.params)
    control = [np.zeros_like(a) for a in params]
    own = [[np.zeros_like(a) for a in params] for _ in range(task.num_clients)]
    sizes = task.train.sizes
    for clients in reference.rounds(task, seed=7, num=3, cohort=5):
        trained, changes = [], []
        for client, key in clients:
            batches = reference.minibatches(task, client, key, batch_size=4, epochs=2)
            correction = [c - ci for c, ci in zip(control, own[client])]
            now, steps = reference.sgd(
                params, batches, lr=0.1, momentum=momentum, extra=lambda _, c=correction: c
            )
            weight = sum((1 - momentum ** (j + 1)) / (1 - momentum) for j in range(steps))
            new = [
                ci - c + (a - b) / (0.1 * weight) for ci, c, a, b in zip(own[client], control, params, now)
            ]
            changes.append([sizes[client] * (n - ci) for n, ci in zip(new, own[client])])
            own[client] = new
            trained.append(now)
        params = reference.weighted_mean(trained, [sizes[client] for client, _ in clients])
        control = [c + sum(parts) / sizes.sum() for c, parts in zip(control, zip(*changes))]
    reference.assert_close(state.server.average.params, params)
    reference.assert_close(state.server.control, control)
    for client in range(task.num_clients):
        reference.assert_close(jax.tree.map(lambda a, i=client: a[i], state.clients), own[client])


@pytest.mark.parametrize("momentum", MOMENTA)
def test_a_control_variate_is_the_mean_of_the_clients_own(momentum):
    task, (_, state) = cases.task(), ran(momentum)
    weights = task.train.sizes / task.train.sizes.sum()
    mean = jax.tree.map(lambda own: np.tensordot(weights, own, 1), state.clients)
    chex.assert_trees_all_close(state.server.control, mean, rtol=1e-5, atol=1e-6)


def test_one_long_step_is_a_step_of_centralised_descent():
    """With one full batch per client the corrections cancel in the mean, whatever they are."""
    task = cases.task()
    model = fm.models.mlp(task, hidden=(8,))
    algorithm = fm.scaffold(model, optax.sgd(0.1), batch_size=20)
    simulation = make_simulation(algorithm, task, cohort=task.num_clients, chunk=5)
    state = simulation.init()
    expected = reference.layers(state.server.average.params)
    rows = task.train.rows
    for _ in range(5):
        grads = reference.gradient(expected, task.inputs[rows].astype(np.float64), task.labels[rows])
        expected = [a - 0.1 * g for a, g in zip(expected, grads)]
    state, _ = simulation.run(state, 0, 5)
    reference.assert_close(state.server.average.params, expected)


def test_a_schedule_over_rounds_is_a_smaller_step():
    ends = ran(0.5)[1], ran(0.5, scheduled=True)[1]
    chex.assert_trees_all_close(*(end.server.control for end in ends), rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(*(end.clients for end in ends), rtol=1e-4, atol=1e-5)


def test_bytes():
    task = cases.task()
    algorithm = fm.scaffold(fm.models.mlp(task, hidden=(8,)), optax.sgd(0.1))
    state = algorithm.init(jax.random.key(0), task)
    round = Round(jax.random.key(0), jnp.int32(0))
    message = algorithm.send(round, state.server, ())
    parameters = trees.size(state.server.average.params)
    assert size.bits(message) == 8 * (8 * parameters)
    data = jax.eval_shape(lambda: cases.data_of(task, 3))
    client = jax.tree.map(lambda a: a[3], state.clients)
    _, upload, _ = jax.eval_shape(algorithm.train, round, message, client, data)
    assert size.static_bits(upload) == 8 * (8 * parameters)
