"""FedNova against its paper."""

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
from fedjax_masks.core import training, trees
from fedjax_masks.core.algorithm import Round
from fedjax_masks.data import synthetic_task
from fedjax_masks.simulation import make_simulation


def run(algorithm, task, cohort, rounds=3):
    simulation = make_simulation(algorithm, task, cohort=cohort, seeds=(7,), chunk=rounds)
    state = simulation.init()
    start = reference.layers(state.server.params)
    return start, simulation.run(state, 0, rounds)[0].server.params


def weight_of_gradients(steps, momentum):
    """Wang et al. 2020, section 4: the norm of a."""
    rho = momentum
    return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_path_of_sgd_is_the_published_formula(momentum, steps):
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.01, momentum=momentum))
    path = jax.jit(lambda n: training.unit_path(optimizer, n))(jnp.float32(steps))
    np.testing.assert_allclose(path, 0.01 * weight_of_gradients(steps, momentum), rtol=1e-5)


def test_path_turns_an_update_into_a_mean_of_gradients():
    """With Nesterov momentum and a schedule, whose weights no formula is given for."""
    schedule = optax.cosine_decay_schedule(0.3, 9)
    optimizer = optax.sgd(schedule, momentum=0.8, nesterov=True)
    gradients = np.random.default_rng(0).normal(size=(6, 3))
    weights = np.zeros(6)
    for place in range(6):  # the update is linear in the gradients: its weights, one by one
        state, moved = optimizer.init(jnp.zeros(())), 0.0
        for step in range(6):
            update, state = optimizer.update(jnp.float32(step == place), state)
            moved -= float(update)
        weights[place] = moved
    params = state = jnp.zeros(3)
    state = optimizer.init(params)
    for grads in gradients:
        updates, state = optimizer.update(jnp.asarray(grads, jnp.float32), state)
        params = optax.apply_updates(params, updates)
    mean = -params / training.unit_path(optimizer, jnp.int32(6))
    np.testing.assert_allclose(mean, weights @ gradients / weights.sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_equal_numbers_of_steps_are_fedavg():
    task = synthetic_task((6,), 3, np.array([9, 12, 10, 11, 9]), seed=3)
    model, optimizer = fm.models.mlp(task, hidden=(8,)), optax.sgd(0.1, momentum=0.9)
    _, params = run(fm.fednova(model, optimizer, batch_size=4, epochs=2), task, 4)
    _, expected = run(fm.fedavg(model, optimizer, batch_size=4, epochs=2), task, 4)
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("momentum", [pytest.param(0.0, marks=pytest.mark.slow), 0.9])
def test_against_numpy_with_unequal_steps(momentum):
    task = cases.task()
    model, optimizer = fm.models.mlp(task, hidden=(8,)), optax.sgd(0.05, momentum=momentum)
    start, params = run(fm.fednova(model, optimizer, batch_size=4, epochs=2), task, 5)
    expected = start
    for clients in reference.rounds(task, seed=7, num=3, cohort=5):
        sizes, directions, lengths = [], [], []
        for client, key in clients:
            batches = reference.minibatches(task, client, key, batch_size=4, epochs=2)
            trained, steps = reference.sgd(expected, batches, lr=0.05, momentum=momentum)
            length = weight_of_gradients(steps, momentum)
            directions.append([(a - b) / length for a, b in zip(trained, expected)])
            lengths.append(length)
            sizes.append(task.train.sizes[client])
        assert len(set(lengths)) > 1
        effective = np.average(lengths, weights=sizes)
        mean = reference.weighted_mean(directions, sizes)
        expected = [a + effective * d for a, d in zip(expected, mean)]
    reference.assert_close(params, expected)


def test_bytes():
    task = cases.task()
    algorithm = fm.fednova(fm.models.mlp(task, hidden=(8,)), optax.sgd(0.1))
    params = algorithm.init(jax.random.key(0), task).server.params
    data = jax.eval_shape(lambda: cases.data_of(task, 3))
    _, upload, _ = jax.eval_shape(algorithm.train, Round(jax.random.key(0), jnp.int32(0)), params, (), data)
    assert size.static_bits(upload) == 8 * (4 * trees.size(params) + 4)
