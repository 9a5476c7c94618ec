import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_masks.models import build_model, cnn, femnist_cnn, mlp, resnet9, resnet20
from fedjax_masks.models.compaction import compact, parameter_count

DIGITS = SimpleNamespace(input_shape=(8, 8, 1), num_classes=10)
SMALL = SimpleNamespace(input_shape=(16, 16, 3), num_classes=10)


@pytest.fixture(autouse=True)
def in_float64():
    """Other sums round otherwise; what is the same in float64 is the same function."""
    with jax.enable_x64(True):
        yield


def random_params(model, rng):
    def draw(leaf):
        scale = math.sqrt(2 / math.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.3
        return scale * rng.normal(size=leaf.shape)

    return jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(0)))


def images(task, batch=4):
    return np.random.default_rng(7).uniform(-1, 1, (batch, *task.input_shape))


def at(params, path):
    for key in path:
        params = params[key]
    return params


def outputs(model):
    return [kernel.outputs for kernel in model.kernels]


def kill_filters(model, params, rng, share=0.5):
    """Zeroes whole columns of every kernel but the last, and some inputs of every kernel but the first."""
    for kernel in model.kernels[:-1]:
        at(params, kernel.path)[..., rng.random(kernel.outputs) < share] = 0
    for kernel in model.kernels[1:]:
        at(params, kernel.path)[..., rng.random(kernel.shape[-2]) < share / 4, :] = 0


def assert_same_logits(model, params, smaller, small_params, task):
    x = images(task)
    both = jax.jit(lambda params, small_params: (model.apply(params, x), smaller.apply(small_params, x)))
    expected, got = both(params, small_params)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


CASES = [
    ("mlp", DIGITS, {"hidden": (20, 12)}),
    ("lenet", SMALL, {}),
    ("cifar-cnn", SMALL, {}),
    ("femnist-cnn", DIGITS, {}),
    ("cnn", DIGITS, {"norm": "batch"}),
    ("vgg16", SMALL, {"channels": (8,) * 13, "hidden": (12, 10)}),
    ("resnet9", DIGITS, {"channels": (8, 10, 12, 14), "norm": None}),
    ("resnet18", DIGITS, {"channels": (8, 10, 12, 14), "norm": None}),
]
SLOW = {"lenet", "cifar-cnn", "vgg16", "resnet18"}  # their layers are those of the others


each_case = pytest.mark.parametrize(
    ("name", "task", "options"),
    [pytest.param(*case, id=case[0], marks=[pytest.mark.slow] if case[0] in SLOW else []) for case in CASES],
)


@each_case
def test_same_logits_and_fewer_parameters(name, task, options):
    rng = np.random.default_rng(0)
    model = build_model(name, task, **options)
    params = random_params(model, rng)
    kill_filters(model, params, rng)
    for (
        kernel
    ) in model.kernels:  # half of the constants are zero, so that every model has something to remove
        path = kernel.norm_paths[1] if kernel.norm else kernel.bias
        at(params, path)[rng.random(kernel.outputs) < 0.5] = 0
    smaller, small_params = compact(model, params)
    assert parameter_count(small_params) < parameter_count(params)
    assert smaller.name == model.name
    assert jax.tree.map(np.shape, small_params) == jax.tree.map(
        lambda leaf: leaf.shape, jax.eval_shape(smaller.init, jax.random.key(0))
    )
    assert_same_logits(model, params, smaller, small_params, task)


@each_case
def test_nothing_is_removed_where_nothing_is_dead(name, task, options):
    model = build_model(name, task, **options)
    params = random_params(model, np.random.default_rng(0))
    smaller, small_params = compact(model, params)
    assert outputs(smaller) == outputs(model)
    jax.tree.map(np.testing.assert_array_equal, small_params, params)


def mlp_by_hand(params, x):
    h = x.reshape(len(x), -1).astype(np.float64)
    for name in sorted(params)[:-1]:
        h = np.maximum(h @ params[name]["kernel"] + params[name]["bias"], 0)
    last = params[max(params)]
    return h @ last["kernel"] + last["bias"]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), density=st.floats(0.0, 1.0), depth=st.integers(1, 4))
def test_unstructured_masks_on_perceptrons(seed, density, depth):
    rng = np.random.default_rng(seed)
    model = mlp(SimpleNamespace(input_shape=(5,), num_classes=3), hidden=(6,) * depth)
    params = random_params(model, rng)
    for kernel in model.kernels:
        at(params, kernel.path)[rng.random(kernel.shape) >= density] = 0
    smaller, small_params = compact(model, params)
    small_params = jax.tree.map(np.asarray, small_params)
    x = rng.normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_allclose(mlp_by_hand(small_params, x), mlp_by_hand(params, x), rtol=1e-10, atol=1e-10)
    assert min(outputs(smaller)) >= 1
    for kernel in smaller.kernels[:-1]:  # a fixpoint: what is left is alive and read
        reader = at(small_params, smaller.kernels[kernel.successor].path)
        if kernel.outputs > 1:
            assert at(small_params, kernel.path).any(axis=0).all()
            assert reader.any(axis=1).all()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_exactly_the_dead_filters_go(data):
    model = femnist_cnn(DIGITS).rebuild((4, 5, 6, 10))
    params = random_params(model, np.random.default_rng(0))
    alive = []
    for kernel in model.kernels[:-1]:
        dead = data.draw(st.sets(st.integers(0, kernel.outputs - 1), max_size=kernel.outputs - 1))
        at(params, kernel.path)[..., sorted(dead)] = 0
        alive.append(kernel.outputs - len(dead))
    smaller, small_params = compact(model, params)
    assert outputs(smaller) == [*alive, 10]
    again, _ = compact(smaller, small_params)
    assert outputs(again) == outputs(smaller)


def test_removal_cascades_in_both_directions():
    model = mlp(DIGITS, hidden=(6, 5, 4))
    params = random_params(model, np.random.default_rng(0))
    params["dense2"]["kernel"][:, 2] = 0
    params["dense2"]["kernel"][3, [0, 1, 3, 4]] = (
        0  # neuron 3 of the first layer is read by the dead one alone
    )
    params["dense3"]["kernel"][[0, 1, 3, 4], 1] = 0  # neuron 1 of the third layer reads the dead one alone
    smaller, small_params = compact(model, params)
    assert outputs(smaller) == [5, 4, 3, 10]
    x = images(DIGITS)
    small_params = jax.tree.map(np.asarray, small_params)
    np.testing.assert_allclose(mlp_by_hand(small_params, x), mlp_by_hand(params, x), rtol=1e-10, atol=1e-10)


def test_constant_is_folded_into_unpadded_readers_only():
    """``conv2`` of femnist-cnn is unpadded, that of cnn padded: at the border a constant is not one."""
    rng = np.random.default_rng(0)
    for build, kept in ((femnist_cnn, 31), (cnn, 32)):
        model = build(DIGITS)
        params = random_params(model, rng)
        params["conv1"]["kernel"][..., 3] = 0
        params["conv1"]["bias"][3] = 0.7
        assert outputs(compact(model, params)[0])[0] == kept
        params["conv1"]["bias"][3] = -0.7  # relu silences it: nothing to fold
        assert outputs(compact(model, params)[0])[0] == 31


def test_fold_into_dense_by_hand():
    model = cnn(DIGITS)
    params = random_params(model, np.random.default_rng(0))
    params["conv2"]["kernel"][..., 5] = 0
    params["conv2"]["bias"][5] = 0.7
    smaller, small_params = compact(model, params)
    assert outputs(smaller) == [32, 63, 128, 10]
    pixels = params["dense1"]["kernel"].reshape(4, 64, 128)
    folded = params["dense1"]["bias"] + 0.7 * pixels[:, 5].sum(axis=0)
    np.testing.assert_allclose(small_params["dense1"]["bias"], folded, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(small_params["dense1"]["kernel"], np.delete(pixels, 5, 1).reshape(-1, 128))
    assert_same_logits(model, params, smaller, small_params, DIGITS)


def test_channels_under_group_norm_stay():
    model = cnn(DIGITS, norm="group")
    params = random_params(model, np.random.default_rng(0))
    params["conv1"]["kernel"][..., :7] = 0
    params["conv1"]["norm"]["bias"][:] = 0
    params["dense1"]["kernel"][:, 0] = 0
    assert outputs(compact(model, params)[0]) == [32, 64, 127, 10]


@pytest.mark.parametrize(
    ("build", "task", "channels"),
    [(resnet9, SMALL, (4,) * 4), pytest.param(resnet20, DIGITS, (4,) * 3, marks=pytest.mark.slow)],
    ids=["resnet9", "resnet20"],
)
def test_batch_norm_emits_its_bias(build, task, channels):
    model = build(task, channels=channels)
    params = random_params(model, np.random.default_rng(0))
    block = params["block2"]["conv1"]
    block["kernel"][..., :3] = 0
    block["norm"]["bias"][:3] = (-0.5, 0.5, 0.0)
    smaller, small_params = compact(model, params)
    inner = {kernel.name: kernel.outputs for kernel in smaller.kernels}
    assert inner.pop("block2/conv1") == 2  # 0.5 would have to be folded through padding: it stays
    assert {width for name, width in inner.items() if name != "dense"} == {4}
    assert_same_logits(model, params, smaller, small_params, task)


def test_a_layer_keeps_its_last_channel():
    model = femnist_cnn(DIGITS)
    params = jax.tree.map(np.zeros_like, random_params(model, np.random.default_rng(0)))
    params["dense2"]["bias"] += np.arange(10, dtype=np.float32)
    smaller, small_params = compact(model, params)
    assert outputs(smaller) == [1, 1, 1, 10]
    logits = jax.jit(smaller.apply)(small_params, images(DIGITS))
    np.testing.assert_array_equal(logits, np.broadcast_to(np.arange(10), (4, 10)))
