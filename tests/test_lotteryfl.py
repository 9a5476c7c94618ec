"""LotteryFL against its paper: pruning, rewinding, means over owners, and bytes."""

from functools import cache, reduce

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.algorithms.lotteryfl import Client, Upload, keep_largest, split
from fedjax_masks.communication import size
from fedjax_masks.communication.payload import Conditional, Masked
from fedjax_masks.communication.visitor import poison
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Round
from fedjax_masks.core.errors import UserError
from fedjax_masks.data.tasks import rows_of
from fedjax_masks.simulation import make_simulation

LAYERS = ("dense1", "dense2")
SIZES = {"dense1": 6 * 8, "dense2": 8 * 3}
BIASES = 8 + 3
ROUND = Round(jax.random.key(1), jnp.int32(0))


def mlp():
    return fm.models.mlp(cases.task(), hidden=(8,))


@cache
def lotteryfl(optimizer=None, **options):
    """Every client prunes in every round, unless told otherwise."""
    options = {"epochs": 1, "batch_size": 4, "held_out": 0, "threshold": 0.0} | options
    return fm.lotteryfl(mlp(), optimizer or optax.sgd(0.0), **options)


def other_params(seed=5):
    """Weights that are not the initial ones."""
    return jax.tree.map(lambda a: a + 0.1, mlp().init(jax.random.key(seed)))


def some_mask(seed, share=0.9):
    rng = np.random.default_rng(seed)
    shapes = {"dense1": (6, 8), "dense2": (8, 3)}
    return {name: jnp.asarray(rng.random(shape) < share) for name, shape in shapes.items()}


def visit(algorithm, state, client=3, mask=None):
    """One client's round, poisoned on its way; both ends know the mask."""
    mask = jax.tree.map(lambda a: a[client], state.profiles) if mask is None else mask
    message = algorithm.send(ROUND, state.server, mask)
    data = cases.data_of(cases.task(), client)
    before = Client(state.server.params, mask)
    new, upload, info = jax.jit(algorithm.train)(ROUND, poison(message), before, data)
    return new, message, upload, info


def started(algorithm, params=None):
    state = algorithm.init(jax.random.key(0), cases.task())
    return state if params is None else state._replace(server=state.server._replace(params=params))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("target", [0.1, 0.5, 0.9])
def test_the_smallest_living_weights_are_pruned_down_to_the_target(share, target):
    rng = np.random.default_rng(1)
    weights, alive = rng.normal(size=(9, 11)).astype(np.float32), rng.random((9, 11)) < 0.7
    living = alive.sum()
    number = max(round((1 - share) * living), min(round(target * 99), living))
    order = np.argsort(np.where(alive, -np.abs(weights), np.inf), axis=None, kind="stable")
    expected = np.zeros(99, bool)
    expected[order[:number]] = True
    kept = jax.jit(keep_largest, static_argnums=(2, 3))(weights, alive, share, target)
    np.testing.assert_array_equal(kept, expected.reshape(9, 11))


def test_density_falls_by_a_fifth_until_half_is_left():
    kept, densities = jnp.ones(1000, bool), []
    weights = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)
    prune = jax.jit(keep_largest, static_argnums=(2, 3))
    for _ in range(6):
        kept = prune(weights, kept, 0.2, 0.5)
        densities.append(float(kept.mean()))
    np.testing.assert_allclose(densities, [0.8, 0.64, 0.512, 0.5, 0.5, 0.5], atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_client_that_does_well_prunes_the_received_weights_and_rewinds(threshold):
    """A learning rate of 0 leaves the weights where training started."""
    state = started(lotteryfl(), other_params())
    before = some_mask(4)
    new, _, upload, info = visit(lotteryfl(threshold=threshold, held_out=2), state, mask=before)
    pruned = not threshold
    assert 0 < info.extra["validation_accuracy"] < 1
    assert upload.mask.flag == pruned
    for name in LAYERS:
        received = np.where(before[name], state.server.params[name]["kernel"], 0)
        expected = np.asarray(before[name])
        if pruned:
            number = round(0.8 * expected.sum())
            least = np.sort(np.abs(received[expected]))[-number]
            expected = expected & (np.abs(received) >= least)
        source = state.server.initial if pruned else state.server.params
        np.testing.assert_array_equal(new.mask[name], expected)
        np.testing.assert_array_equal(
            new.params[name]["kernel"], np.where(expected, source[name]["kernel"], 0)
        )
        np.testing.assert_array_equal(new.params[name]["bias"], source[name]["bias"])


def test_accuracy_is_that_of_the_received_weights_on_the_examples_held_out():
    task, state = cases.task(), started(lotteryfl(), other_params())
    mask = some_mask(4)
    _, _, _, info = visit(lotteryfl(threshold=0.0, held_out=2), state, mask=mask)
    held = rows_of(task.train, 3)[1::2]
    params = {n: {**p, "kernel": p["kernel"] * mask[n]} for n, p in state.server.params.items()}
    guesses = np.argmax(mlp().apply(params, jnp.asarray(task.inputs[held])), -1)
    assert info.extra["validation_accuracy"] == pytest.approx(np.mean(guesses == task.labels[held]))
    assert info.work.examples == task.train.sizes[3] - len(held)


@pytest.mark.parametrize("period", [2, 3, 10])
def test_examples_are_held_out_once_and_evenly(period):
    task = cases.task()
    for client in range(task.num_clients):
        data, mine = cases.data_of(task, client), rows_of(task.train, client)
        training, validation = split(data, period)
        parts = [np.asarray(part.rows)[: int(part.size)] for part in (training, validation)]
        np.testing.assert_array_equal(parts[1], mine[period - 1 :: period])
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.sort(mine))
        assert training.longest == training.size
        assert validation.longest == validation.size


def test_the_server_takes_each_weights_mean_over_its_owners():
    algorithm = lotteryfl()
    state = started(algorithm, other_params())
    weights = np.array([3.0, 1.0, 2.0])
    masks = [*(some_mask(seed, 0.5) for seed in range(2)), jax.tree.map(lambda a: a[7], state.profiles)]
    flags = [True, True, False]
    rng = np.random.default_rng(3)
    updates = [
        jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), state.server.params)
        for _ in weights
    ]
    kept = [{n: {"kernel": m[n], "bias": jnp.ones(1, bool)} for n in LAYERS} for m in masks]
    parts = []
    for update, keep, mask, flag, weight in zip(updates, kept, masks, flags, weights):
        upload = poison(Upload(Masked(update, keep), Conditional(jnp.array(flag), mask)))
        profile, part = algorithm.receive(ROUND, state.server, masks[2], upload, jnp.float32(weight))
        chex.assert_trees_all_equal(profile, mask)  # a new mask, or the old one
        parts.append(part)
    server, _ = algorithm.merge(ROUND, state.server, reduce(trees.add, parts))
    chex.assert_trees_all_equal(server.initial, state.server.initial)
    for name in LAYERS:
        owners = sum(w * np.asarray(m[name]) for w, m in zip(weights, masks))
        total = sum(w * np.where(m[name], u[name]["kernel"], 0) for w, m, u in zip(weights, masks, updates))
        mean = np.divide(total, owners, out=np.zeros_like(total), where=owners > 0)
        old = state.server.params[name]["kernel"]
        np.testing.assert_allclose(server.params[name]["kernel"], old + mean, rtol=1e-5, atol=1e-6)


def test_bytes_are_those_of_living_weights_and_of_a_mask_that_changes():
    algorithm = lotteryfl(optax.sgd(0.1))
    state, densities = started(algorithm, other_params()), []
    mask = jax.tree.map(lambda a: a[3], state.profiles)
    for _ in range(6):
        alive = sum(int(m.sum()) for m in mask.values())
        new, message, upload, _ = visit(algorithm, state, mask=mask)
        left = sum(int(m.sum()) for m in new.mask.values())
        assert size.bits(message) == 32 * (alive + BIASES)
        assert size.bits(upload) == 32 * (left + BIASES) + (sum(SIZES.values()) if left < alive else 0)
        densities.append(left / sum(SIZES.values()))
        mask = new.mask
    assert densities[-1] == densities[-2] == 0.5 < densities[0]


@pytest.mark.slow
def test_clients_and_server_agree_on_every_mask():
    task = cases.task()
    simulation = make_simulation(lotteryfl(optax.sgd(0.1), epochs=2), task, cohort=9, chunk=4)
    state, (metrics,) = simulation.run(simulation.init(), 0, 4)
    chex.assert_trees_all_equal(state.clients.mask, state.profiles)
    assert metrics.mean("density")[-1] < 1
    for name in LAYERS:
        assert not np.asarray(state.clients.params[name]["kernel"])[
            ~np.asarray(state.clients.mask[name])
        ].any()
    assert simulation.setup_bytes == 4 * (sum(SIZES.values()) + BIASES)


@pytest.mark.parametrize(
    "options",
    [{"prune_share": 1.5}, {"target": 0.0}, {"threshold": 2.0}, {"held_out": 1}, {"held_out": -1}],
)
def test_options_out_of_range_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(UserError, match=f"^{name}={value}: must be "):
        lotteryfl(**options)
