"""Per-FedAvg against its paper."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import fedjax_masks as fm
from fedjax_masks.core import training, trees
from fedjax_masks.core.algorithm import Round
from fedjax_masks.core.errors import UserError
from fedjax_masks.data.tasks import rows_of


@pytest.fixture(scope="module")
def model():
    return fm.models.mlp(cases.task(), hidden=(8,))


def meta_sgd(params, batches, *, alpha, beta):
    """Algorithm 1, first order: D are the odd examples of each batch, D' the even ones."""
    for x, y in batches:
        adapted = params
        if len(y) > 1:
            adapted = [w - alpha * g for w, g in zip(params, reference.gradient(params, x[1::2], y[1::2]))]
        params = [w - beta * g for w, g in zip(params, reference.gradient(adapted, x[::2], y[::2]))]
    return params


# Without adaptation it is FedAvg on the even examples, by the same reference.
@pytest.mark.parametrize("alpha", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_against_numpy(model, alpha):
    task = cases.task()
    algorithm = fm.perfedavg(model, optax.sgd(0.1), alpha=alpha, batch_size=4, epochs=2)
    simulation = fm.make_simulation(algorithm, task, cohort=5, seeds=(7,), chunk=3)
    state = simulation.init()
    expected = reference.layers(state.server.params)
    for clients in reference.rounds(task, seed=7, num=3, cohort=5):
        trained = []
        for client, key in clients:
            batches = reference.minibatches(task, client, key, batch_size=4, epochs=2)
            trained.append(meta_sgd(expected, batches, alpha=alpha, beta=0.1))
        expected = reference.weighted_mean(trained, [task.train.sizes[client] for client, _ in clients])
    state, (metrics,) = simulation.run(state, 0, 3)
    reference.assert_close(state.server.params, expected)
    np.testing.assert_array_equal(metrics.bytes_up, 4 * trees.size(state.server.params))


@pytest.mark.slow
def test_a_client_predicts_with_the_newest_model_after_one_step_on_its_data(model):
    task, client = cases.task(), 3  # has 20 examples
    algorithm = fm.perfedavg(model, optax.sgd(0.1), alpha=0.5, batch_size=4, support=20)
    state = algorithm.init(jax.random.key(0), task)
    before = jax.tree.map(lambda a: a[client], state.clients)
    round = Round(jax.random.key(1), jnp.int32(0))
    after, _, _ = jax.jit(algorithm.train)(round, state.server.params, before, cases.data_of(task, client))
    mine = rows_of(task.train, client)
    np.testing.assert_array_equal(np.sort(after.inputs, axis=0), np.sort(task.inputs[mine], axis=0))
    newest = state.server._replace(params=model.init(jax.random.key(5)))
    batch = training.Batch(task.inputs[mine], task.labels[mine], np.ones(len(mine), bool), jnp.int32(0))
    gradient = jax.grad(training.cross_entropy(model.apply))(newest.params, batch, round.key)
    adapted = jax.tree.map(lambda w, g: w - 0.5 * g, newest.params, gradient)
    x = task.test_inputs[:7]
    personal, plain = algorithm.predict["personal"], model.apply(newest.params, x)
    np.testing.assert_allclose(personal(newest, after, x), model.apply(adapted, x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(personal(newest, before, x), plain)
    np.testing.assert_array_equal(algorithm.predict["global"](newest, None, x), plain)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"alpha": -0.1}, "alpha=-0.1: must be a finite number at least 0"),
        ({"support": 0}, "support=0: must be an integer at least 1"),
        ({"batch_size": 1}, "batch_size=1: must be 2 or more"),
    ],
)
def test_options_out_of_range_are_refused(model, options, sentence):
    with pytest.raises(UserError, match=f"^{sentence}"):
        fm.perfedavg(model, optax.sgd(0.1), **options)
