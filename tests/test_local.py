"""Options of local training, each against the same thing stated another way."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.core import training
from fedjax_masks.core.algorithm import ClientData
from fedjax_masks.data import synthetic_task

DIM, CLASSES, SIZE, CAPACITY = 4, 3, 7, 9


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    return ClientData(
        inputs=jnp.asarray(random.normal(size=(CAPACITY, DIM)), jnp.float32),
        labels=jnp.asarray(random.integers(CLASSES, size=CAPACITY), jnp.int32),
        rows=jnp.arange(CAPACITY),
        size=jnp.asarray(SIZE),
        longest=jnp.asarray(SIZE),
        tier=jnp.asarray(0),
    )


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(1)
    return {
        "kernel": jnp.asarray(random.normal(size=(DIM, CLASSES)), jnp.float32),
        "bias": jnp.asarray(random.normal(size=CLASSES), jnp.float32),
    }


DATA_LOSS = training.cross_entropy(lambda params, x: x @ params["kernel"] + params["bias"])


def train(params, data, *, loss=DATA_LOSS, optimizer=None, **options):
    optimizer = optax.sgd(0.1, momentum=0.9) if optimizer is None else optimizer
    key = jax.random.key(5)
    return training.train(
        key, params, data, loss=loss, optimizer=optimizer, epochs=2, batch_size=3, **options
    )


def assert_same(a, b):
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6)


def test_proximal_is_the_gradient_of_the_squared_distance(params, data):
    def loss(now, batch):
        away = jax.tree.map(lambda w, start: jnp.sum((w - start) ** 2), now, params)
        return DATA_LOSS(now, batch) + 0.7 / 2 * sum(jax.tree.leaves(away))

    held, metrics = train(params, data, proximal=0.7)
    expected, with_term = train(params, data, loss=loss)
    assert_same(held, expected)
    free, _ = train(params, data)
    assert np.abs(held["kernel"] - free["kernel"]).max() > 1e-3
    # The reported loss is that of the data alone.
    assert metrics.loss < with_term.loss - 1e-3


def test_correction_is_the_gradient_of_a_linear_term(params, data):
    random = np.random.default_rng(2)
    correction = jax.tree.map(lambda w: jnp.asarray(random.normal(size=w.shape), jnp.float32), params)

    def loss(now, batch):
        terms = jax.tree.map(lambda w, c: jnp.sum(w * c), now, correction)
        return DATA_LOSS(now, batch) + sum(jax.tree.leaves(terms))

    assert_same(train(params, data, correction=correction)[0], train(params, data, loss=loss)[0])


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.adamw(0.1, weight_decay=0.5)])
def test_update_mask_holds_parameters_still_against_momentum_and_decay(params, data, optimizer):
    mask = {"kernel": jnp.arange(DIM * CLASSES).reshape(DIM, CLASSES) % 2 == 0, "bias": jnp.zeros(3, bool)}
    trained, _ = train(params, data, optimizer=optimizer, update_mask=mask)
    for name, start in params.items():
        held = ~np.asarray(mask[name])
        np.testing.assert_array_equal(np.asarray(trained[name])[held], np.asarray(start)[held])
        assert (np.asarray(trained[name])[~held] != np.asarray(start)[~held]).all()


def test_a_mask_of_ones_changes_nothing(params, data):
    ones = jax.tree.map(lambda w: jnp.ones(w.shape, bool), params)
    masked, free = train(params, data, update_mask=ones)[0], train(params, data)[0]
    assert_same(masked, free)


def test_something_is_done_to_the_parameters_after_every_epoch(params, data):
    more = lambda now: {"kernel": now["kernel"], "bias": now["bias"] + 1}
    trained, _ = train(params, data, optimizer=optax.sgd(0.0), after_epoch=more)
    assert_same(trained, {"kernel": params["kernel"], "bias": params["bias"] + 2})
    free, _ = train(params, data)
    halved, _ = train(params, data, after_epoch=lambda now: jax.tree.map(lambda a: a / 2, now))
    assert np.abs(halved["kernel"] - free["kernel"] / 2).max() > 1e-3  # after the first epoch, too


def test_metrics_count_what_was_seen_and_what_was_padded(params, data):
    _, metrics = train(params, data)
    forward = backward = 2 * 3 * DIM * CLASSES  # nobody needs the input's gradient
    written = 4 * (3 * CLASSES + DIM * CLASSES)  # logits, and the kernel's gradient
    assert [float(v) for v in metrics[1:]] == [
        *(2 * 3, 2 * SIZE, 2 * 3 * 3, 2 * 3 * (forward + backward)),
        2 * 3 * 2 * written,
    ]


FALLING = optax.piecewise_constant_schedule(0.1, {60: 0.0})


@pytest.mark.parametrize(
    ("optimizer", "scheduled"),
    [
        (optax.sgd(0.1, momentum=0.9), False),
        (optax.adamw(0.1), False),  # its count corrects a bias
        (optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), False),
        (optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(), False),
        (optax.sgd(FALLING), True),
        (optax.chain(optax.clip(1.0), optax.adam(FALLING)), True),
        (optax.masked(optax.sgd(FALLING), {"kernel": True, "bias": False}), True),
        (optax.inject_hyperparams(optax.sgd)(learning_rate=FALLING), True),
        (optax.adamw(0.1, weight_decay=FALLING), True),
        (optax.contrib.reduce_on_plateau(), True),
    ],
)
def test_schedules_are_told_from_other_counts(params, optimizer, scheduled):
    assert training.has_schedule(optimizer, params) == scheduled


def test_a_schedule_that_restarts_in_every_round_is_warned_of_once(caplog):
    """30 steps a round never reach step 60, at which the rate is to fall to 0."""
    task = synthetic_task((6,), 3, [30] * 4, seed=0)
    model = fm.models.mlp(task, hidden=(8,))
    falling, constant = (
        fm.simulate(
            fm.fedskel(model, optax.sgd(rate), batch_size=1, prune_dense=True), task, rounds=3, cohort=4
        )
        for rate in (FALLING, 0.1)
    )
    jax.tree.map(np.testing.assert_array_equal, falling.state, constant.state)
    (warning,) = [record for record in caplog.records if record.name.startswith("fedjax_masks")]
    assert "its schedule counts the steps of one round, and starts again in the next" in warning.getMessage()
