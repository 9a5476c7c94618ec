"""Local training: each option of a trainer against the same thing stated in another way."""

import inspect

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.algorithms.fedprox import pull
from fedjax_masks.algorithms.registry import REGISTRY
from fedjax_masks.core import training
from fedjax_masks.core.algorithm import ClientData, Round
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.schedules import parse_schedule
from fedjax_masks.core.training import Trainer, as_trainer
from fedjax_masks.data import synthetic_task
from fedjax_masks.experiment.config import make_config
from fedjax_masks.simulation import make_simulation

DIM, CLASSES, SIZE, CAPACITY = 4, 3, 7, 9
ROUND = Round(jax.random.key(5), jnp.int32(0))
SGD = optax.sgd(0.1, momentum=0.9)


def make_data(capacity=CAPACITY, longest=SIZE):
    """Seven examples; what follows them is padding, which may have any length."""
    random = np.random.default_rng(0)
    return ClientData(
        inputs=jnp.asarray(random.normal(size=(CAPACITY, DIM)), jnp.float32),
        labels=jnp.asarray(random.integers(CLASSES, size=CAPACITY), jnp.int32),
        rows=jnp.arange(capacity) % CAPACITY,
        size=jnp.asarray(SIZE),
        longest=jnp.asarray(longest),
        tier=jnp.asarray(0),
    )


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(1)
    return {
        "kernel": jnp.asarray(random.normal(size=(DIM, CLASSES)), jnp.float32),
        "bias": jnp.asarray(random.normal(size=CLASSES), jnp.float32),
    }


def apply(params, x):
    return x @ params["kernel"] + params["bias"]


DATA_LOSS = training.cross_entropy(apply)


def train(params, data, *, loss=DATA_LOSS, optimizer=SGD, **options):
    fields = {key: options.pop(key) for key in ("clip_norm", "schedule") if key in options}
    trainer = Trainer(optimizer, epochs=2, batch_size=3, **fields)
    trained, info, _ = trainer.summing(
        ROUND, params, data, lambda params, batch, key: (loss(params, batch, key), ()), **options
    )
    return trained, info


def assert_same(a, b):
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6)


def test_a_pull_is_the_gradient_of_the_squared_distance(params, data):
    def loss(now, batch, key):
        away = jax.tree.map(lambda w, start: jnp.sum((w - start) ** 2), now, params)
        return DATA_LOSS(now, batch, key) + 0.7 / 2 * sum(jax.tree.leaves(away))

    held, info = train(params, data, gradient=pull(0.7))
    expected, with_term = train(params, data, loss=loss)
    assert_same(held, expected)
    free, _ = train(params, data)
    assert np.abs(held["kernel"] - free["kernel"]).max() > 1e-3
    # The reported loss is that of the data alone.
    assert info.loss < with_term.loss - 1e-3


def test_a_constant_added_to_gradients_is_the_gradient_of_a_linear_term(params, data):
    random = np.random.default_rng(2)
    correction = jax.tree.map(lambda w: jnp.asarray(random.normal(size=w.shape), jnp.float32), params)

    def loss(now, batch, key):
        terms = jax.tree.map(lambda w, c: jnp.sum(w * c), now, correction)
        return DATA_LOSS(now, batch, key) + sum(jax.tree.leaves(terms))

    def gradient(grads, now, start):
        return jax.tree.map(jnp.add, grads, correction)

    assert_same(train(params, data, gradient=gradient)[0], train(params, data, loss=loss)[0])


@pytest.mark.parametrize("optimizer", [SGD, optax.adamw(0.1, weight_decay=0.5)])
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


def test_a_function_changes_the_parameters_after_every_epoch(params, data):
    more = lambda now: {"kernel": now["kernel"], "bias": now["bias"] + 1}
    trained, _ = train(params, data, optimizer=optax.sgd(0.0), after_epoch=more)
    assert_same(trained, {"kernel": params["kernel"], "bias": params["bias"] + 2})
    free, _ = train(params, data)
    halved, _ = train(params, data, after_epoch=lambda now: jax.tree.map(lambda a: a / 2, now))
    assert np.abs(halved["kernel"] - free["kernel"] / 2).max() > 1e-3  # after the first epoch, too


def test_work_counts_examples_and_padding(params, data):
    _, info = train(params, data)
    forward = backward = 2 * 3 * DIM * CLASSES  # nobody needs the input's gradient
    written = 4 * (3 * CLASSES + DIM * CLASSES)  # logits, and the kernel's gradient
    assert [float(value) for value in info.work] == [
        *(2 * 3, 2 * SIZE, 2 * 3 * 3, 2 * 3 * (forward + backward)),
        2 * 3 * 2 * written,
    ]


@pytest.mark.parametrize(
    "update_mask",
    [
        None,
        pytest.param({"kernel": jnp.ones((1, 1), bool), "bias": jnp.zeros(1, bool)}, marks=pytest.mark.slow),
    ],
)
def test_clip_norm_is_a_link_before_the_optimizer(params, data, update_mask):
    chained = optax.chain(optax.clip_by_global_norm(0.1), SGD)
    clipped, _ = train(params, data, clip_norm=0.1, update_mask=update_mask)
    chex.assert_trees_all_equal(clipped, train(params, data, optimizer=chained, update_mask=update_mask)[0])
    free, _ = train(params, data, update_mask=update_mask)
    assert np.abs(clipped["kernel"] - free["kernel"]).max() > 1e-3
    high, _ = train(params, data, clip_norm=1e6, update_mask=update_mask)
    assert_same(high, free)


def key_draws(data, round=ROUND):
    """``[steps, 4]``: a draw by the loss's key in each step."""

    def loss(params, batch, key):
        return params, jnp.zeros((6, 4)).at[batch.step].set(jax.random.uniform(key, (4,)))

    trainer = Trainer(optax.sgd(0.0), epochs=2, batch_size=3)
    return np.asarray(trainer.summing(round, jnp.float32(0), data, loss)[2])


def test_keys_of_the_loss_differ_from_step_to_step(data):
    draws = key_draws(data)
    assert (draws > 0).all()  # six steps, each with its number
    assert len(np.unique(draws)) == draws.size
    other = key_draws(data, ROUND._replace(key=jax.random.key(6)))
    assert not np.isin(draws, other).any()


@pytest.mark.parametrize(("capacity", "longest"), [(CAPACITY, 9), (40, SIZE), (40, 31)])
def test_keys_of_the_loss_do_not_depend_on_padding(data, capacity, longest):
    np.testing.assert_array_equal(key_draws(make_data(capacity, longest)), key_draws(data))


def test_padding_changes_no_bit_of_a_training(params, data):
    short, info = train(params, data)
    padded, with_padding = train(params, make_data(40, 31))
    chex.assert_trees_all_equal(padded, short)
    assert with_padding.loss == info.loss
    assert with_padding.work.slots == 2 * 33
    assert with_padding.work._replace(slots=0) == info.work._replace(slots=0)


# Schedules over rounds.


def schedule(index):
    return 0.5**index


@pytest.mark.parametrize(
    "make",
    [pytest.param(lambda rate: optax.sgd(rate, momentum=0.5), marks=pytest.mark.slow), optax.adam],
    ids=["sgd", "adam"],
)
def test_a_schedule_scales_the_learning_rate_of_each_round(make):
    task, model = cases.task(), fm.models.mlp(cases.task(), hidden=(8,))

    def simulation(optimizer, chunk, **options):
        algorithm = fm.fedavg(model, optimizer, batch_size=4, **options)
        return make_simulation(algorithm, task, cohort=5, chunk=chunk, plan="scan")

    whole = simulation(make(0.1), 2, schedule=schedule)
    state, (metrics,) = whole.run(whole.init(), 0, 2)
    expected, losses = whole.init(), []
    for index in range(2):
        expected, (alone,) = simulation(make(0.1 * schedule(index)), 1).run(expected, index, 1)
        losses.append(alone.train["loss"][0])
    chex.assert_trees_all_close(state, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics.train["loss"], losses, rtol=1e-5)


def test_the_path_of_an_optimizer_follows_the_schedule(data):
    trainer = Trainer(SGD, epochs=2, batch_size=3, schedule=schedule)
    third, length = ROUND._replace(index=jnp.int32(2)), training.unit_path(SGD, jnp.int32(6))
    assert float(trainer.steps(data)) == 6
    np.testing.assert_allclose(trainer.path(ROUND, data), length)
    np.testing.assert_allclose(trainer.path(third, data), length / 4)
    np.testing.assert_allclose(Trainer(SGD, epochs=2, batch_size=3).path(third, data), length)


@pytest.mark.parametrize(
    ("text", "factor"),
    [
        ("exponential:0.9", lambda index: 0.9**index),
        ("cosine", lambda index: (1 + np.cos(np.pi * index / 20)) / 2),
        ("cosine:0.25", lambda index: 0.25 + 0.75 * (1 + np.cos(np.pi * index / 20)) / 2),
        ("step:7:0.5", lambda index: 0.5 ** (index // 7)),
        ("warmup:4", lambda index: np.minimum(1, (index + 1) / 4)),
        ("warmup:4 + step:7:0.5", lambda index: np.minimum(1, (index + 1) / 4) * 0.5 ** (index // 7)),
    ],
)
def test_schedules_follow_their_formula(text, factor):
    found = [float(parse_schedule(text, 20)(jnp.int32(index))) for index in range(20)]
    np.testing.assert_allclose(found, factor(np.arange(20)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        *("", "linear", "exponential", "exponential:0", "exponential:1.1", "exponential:x", "cosine:1"),
        *("cosine:0.1:0.2", "step:7", "step:0:0.5", "step:1.5:0.5", "step:7:0", "warmup:0", "warmup:2.5"),
        *("exponential:nan", "warmup:2+", "step:inf:0.5", "warmup:inf"),
    ],
)
def test_malformed_schedules_are_refused(text):
    with pytest.raises(
        UserError, match=r"^training\.schedule=.*: must be one of exponential:FACTOR, cosine,"
    ):
        parse_schedule(text, 20)


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

    def algorithm(options):
        rate = lambda step: jnp.where(step < 60, 0.1, options["late"])
        return fm.fedskel(model, optax.sgd(rate), batch_size=1, prune_dense=True)

    values = {"late": (0.0, 0.1)}
    simulation = make_simulation(
        algorithm, task, cohort=4, chunk=3, seeds=(0, 0), values=values, plan="scan,mesh:1"
    )
    state, _ = simulation.run(simulation.init(), 0, 3)
    jax.tree.map(np.testing.assert_array_equal, simulation.take(state, 0), simulation.take(state, 1))
    (warning,) = [record for record in caplog.records if record.name.startswith("fedjax_masks")]
    assert "its schedule counts the steps of one round, and starts again in the next" in warning.getMessage()


# Options, in Python as from the command line.

REFUSED = [
    ("epochs", 0),
    ("epochs", 1.5),
    ("epochs", True),
    ("batch_size", 0),
    ("batch_size", 2**31),
    ("clip_norm", 0),
    ("clip_norm", float("nan")),
    ("precision", "float16"),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_options_out_of_range_are_refused_with_the_sentence_of_the_command_line(key, value):
    with pytest.raises(UserError) as error:
        make_config({"algorithm.name": "fedavg", f"training.{key}": value})
    (sentence,) = error.value.args
    for make in (Trainer, as_trainer_with, fedavg):
        with pytest.raises(UserError) as error:
            make(optax.sgd(0.1), **{key: value})
        assert sentence == f"training.{error.value}"
    assert ": must be " in sentence


def as_trainer_with(optimizer, **options):
    return as_trainer(Trainer(optimizer, epochs=3), options)


def fedavg(optimizer, **options):
    return fm.fedavg(fm.models.mlp(cases.task(), hidden=(8,)), optimizer, **options)


@pytest.mark.parametrize("name", sorted(REGISTRY))
@pytest.mark.parametrize("key", ["epochs", "batch_size", "clip_norm"])
def test_every_factory_takes_and_checks_the_fields_of_the_trainer(name, key):
    model = fm.models.cnn(cases.task((8, 8, 1)))
    with pytest.raises(UserError, match=f"^{key}=0: must be "):
        REGISTRY[name].factory(model, optax.sgd(0.1), **{key: 0})
    assert "training" in inspect.signature(REGISTRY[name].factory).parameters


def test_an_optimizer_is_a_trainer_with_the_defaults():
    optimizer = optax.sgd(0.1)
    assert as_trainer(optimizer) == Trainer(optimizer, epochs=1, batch_size=10)
    trainer = Trainer(optimizer, epochs=3, clip_norm=1.0)
    assert as_trainer(trainer) == trainer
    assert as_trainer(trainer, {"epochs": 2}) == Trainer(optimizer, epochs=2, clip_norm=1.0)


def test_a_trainer_and_its_fields_one_by_one_are_the_same():
    start = fm.models.mlp(cases.task(), hidden=(8,)).init(jax.random.key(0))
    first, *others = (
        jax.jit(algorithm.train)(ROUND, start, (), cases.data_of(cases.task(), 3))
        for algorithm in (
            fedavg(SGD, epochs=2, batch_size=4, clip_norm=0.5),
            fedavg(Trainer(SGD, epochs=2, batch_size=4, clip_norm=0.5)),
            fedavg(Trainer(SGD, epochs=9, batch_size=4), epochs=2, clip_norm=0.5),
        )
    )
    for result in others:
        chex.assert_trees_all_equal(result, first)


@pytest.mark.parametrize(
    ("precision", "written"), [("float32", "HIGHEST"), ("tensorfloat32", "HIGH,"), ("bfloat16", "DEFAULT")]
)
def test_products_are_computed_in_the_precision_of_the_trainer(params, data, precision, written):
    fit = Trainer(SGD, precision=precision).supervised(apply)
    program = str(jax.make_jaxpr(lambda params: fit(ROUND, params, data))(params))
    products = [line for line in program.splitlines() if "precision=" in line]
    assert products
    assert all(written in line for line in products)
