"""FedPM against its paper: Bernoulli masks, straight-through gradients, counted posteriors, bytes."""

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
from fedjax_masks.algorithms.fedpm import draw, straight_through_less
from fedjax_masks.communication import codecs, size, visitor
from fedjax_masks.core.algorithm import Round
from fedjax_masks.core.errors import UserError
from fedjax_masks.costs.devices import make_population
from fedjax_masks.simulation import make_simulation

LAYERS = ("dense1", "dense2")
STILL = optax.sgd(0.0)


def mlp(hidden=8):
    return fm.models.mlp(cases.task(), hidden=(hidden,))


@cache
def start(optimizer=STILL, hidden=8, **options):
    algorithm = fm.fedpm(mlp(hidden), optimizer, batch_size=4, **options)
    return algorithm, algorithm.init(jax.random.key(0), cases.task())


def counted(server, share, masks):
    """The server after ``masks`` masks with a share of ones, the same in every place."""
    ones = {name: jnp.full(old.shape, round(share * masks), jnp.int32) for name, old in server.ones.items()}
    return server._replace(ones=ones, masks=jnp.int32(masks))


def send(algorithm, server):
    return algorithm.send(Round(jax.random.key(1), jnp.int32(0)), server, ())


def upload_of(algorithm, state, client=3):
    message = visitor.poison(send(algorithm, state.server))
    own = jax.tree.map(lambda rows: rows[client], state.clients)
    round, data = Round(jax.random.key(1), jnp.int32(0)), cases.data_of(cases.task(), client)
    return jax.jit(algorithm.train)(round, message, own, data)[1]


def mask_of(upload):
    return codecs.entropy().unpack(upload)


def merged(algorithm, server, masks, index=0):
    """The server after a round in which clients uploaded masks."""
    uploads = [codecs.entropy().pack(None, mask, ())[0] for mask in masks]
    round = Round(jax.random.key(9), jnp.int32(index))
    parts = [algorithm.receive(round, server, (), upload, jnp.float32(3))[1] for upload in uploads]
    return algorithm.merge(round, server, jax.tree.map(lambda *leaves: sum(leaves), *parts))[0]


def some_masks(server, num, seed):
    rng = np.random.default_rng(seed)
    return [{n: jnp.asarray(rng.random(a.shape) < 0.4) for n, a in server.ones.items()} for _ in range(num)]


@pytest.fixture(scope="module")
def simulation():
    """Of clients that all fail."""
    population = make_population("rpi4@wifi,dropout=0.999999", cases.task().num_clients)
    return make_simulation(cases.algorithm("fedpm"), cases.task(), cohort=5, chunk=2, population=population)


def test_frozen_weights_are_signed_constants_that_stay_and_cost_their_size_once(simulation):
    server = jax.device_get(simulation.init()).server
    weights = server.weights
    after = merged(cases.algorithm("fedpm"), server, some_masks(server, 2, 0))
    assert after.masks == 2
    chex.assert_trees_all_equal(jax.device_get(after.weights), weights)
    assert simulation.setup_bytes == 4 * sum(leaf.size for leaf in jax.tree.leaves(weights))
    for layer in LAYERS:
        kernel = weights[layer]["kernel"]
        np.testing.assert_allclose(np.abs(kernel), np.sqrt(2 / kernel.shape[0]), rtol=1e-6)
        assert 0 < np.mean(kernel > 0) < 1


def test_gradient_passes_straight_through_the_draw():
    """Equation 3: dL/ds = dL/dm * sigmoid'(s)."""
    rng = np.random.default_rng(0)
    scores, draws, weight = rng.normal(size=(3, 7, 5)).astype(np.float32)
    draws, x, dy = rng.random((7, 5), np.float32), rng.normal(size=7).astype(np.float32), np.arange(5.0)
    loss = lambda s: jnp.sum((x @ (weight * straight_through_less(draws, jax.nn.sigmoid(s)))) * dy)
    value, slope = jax.value_and_grad(loss)(scores)
    soft = 1 / (1 + np.exp(-np.asarray(scores, np.float64)))
    np.testing.assert_allclose(value, np.sum((x @ (weight * (draws < soft))) * dy), rtol=1e-4)
    np.testing.assert_allclose(slope, x[:, None] * dy * weight * soft * (1 - soft), rtol=1e-4, atol=1e-6)


def test_local_training_against_numpy():
    """Every step draws a mask of its own; what goes up is drawn from what they led to."""
    task, lr = cases.task(), 20.0
    algorithm, state = start(optax.sgd(lr), epochs=2)
    state = state._replace(server=counted(state.server, 0.25, 8))
    upload = upload_of(algorithm, state)
    order_key, step_key, upload_key = jax.random.split(jax.random.key(1), 3)
    weights = reference.layers(state.server.weights)
    scores = [np.full(w.shape, np.log(0.25 / 0.75)) for w in weights[::2]]

    def drawn(key):
        soft = {name: jnp.float32(1 / (1 + np.exp(-s))) for name, s in zip(LAYERS, scores)}
        return [np.asarray(mask, bool) for mask in draw(key, soft, jnp.less).values()]

    untrained = drawn(upload_key)
    batches = reference.minibatches(task, 3, order_key, batch_size=4, epochs=2)
    for step, (x, y) in enumerate(batches):
        masks = drawn(jax.random.fold_in(step_key, step))
        masked = [w * m for w, m in zip(weights[::2], masks)]
        slopes = reference.gradient([masked[0], weights[1], masked[1], weights[3]], x, y)[::2]
        soft = [1 / (1 + np.exp(-s)) for s in scores]
        scores = [s - lr * g * w * p * (1 - p) for s, g, w, p in zip(scores, slopes, weights[::2], soft)]
    expected = drawn(upload_key)
    assert any((a != b).any() for a, b in zip(expected, untrained))
    for name, mask in zip(LAYERS, expected):
        np.testing.assert_array_equal(mask_of(upload)[name], mask)


def test_the_server_counts_ones_and_forgets_them_at_a_reset():
    algorithm, state = start(reset=2)
    rounds = [some_masks(state.server, 2, seed) for seed in range(3)]
    sums = [{n: sum(np.asarray(m[n], int) for m in masks) for n in LAYERS} for masks in rounds]
    expected = [sums[0], {n: sums[0][n] + sums[1][n] for n in LAYERS}, sums[2]]
    server = state.server
    for index, (masks, ones, total) in enumerate(zip(rounds, expected, (2, 4, 2))):
        server = merged(algorithm, server, masks, index)
        chex.assert_trees_all_equal(server.ones, {n: a.astype(np.int32) for n, a in ones.items()})
        assert server.masks == total
        for name in LAYERS:
            share = ones[name] / total
            assert server.mask[name][share == 1].all()
            assert not server.mask[name][share == 0].any()


def test_a_round_without_uploads_changes_nothing(simulation):
    """With a reset in every round, and clients that all fail."""
    state = simulation.init()
    before = jax.device_get(counted(state.server, 0.25, 8))
    after, (metrics,) = simulation.run(state._replace(server=jax.device_put(before)), 0, 2)
    assert (metrics.train["lost"] == 1).all()
    chex.assert_trees_all_equal(jax.device_get(after.server), before)


@pytest.mark.parametrize(("masks", "error"), [(1, 1e-6), (7, 1e-6), (255, 1e-6), (1000, 1 / 510)])
def test_a_message_is_8_bits_per_weight_and_exact_up_to_255_masks(masks, error):
    algorithm, state = start()
    rng = np.random.default_rng(masks)
    ones = {
        n: jnp.asarray(rng.integers(0, masks + 1, a.shape), jnp.int32) for n, a in state.server.ones.items()
    }
    message = send(algorithm, state.server._replace(ones=ones, masks=jnp.int32(masks)))
    assert size.bits(message) == 8 * (6 * 8 + 8 * 3) + 32 * len(LAYERS)
    for name, count in ones.items():
        part = message.counts.tree[name]
        received = part.codes * part.scale
        np.testing.assert_allclose(received, count / masks, atol=error + 1e-7)


def test_the_first_message_is_empty_and_means_one_half():
    algorithm, state = start(hidden=512)
    assert size.bits(send(algorithm, state.server)) == 0
    upload = upload_of(algorithm, state)
    share = np.mean(np.concatenate([np.ravel(mask) for mask in mask_of(upload).values()]))
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / 4608)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 0.5, 1.0])
def test_an_upload_costs_the_entropy_of_its_mask(share):
    algorithm, state = start(hidden=512)
    state = state._replace(server=counted(state.server, share, 100))
    upload = upload_of(algorithm, state)
    held = np.concatenate([np.ravel(mask) for mask in mask_of(upload).values()])
    p = np.clip(share, 0.01, 0.99)
    assert abs(held.mean() - p) < 4 * np.sqrt(p * (1 - p) / held.size)
    entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    assert size.bits(upload) / held.size == pytest.approx(entropy, abs=0.02)


def test_sure_probabilities_give_one_mask_and_no_other():
    algorithm, state = start(margin=1e-7)
    (mask,) = some_masks(state.server, 1, 5)
    state = state._replace(server=merged(algorithm, state.server, [mask] * 4))
    chex.assert_trees_all_equal(mask_of(upload_of(algorithm, state)), mask)
    inputs = jnp.asarray(cases.task().test_inputs[:8])
    params = {n: {**p, "kernel": p["kernel"] * mask[n]} for n, p in state.server.weights.items()}
    np.testing.assert_allclose(
        algorithm.predict["global"](state.server, None, inputs), mlp().apply(params, inputs), rtol=1e-6
    )


@pytest.mark.parametrize("options", [{"margin": 0.0}, {"margin": 0.5}, {"reset": 0}])
def test_bad_options_are_named(options):
    (name,) = options
    with pytest.raises(UserError, match=f"{name}=.*: must be"):
        fm.fedpm(mlp(), STILL, **options)
