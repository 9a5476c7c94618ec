import math
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_masks.claims.nets import NETS, Net, parameter_count
from fedjax_masks.core.errors import UserError
from fedjax_masks.models import MODELS, build_model, mlp, resnet18, vgg11, vgg16
from fedjax_masks.models.functional import adaptive_average_pool, max_pool, relu_max_pool


class Problem(NamedTuple):
    input_shape: tuple[int, ...]
    num_classes: int


def problem(*input_shape, classes=10):
    return Problem(input_shape, classes)


DIGITS, MNIST, CIFAR = problem(8, 8, 1), problem(28, 28, 1), problem(32, 32, 3)
NARROW = {
    "mlp": {"hidden": (16, 8)},
    "vgg11": {"channels": (4,) * 8, "hidden": (8, 6)},
    "vgg16": {"channels": (4,) * 13, "hidden": (8, 6)},
    "vgg16-bn": {"channels": (4,) * 13, "hidden": (8, 6)},
    "resnet9": {"channels": (4, 6, 8, 10)},
    "resnet18": {"channels": (4, 6, 8, 10)},
    "resnet34": {"channels": (4, 6, 8, 10)},
    "resnet20": {"channels": (4, 6, 8)},
    "resnet32": {"channels": (4, 6, 8)},
}


@cache
def narrow(name, task=DIGITS):
    return build_model(name, task, **NARROW.get(name, {}))


@cache
def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def random_params(model, seed=0):
    """He-like parameters with non-zero biases, drawn by NumPy: compiling ``init`` is slow."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        scale = math.sqrt(2 / math.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.5
        return (scale * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, shapes(model))


def images(task, batch=3, seed=1):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (batch, *task.input_shape)).astype(np.uint8)


@pytest.mark.parametrize(
    "net",
    [
        pytest.param(
            net,
            marks=[pytest.mark.slow] if net.name in ("resnet34", "resnet32") else [],
            id=f"{net.name}-{net.num_classes}",
        )
        for net in (
            *NETS,
            Net("", "femnist-cnn", (28, 28, 1), 62, 1_206_590),
            Net("", "resnet34", (32, 32, 3), 10, 21_282_122),
        )
    ],
)
def test_published_parameter_counts(net):
    assert parameter_count(net.build()) == net.parameters


def test_vgg16_weights_alone():
    assert sum(math.prod(kernel.shape) for kernel in vgg16(CIFAR).kernels) == 16_786_136 * 8


def test_filters_of_published_networks():
    """One mask bit per convolution filter: the table of MPFL."""
    for model, filters in ((vgg11(CIFAR), 2_752), (resnet18(CIFAR), 4_800)):
        assert sum(kernel.outputs for kernel in model.kernels if kernel.kind == "conv") == filters


@pytest.mark.parametrize(
    ("split", "parameters", "activation"),
    [("conv1", 1_920, 16_384), ("conv2", 76_032, 8_192), ("conv4", 962_304, 4_096)],
)
def test_vgg11_split_sizes(split, parameters, activation):
    """Parameters and activation of the device part in EcoFed."""
    model = vgg11(CIFAR)
    params = shapes(model)
    device = {name: params[name] for name in model.splits[: model.splits.index(split) + 1]}
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    y, _ = jax.eval_shape(lambda p, x: model.forward(p, x, stop=split), device, x)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(device)) == parameters
    assert math.prod(y.shape) == activation


DEEP = ("vgg16", "vgg16-bn", "resnet34", "resnet32")  # longer rows of the stages of smaller ones
EACH = [pytest.param(name, marks=[pytest.mark.slow] if name in DEEP else []) for name in MODELS]
SIZES = {"digits": DIGITS, "mnist": MNIST}
SIZED = [
    pytest.param(
        name,
        task,
        # Paddings and poolings of the larger ones are among those of the smaller ones.
        marks=[pytest.mark.slow] if name in DEEP or (size == "mnist" and name[:3] in ("res", "vgg")) else [],
        id=f"{name}-{size}",
    )
    for name in MODELS
    for size, task in SIZES.items()
]


@pytest.mark.parametrize(("name", "task"), SIZED)
def test_every_model_takes_every_image_size(name, task):
    model = narrow(name, task)
    params = shapes(model)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    x = jax.ShapeDtypeStruct((5, *task.input_shape), jnp.uint8)
    logits = jax.eval_shape(model.apply, params, x)
    assert (logits.shape, logits.dtype) == ((5, 10), jnp.float32)


@pytest.mark.parametrize("name", EACH)
def test_kernels_describe_the_parameters(name):
    model = narrow(name)
    params = shapes(model)
    paths = {
        tuple(entry.key for entry in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    listed = set()
    for kernel in model.kernels:
        assert paths[kernel.path] == kernel.shape
        owned = [path for path in (kernel.bias, *kernel.norm_paths) if path is not None]
        assert all(paths[path] == (kernel.outputs,) for path in owned)
        listed |= {kernel.path, *owned}
        if kernel.successor is not None:
            assert model.kernels[kernel.successor].shape[-2] == kernel.repeats * kernel.outputs
    assert listed == set(paths)


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "lenet",
        "resnet9",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("vgg16", "resnet18")),
    ],
)
def test_permuting_the_outputs_of_a_kernel_and_its_reader_changes_nothing(name):
    """What ``successor`` and ``repeats`` promise."""
    model = narrow(name)
    params, x = random_params(model), images(DIGITS)
    permuted = jax.tree.map(lambda leaf: leaf, params)
    rng = np.random.default_rng(0)
    for kernel in model.kernels:
        if kernel.successor is None:
            continue
        order = rng.permutation(kernel.outputs)
        reader = model.kernels[kernel.successor].path
        for path in (kernel.path, kernel.bias, *kernel.norm_paths):
            if path is not None:
                _set(permuted, path, _get(permuted, path)[..., order])
        rows = (np.arange(kernel.repeats)[:, None] * kernel.outputs + order).ravel()
        _set(permuted, reader, np.take(_get(permuted, reader), rows, axis=-2))
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(permuted, x), apply(params, x), rtol=1e-4, atol=1e-4)
    assert sum(kernel.successor is not None for kernel in model.kernels) >= 2


@pytest.mark.parametrize(
    ("name", "split"),
    [("cnn", "conv2"), ("resnet9", "block1"), pytest.param("resnet20", "block4", marks=pytest.mark.slow)],
)
def test_cut_model_equals_whole(name, split):
    model = narrow(name)
    params, x = random_params(model), images(DIGITS)
    index = model.splits.index(split) + 1
    device = {key: params[key] for key in model.splits[:index]}
    server = {key: value for key, value in params.items() if key not in device}

    @jax.jit
    def cut(device, server, x):
        activation, _ = model.forward(device, x, stop=split)
        return model.forward(server, activation, start=split)[0], activation

    logits, activation = cut(device, server, x)
    np.testing.assert_allclose(logits, jax.jit(model.apply)(params, x), rtol=1e-5, atol=1e-5)
    assert activation.ndim == 4


def test_hook_sees_every_layer_and_replaces_it():
    model = build_model("cnn", DIGITS, norm="batch")
    params, x = random_params(model), images(DIGITS)

    def by_hand(layer, x):
        h = layer.op(x, layer.kernel)
        return layer.norm(h if layer.bias is None else h + layer.bias), x.shape[-1]

    logits, inputs = jax.jit(lambda p, x: model.forward(p, x, hook=by_hand))(params, x)
    np.testing.assert_array_equal(logits, jax.jit(model.apply)(params, x))
    assert inputs == {kernel.name: kernel.shape[-2] for kernel in model.kernels}

    def only_bias_of_output(layer, x):
        return (layer(x) if layer.name == "dense2" else 0.0 * layer(x)), None

    silent, _ = jax.jit(lambda p, x: model.forward(p, x, hook=only_bias_of_output))(params, x)
    np.testing.assert_array_equal(silent, np.broadcast_to(params["dense2"]["bias"], (3, 10)))


@pytest.mark.parametrize(("name", "hidden"), [("lenet", (20, 50, 500)), ("cifar-cnn", (6, 16, 120, 100))])
def test_width_multiplies_the_hidden_layers(name, hidden):
    widths = lambda width: [kernel.outputs for kernel in build_model(name, MNIST, width=width).kernels]
    assert widths(0.5) == [*(n // 2 for n in hidden), 10]
    assert widths(1.0) == [*hidden, 10]
    assert widths(4.0) == [*(4 * n for n in hidden), 10]


def test_lenet_against_numpy():
    """A plain NumPy forward pass with loops over the pixels."""
    model = build_model("lenet", problem(16, 16, 1))
    params, x = random_params(model), images(problem(16, 16, 1), batch=2)

    def conv_relu_pool(h, layer):
        kernel, side = np.asarray(layer["kernel"]), h.shape[1] - 4
        out = np.zeros((len(h), side, side, kernel.shape[-1]))
        for i in range(side):
            for j in range(side):
                out[:, i, j] = np.einsum("bhwc,hwco->bo", h[:, i : i + 5, j : j + 5], kernel) + layer["bias"]
        out = np.maximum(out, 0)
        return out.reshape(len(h), side // 2, 2, side // 2, 2, -1).max(axis=(2, 4))

    h = np.asarray(x) / 127.5 - 1
    h = conv_relu_pool(conv_relu_pool(h, params["conv1"]), params["conv2"]).reshape(2, -1)
    h = np.maximum(h @ params["dense1"]["kernel"] + params["dense1"]["bias"], 0)
    expected = h @ params["dense2"]["kernel"] + params["dense2"]["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)(params, x), expected, rtol=1e-4, atol=1e-4)


def test_init_is_he_with_zero_biases_and_depends_on_the_key():
    model = mlp(problem(100), hidden=(200,))
    params = model.init(jax.random.key(0))
    assert float(jnp.std(params["dense1"]["kernel"])) == pytest.approx(math.sqrt(2 / 100), rel=0.05)
    np.testing.assert_array_equal(params["dense1"]["bias"], 0)
    other = model.init(jax.random.key(1))
    assert not np.array_equal(params["dense1"]["kernel"], other["dense1"]["kernel"])


@pytest.mark.parametrize(
    "name",
    ["cnn", "resnet20", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vgg11", "resnet18"))],
)
@pytest.mark.parametrize("norm", [None, "batch", "group"])
def test_norm_is_a_choice(name, norm):
    model = build_model(name, DIGITS, norm=norm, **NARROW.get(name, {}))
    assert {kernel.norm for kernel in model.kernels if kernel.kind == "conv"} == {norm}
    norms = 2 * sum(kernel.norm is not None for kernel in model.kernels)
    biases = sum(kernel.bias is not None for kernel in model.kernels)
    assert len(jax.tree.leaves(shapes(model))) == len(model.kernels) + biases + norms


def test_batch_norm_uses_the_statistics_of_the_batch():
    model = build_model("cnn", DIGITS, norm="batch")
    params = random_params(model)
    _, seen = jax.jit(lambda p, x: model.forward(p, x, hook=lambda layer, x: (layer(x),) * 2))(
        params, images(DIGITS, batch=16)
    )
    norm, h = params["conv1"]["norm"], np.asarray(seen["conv1"])
    np.testing.assert_allclose(h.mean((0, 1, 2)), norm["bias"], atol=1e-4)
    np.testing.assert_allclose(h.std((0, 1, 2)), np.abs(norm["scale"]), rtol=1e-3)


def test_rebuild_with_other_widths():
    model = narrow("resnet9")
    widths = [k.outputs if k.successor is None else k.outputs - 1 for k in model.kernels]
    smaller = model.rebuild(widths)
    assert [kernel.outputs for kernel in smaller.kernels] == widths
    assert jax.eval_shape(smaller.apply, shapes(smaller), images(DIGITS)).shape == (3, 10)


def test_max_pool_against_loops_and_its_gradient():
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    expected = np.zeros((2, 3, 3, 3), np.float32)
    for i in range(3):
        for j in range(3):
            expected[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), expected)
    np.testing.assert_array_equal(relu_max_pool(jnp.asarray(x)), np.maximum(expected, 0))
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x) * expected))(jnp.asarray(x))
    winners = np.repeat(np.repeat(expected, 2, 1), 2, 2)
    np.testing.assert_array_equal(gradient[:, :6], np.where(x[:, :6] == winners, winners, 0))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x[:, :1])), x[:, :1])


@pytest.mark.parametrize("size", [1, 10])
def test_adaptive_average_pool_against_loops(size):
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    starts = [i * size // 7 for i in range(7)]
    stops = [math.ceil((i + 1) * size / 7) for i in range(7)]
    expected = np.stack(
        [
            np.stack([x[:, a:b, c:d].mean(axis=(1, 2)) for c, d in zip(starts, stops)], 1)
            for a, b in zip(starts, stops)
        ],
        axis=1,
    )
    np.testing.assert_allclose(adaptive_average_pool(jnp.asarray(x), 7), expected, rtol=1e-5, atol=1e-6)


def test_errors_name_what_is_accepted():
    with pytest.raises(ValueError, match=r"model\.name='lenett': must be one of .*; did you mean 'lenet'\?"):
        build_model("lenett", MNIST)
    with pytest.raises(ValueError, match=r"model\.width=3: must be left out; mlp takes hidden, norm"):
        build_model("mlp", MNIST, width=3)
    with pytest.raises(
        ValueError, match=r"model='cnn': must have inputs \[height, width, channels\], and gets \(561,\)"
    ):
        build_model("cnn", problem(561))


def _get(params, path):
    for key in path:
        params = params[key]
    return params


def _set(params, path, value):
    _get(params, path[:-1])[path[-1]] = value


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 4, 1), (1, 28, 1), (28, 2, 3)])
def test_images_that_are_too_small_for_unpadded_convolutions_are_refused(shape):
    with pytest.raises(UserError, match=r"model='femnist-cnn': must have inputs larger than .*: conv"):
        build_model("femnist-cnn", problem(*shape))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if "res" in name else [])
        for name in MODELS
        if name != "femnist-cnn"
    ],
)
def test_other_models_take_images_of_one_pixel(name):
    model = narrow(name, problem(1, 1, 1, classes=3))
    logits = jax.eval_shape(model.apply, shapes(model), jax.ShapeDtypeStruct((2, 1, 1, 1), np.float32))
    assert logits.shape == (2, 3)
    assert all(min(kernel.shape) > 0 and kernel.positions > 0 for kernel in model.kernels)
