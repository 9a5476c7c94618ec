"""The majority vote on signs, against NumPy."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import fedjax_masks as fm
from fedjax_masks.algorithms.sign import signs
from fedjax_masks.communication import serialization, size
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Round
from fedjax_masks.core.errors import UserError


@pytest.fixture(scope="module")
def model():
    return fm.models.mlp(cases.task(), hidden=(8,))


def test_every_parameter_moves_one_step_with_the_majority(model):
    task, step = cases.task(), 0.01
    algorithm = fm.sign(model, optax.sgd(0.1), step=step, batch_size=4)
    simulation = fm.make_simulation(algorithm, task, cohort=4, seeds=(7,), chunk=1)
    state = simulation.init()
    start = reference.layers(state.server.params)
    state, (metrics,) = simulation.run(state, 0, 1)
    (clients,) = reference.rounds(task, seed=7, num=1, cohort=4)
    votes = []
    for client, key in clients:
        batches = reference.minibatches(task, client, key, batch_size=4, epochs=1)
        votes.append([np.sign(b - a) for a, b in zip(start, reference.sgd(start, batches, lr=0.1)[0])])
    ties = 0
    for old, new, *ballot in zip(start, reference.layers(state.server.params), *votes):
        certain = np.all(ballot, axis=0)  # where somebody's change is zero, a coin decides
        direction = np.sign(np.sum(ballot, axis=0))
        np.testing.assert_allclose((new - old)[certain], step * direction[certain], atol=1e-6)
        ties += np.sum(certain & (direction == 0))
    assert ties
    assert np.all(metrics.bytes_up == -(-trees.size(state.server.params) // 8))


def test_one_bit_per_parameter(model):
    task = cases.task()
    algorithm = fm.sign(model, optax.sgd(0.1))
    params = algorithm.init(jax.random.key(0), task).server.params
    round = Round(jax.random.key(1), jnp.int32(0))
    _, upload, _ = algorithm.train(round, params, (), cases.data_of(task, 3))
    assert size.bits(upload) == trees.size(params) == 83
    assert len(serialization.encode(upload)) == 11


def test_parameters_that_do_not_move_vote_by_a_fair_coin():
    update = {"still": jnp.zeros(4000), "up": jnp.full(3, 1e-30), "down": jnp.full(3, -1e-30)}
    vote = signs(jax.random.key(0), update)
    assert 0.45 < np.mean(vote["still"]) < 0.55
    assert np.all(vote["up"])
    assert not np.any(vote["down"])


def test_steps_that_are_not_positive_are_refused(model):
    with pytest.raises(UserError, match=r"^step=0\.0: must be a finite number above 0"):
        fm.sign(model, optax.sgd(0.1), step=0.0)
