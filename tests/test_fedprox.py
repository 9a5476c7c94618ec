"""FedProx against its paper."""

import cases
import jax
import jax.numpy as jnp
import optax
import pytest
import reference

import fedjax_masks as fm
from fedjax_masks.communication import size
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Round
from fedjax_masks.core.errors import UserError
from fedjax_masks.simulation import make_simulation

SGD = optax.sgd(0.1, momentum=0.5)
ROUND = Round(jax.random.key(1), jnp.int32(0))


@pytest.fixture(scope="module")
def model():
    return fm.models.mlp(cases.task(), hidden=(8,))


def run(algorithm, seed=7):
    simulation = make_simulation(algorithm, cases.task(), cohort=5, seeds=(seed,), chunk=3)
    state = simulation.init()
    start = reference.layers(state.server.params)
    return start, simulation.run(state, 0, 3)[0].server.params


def test_against_numpy(model):
    task, mu = cases.task(), 2.0
    start, params = run(fm.fedprox(model, SGD, mu=mu, batch_size=4, epochs=2))
    expected = start
    for clients in reference.rounds(task, seed=7, num=3, cohort=5):
        pull = lambda now, centre=expected: [mu * (a - c) for a, c in zip(now, centre)]
        trained = [
            reference.sgd(
                expected,
                reference.minibatches(task, client, key, batch_size=4, epochs=2),
                lr=0.1,
                momentum=0.5,
                extra=pull,
            )[0]
            for client, key in clients
        ]
        expected = reference.weighted_mean(trained, [task.train.sizes[client] for client, _ in clients])
    reference.assert_close(params, expected)


@pytest.mark.slow
def test_a_stronger_pull_leaves_clients_nearer_to_the_global_model(model):
    task = cases.task()

    def distance(mu):
        algorithm = fm.fedprox(model, optax.sgd(0.1), mu=mu, batch_size=4, epochs=5)
        message = algorithm.init(jax.random.key(0), task).server.params
        _, update, _ = jax.jit(algorithm.train)(ROUND, message, (), cases.data_of(task, 3))
        return float(optax.tree.norm(update))

    assert distance(5.0) < 0.9 * distance(0.0)


def test_bytes(model):
    algorithm = fm.fedprox(model, SGD)
    params = algorithm.init(jax.random.key(0), cases.task()).server.params
    assert size.bits(params) == 32 * trees.size(params)
    data = jax.eval_shape(lambda: cases.data_of(cases.task(), 3))
    _, upload, _ = jax.eval_shape(algorithm.train, ROUND, params, (), data)
    assert size.static_bits(upload) == 32 * trees.size(params)


@pytest.mark.parametrize("mu", [-0.1, jnp.nan])
def test_terms_that_are_no_number_from_0_are_refused(model, mu):
    with pytest.raises(UserError, match=f"^mu={mu}: must be a finite number at least 0"):
        fm.fedprox(model, SGD, mu=mu)
