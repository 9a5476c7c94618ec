"""HeteroFL against its paper: slices, their mean, their bytes and what they save."""

import math

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.algorithms.heterofl import present
from fedjax_masks.communication import size, visitor
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Round
from fedjax_masks.core.errors import UserError
from fedjax_masks.models.compaction import keep_outputs
from fedjax_masks.models.slicing import ownership, put_back, scaled, sliced, take

SGD = optax.sgd(0.1, momentum=0.5)
PLAIN = {"scaler": False, "own_classes": False}


def row(rows, client):
    return jax.tree.map(lambda leaf: leaf[client], rows)


def started(algorithm, task):
    """The first state, and a client's training."""
    return jax.jit(lambda key: algorithm.init(key, task))(jax.random.key(0)), jax.jit(algorithm.train)


def random_params(model):
    """Drawn by NumPy: compiling ``init`` is slow."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


WIDTHS = (32, 8)


@pytest.fixture(scope="module")
def plain():
    """A perceptron of 32 neurons, with slices of 32 and 8: the algorithm, its first state, and training."""
    algorithm = fm.heterofl(
        fm.models.mlp(cases.task(), hidden=WIDTHS[:1]),
        optax.sgd(0.1),
        batch_size=4,
        ratios=(1.0, WIDTHS[1] / WIDTHS[0]),
        **PLAIN,
    )
    return algorithm, *started(algorithm, cases.task())


def round_of(key):
    return Round(jax.random.key(key), jnp.int32(0))


def test_a_slice_is_the_model_without_the_other_channels():
    task = cases.task((8, 8, 1))
    model = fm.models.cnn(task)
    params = random_params(model)
    small = sliced(model, 0.25)
    owned = ownership(model, [small])
    part = jax.jit(lambda params: take(params, owned, 0))(params)
    keep = {k.name: np.arange(k.outputs) < math.ceil(0.25 * k.outputs) for k in model.kernels[:-1]}
    chex.assert_trees_all_equal(part, keep_outputs(model, params, keep)[1])
    x = task.inputs[:3]

    @jax.jit
    def there_and_back(part):
        whole = put_back(part, params, owned, 0)
        return take(whole, owned, 0), small.apply(part, x), model.apply(whole, x)

    back, *logits = there_and_back(part)
    chex.assert_trees_all_equal(back, part)
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)
    assert np.ptp(logits[0]) > 0.1


@pytest.mark.parametrize("name", ["resnet9", pytest.param("resnet20", marks=pytest.mark.slow)])
def test_residual_networks_have_slices(name):
    model = fm.models.build_model(name, cases.task((8, 8, 1)), norm="batch")
    small = sliced(model, 0.5)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    part = jax.eval_shape(lambda: take(trees.zeros_like(shapes), ownership(model, [small]), 0))
    chex.assert_trees_all_equal_shapes(part, jax.eval_shape(small.init, jax.random.key(0)))


def test_every_parameter_is_the_mean_of_its_owners(plain):
    task, (algorithm, state, train) = cases.task(), plain
    train_narrow = {
        width: jax.jit(fm.fedavg(fm.models.mlp(task, hidden=(width,)), optax.sgd(0.1), batch_size=4).train)
        for width in WIDTHS
    }
    before = state.server.params
    total, weights = jax.tree.map(np.zeros_like, before), jax.tree.map(np.zeros_like, before)
    contributions = []
    receive = jax.jit(lambda round, *rest: algorithm.receive(round, state.server, *rest))
    for client in (3, 4, 7):
        round, number = round_of(client), float(task.train.sizes[client])
        width = WIDTHS[client % 2]
        data = cases.data_of(task, client, tier=client % 2)
        profile = row(state.profiles, client)
        message = visitor.poison(algorithm.send(round, state.server, profile))
        _, upload, _ = train(round, message, row(state.clients, client), data)
        after, part = receive(round, profile, visitor.poison(upload), jnp.float32(number))
        assert after == profile == client % 2
        contributions.append(part)
        # The slice, trained as a model of its own.
        start = {
            "dense1": {
                "kernel": before["dense1"]["kernel"][:, :width],
                "bias": before["dense1"]["bias"][:width],
            },
            "dense2": {"kernel": before["dense2"]["kernel"][:width], "bias": before["dense2"]["bias"]},
        }
        _, update, _ = train_narrow[width](round, start, (), data)
        for layer, name in (
            ("dense1", "kernel"),
            ("dense1", "bias"),
            ("dense2", "kernel"),
            ("dense2", "bias"),
        ):
            place = tuple(slice(n) for n in update[layer][name].shape)
            total[layer][name][place] += number * np.asarray(update[layer][name])
            weights[layer][name][place] += number
    summed = jax.tree.map(lambda *parts: sum(parts), *contributions)
    server, _ = jax.jit(algorithm.merge)(round_of(0), state.server, summed)
    expected = jax.tree.map(lambda w, t, n: w + t / np.maximum(n, 1), before, total, weights)
    chex.assert_trees_all_close(server.params, expected, rtol=1e-5, atol=1e-6)


def test_bytes_and_flops_are_those_of_the_slice(plain):
    task, (algorithm, state, train) = cases.task(), plain
    flops = []
    for tier, width in enumerate(WIDTHS):
        message = algorithm.send(round_of(1), state.server, row(state.profiles, tier))
        _, upload, info = train(
            round_of(1), message, row(state.clients, tier), cases.data_of(task, tier, tier)
        )
        parameters = (6 + 1) * width + (width + 1) * 3
        assert size.bits(message) == size.bits(upload) == 32 * parameters
        np.testing.assert_allclose(info.extra["density"], parameters / trees.size(state.server.params))
        flops.append(float(info.work.flops / info.work.steps))
    assert flops[1] < 0.4 * flops[0]


@pytest.mark.parametrize("scaler", [False, True])
def test_a_client_predicts_with_its_slice(plain, scaler):
    task, (_, state, _) = cases.task(), plain
    model, ratios = fm.models.mlp(task, hidden=WIDTHS[:1]), (1.0, 0.25)
    algorithm = fm.heterofl(model, SGD, ratios=ratios, scaler=scaler)
    x = task.test_inputs[:5]
    predict = jax.jit(lambda client: algorithm.predict["personal"](state.server, client, x))
    for tier, ratio in enumerate(ratios):
        small = sliced(model, ratio)
        part = take(state.server.params, ownership(model, [small]), 0)
        apply = scaled(small, ratio) if scaler else small.apply
        np.testing.assert_allclose(predict(row(state.clients, tier)), apply(part, x), rtol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
def test_what_a_slice_passes_on_is_as_large_as_what_the_whole_model_does(kind):
    task = cases.task({"mlp": (6,), "cnn": (8, 8, 1)}[kind])
    model = fm.models.cnn(task) if kind == "cnn" else fm.models.mlp(task, hidden=(128, 128, 128))
    ratio = 0.0625
    small = sliced(model, ratio)
    owned = ownership(model, [small])

    x = task.inputs[:20]

    @jax.jit
    def spreads(key):
        params = model.init(key)
        part = take(params, owned, 0)
        return [
            jnp.std(y) for y in (model.apply(params, x), scaled(small, ratio)(part, x), small.apply(part, x))
        ]

    keys = jax.random.split(jax.random.key(0), 50)
    whole, narrow, alone = np.mean([spreads(key) for key in keys], axis=0)
    assert alone < 0.1 * whole
    assert 0.5 * whole < narrow < 2 * whole
    params = random_params(model)
    np.testing.assert_array_equal(jax.jit(scaled(model, 1.0))(params, x), jax.jit(model.apply)(params, x))


def test_a_client_leaves_classes_alone_that_it_does_not_have():
    task = cases.task()
    algorithm = fm.heterofl(fm.models.mlp(task, hidden=(8,)), SGD, batch_size=4, ratios=(1.0, 0.5))
    state, train = started(algorithm, task)
    data = cases.data_of(task, 2)  # a single example
    label = int(data.labels[data.rows[0]])
    own = np.arange(3) == label
    np.testing.assert_array_equal(present(data, 3), own)
    profile = row(state.profiles, 2)
    message = visitor.poison(algorithm.send(round_of(1), state.server, profile))
    client, upload, _ = train(round_of(1), message, row(state.clients, 2), data)
    np.testing.assert_array_equal(client.classes, own)
    np.testing.assert_array_equal(upload.update.mask["dense2"]["kernel"], np.broadcast_to(own, (8, 3)))
    assert size.bits(upload) == 32 * ((6 + 1) * 8 + (8 + 1)) + 3

    @jax.jit
    def merged(upload):
        _, part = algorithm.receive(round_of(1), state.server, profile, upload, jnp.float32(1))
        return algorithm.merge(round_of(0), state.server, part)[0]

    after = merged(visitor.poison(upload))
    moved = jax.tree.map(lambda new, old: np.asarray(new != old), after.params, state.server.params)
    np.testing.assert_array_equal(moved["dense2"]["kernel"].any(0), own)
    np.testing.assert_array_equal(moved["dense2"]["bias"], own)
    logits = algorithm.predict["personal"](state.server, client, task.test_inputs[:5])
    np.testing.assert_array_equal(logits[:, ~own], 0)


@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_ratios_out_of_range_are_refused(ratio):
    with pytest.raises(UserError, match=r"^ratios=.*: must be"):
        fm.heterofl(fm.models.mlp(cases.task()), SGD, ratios=(ratio,))
