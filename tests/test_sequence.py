"""One algorithm after another."""

import cases
import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.transforms.sequence import then

SGD = optax.sgd(0.1)


@pytest.fixture(scope="module")
def task():
    return cases.task()


@pytest.fixture(scope="module")
def model(task):
    return fm.models.mlp(task, hidden=(8,))


def test_an_algorithm_handed_over_to_itself_goes_on_as_it_was(model, task):
    alone = fm.fedavg(model, SGD, batch_size=4)
    counting = alone._replace(
        init=lambda key, task: alone.init(key, task)._replace(common=jnp.int32(0)),
    )
    twice = then(
        counting,
        counting,
        done=lambda server: jnp.asarray(True),
        handover=lambda common, early, late: early,
    )
    # The sequence splits the initial key.
    early_key = lambda key, task: alone.init(jax.random.split(key)[0], task)
    want = fm.make_simulation(alone._replace(init=early_key), task, cohort=4, chunk=3)
    got = fm.make_simulation(twice, task, cohort=4, chunk=3, poison=True)
    reference, wanted = want.run(want.init(), 0, 3)
    state, metrics = got.run(got.init(), 0, 3)
    chex.assert_trees_all_close(state.server.second.params, reference.server.params, rtol=1e-6)
    chex.assert_trees_all_equal(metrics.bytes_up, wanted.bytes_up)
    chex.assert_trees_all_equal(metrics.bytes_down, wanted.bytes_down)
    x = jnp.asarray(task.test_inputs[:4])
    chex.assert_trees_all_close(
        twice.predict_global(state.common, state.server, x),
        model.apply(reference.server.params, x),
        rtol=1e-5,
    )


def test_algorithms_that_do_not_go_together_are_refused(model):
    plain = fm.fedavg(model, SGD)
    stacked = plain._replace(reduce=None)
    other = plain._replace(select=lambda index, draw: draw(0))
    serving = plain._replace(serve=lambda key, common, server, kept, upload: (kept, upload))
    for first, second in ((plain, stacked), (plain, other), (serving, plain)):
        with pytest.raises(ValueError, match="then: "):
            then(first, second, done=lambda server: True, handover=lambda *states: states[-1])
