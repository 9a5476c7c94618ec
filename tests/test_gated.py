"""Gated models against the definition of their gates, and the MACs and channels that gates save."""

import math
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.core import training, trees
from fedjax_masks.models import build_model, cnn, gated, mlp, resnet18, resnet20, resnet32, vgg16_bn
from fedjax_masks.models.compaction import compact, keep_outputs
from fedjax_masks.models.gates import (
    channel_activity,
    channels_in_use,
    count_distinct,
    distinct_selections,
    inference_macs,
)
from fedjax_masks.models.gating import active_counts

CIFAR = SimpleNamespace(input_shape=(32, 32, 3), num_classes=10)
TASK = SimpleNamespace(input_shape=(8, 8, 2), num_classes=4)
MODELS = {
    "cnn": lambda: cnn(TASK).rebuild((7, 9, 8, 4)),
    "cnn-norm": lambda: cnn(TASK, norm="batch").rebuild((7, 9, 8, 4)),
    "resnet18": lambda: resnet18(TASK, channels=(4, 5, 6, 7)),
}


def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def random_params(model, seed=0):
    """Drawn by NumPy: compiling ``init`` is slow. Gates start around 1, as they do."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        scale = math.sqrt(2 / math.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.5
        centre = [entry.key for entry in path[-2:]] in (["gate", "bias"], ["norm", "scale"])
        return (scale * rng.normal(size=leaf.shape) + centre).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(model))


def images(num=6, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, (num, *TASK.input_shape)).astype(np.float32)


def marked(*fast):
    """All models; the fast tests try these."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


@pytest.fixture(scope="module", params=marked("cnn"))
def case(request):
    """Net, gated net, its parameters, and the gates of a batch."""
    net = MODELS[request.param]()
    model = gated(net, ratio=0.6, saliency="mean")  # of which more varies between examples
    params = random_params(model)
    logits, gates = jax.jit(model.forward)(params, images())
    return net, model, params, logits, jax.device_get(gates)


@pytest.mark.parametrize(
    ("make", "parameters", "of_gates"),
    [
        (resnet20, 269_722, 30_368),
        (vgg16_bn, 33_642_442, 1_638_720),
        pytest.param(resnet32, 464_154, 52_320, marks=pytest.mark.slow),
    ],
)
def test_published_parameter_counts(make, parameters, of_gates):
    net = make(CIFAR)
    assert trees.size(shapes(net)) == parameters
    assert trees.size(shapes(gated(net))) == parameters + of_gates


@pytest.mark.parametrize("name", ["cnn", "lenet", "vgg11", "resnet18", "resnet20"])
def test_body_convolutions_have_gates(name):
    net = build_model(name, CIFAR)
    names = {kernel.name for kernel in gated(net).kernels if kernel.gate}
    convs = {kernel.name for kernel in net.kernels if kernel.kind == "conv"}
    if name.startswith("resnet"):
        convs = {layer for layer in convs if layer.startswith("block") and not layer.endswith("shortcut")}
        assert len(convs) == {"resnet18": 16, "resnet20": 18}[name]
    assert names == convs


def test_exactly_k_channels_are_active_in_every_example(case):
    _, model, _, _, gates = case
    kernels = {kernel.name: kernel for kernel in model.kernels if kernel.gate}
    assert set(gates) == set(kernels)
    for name, gate in gates.items():
        k = round(0.6 * kernels[name].outputs)
        assert gate.active.shape == (6, kernels[name].outputs)
        np.testing.assert_array_equal(gate.active.sum(-1), k)
        best = np.argsort(-gate.value, axis=-1, kind="stable")[:, :k]  # stable: ties to the lower index
        chosen = np.zeros_like(gate.active)
        np.put_along_axis(chosen, best, True, -1)
        np.testing.assert_array_equal(gate.active, chosen)
    assert any(len(np.unique(gate.active, axis=0)) > 1 for gate in gates.values())


@pytest.mark.parametrize(
    ("outputs", "ratio", "kept"),
    [
        (15, 0.7, 10),
        (64, 0.7, 45),
        *(pytest.param(*more, marks=pytest.mark.slow) for more in [(16, 0.7, 11), (5, 0.5, 2)]),
    ],
)
def test_a_half_is_rounded_to_even(outputs, ratio, kept):
    model = gated(cnn(TASK).rebuild((outputs, 4, 4, 4)), ratio=ratio)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes(model))
    _, gates = jax.jit(lambda params, x: model.forward(params, x, stop="conv1"))(params, images(2))
    # All gates are equal: the lower indices win.
    np.testing.assert_array_equal(gates["conv1"].active, np.arange(outputs)[None] < np.full((2, 1), kept))


@pytest.mark.parametrize("saliency", ["mean", "sigmoid"])
def test_against_numpy(saliency):
    model = gated(cnn(TASK).rebuild((7, 9, 8, 4)), ratio=0.6, saliency=saliency)
    params = random_params(model)
    logits, gates = jax.jit(model.forward)(params, images())
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = images().astype(np.float64)
    for name, k in (("conv1", 4), ("conv2", 5)):
        layer = wide[name]
        s = x.mean((1, 2))
        s = 1 / (1 + np.exp(-s)) if saliency == "sigmoid" else s
        g = np.maximum(s @ layer["gate"]["kernel"] + layer["gate"]["bias"], 0)
        np.testing.assert_allclose(gates[name].value, g, rtol=1e-4, atol=1e-5)
        g[np.arange(len(g))[:, None], np.argsort(-g, -1)[:, k:]] = 0
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        size = x.shape[1]
        y = sum(
            padded[:, i : i + size, j : j + size] @ layer["kernel"][i, j] for i in range(3) for j in range(3)
        )
        y = np.maximum((y + layer["bias"]) * g[:, None, None], 0)
        x = y.reshape(len(y), size // 2, 2, size // 2, 2, -1).max((2, 4))
    hidden = np.maximum(x.reshape(len(x), -1) @ wide["dense1"]["kernel"] + wide["dense1"]["bias"], 0)
    expected = hidden @ wide["dense2"]["kernel"] + wide["dense2"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_unit_gates_and_ratio_one_are_the_plain_net(case):
    net, _, _, _, _ = case
    model = gated(net)
    params = random_params(model)
    for kernel in model.kernels:
        if kernel.gate:
            gate = trees.get(params, kernel.gate)
            ones = {"kernel": np.zeros_like(gate["kernel"]), "bias": np.ones_like(gate["bias"])}
            params = trees.put(params, kernel.gate, ones)
    whole = gated(net, ratio=1.0)
    with jax.enable_x64(True):
        wide, inputs = jax.tree.map(np.float64, (params, images()))
        expected = jax.jit(net.apply)(wide, inputs)
        np.testing.assert_allclose(jax.jit(whole.apply)(wide, inputs), expected, rtol=1e-10, atol=1e-10)
        some = jax.jit(model.apply)(wide, inputs)
    assert np.abs(some - expected).max() > 1e-2


def test_a_net_and_its_gated_form_start_from_the_same_parameters():
    net = MODELS["cnn"]()
    params, plain = jax.jit(lambda key: (gated(net).init(key), net.init(key)))(jax.random.key(3))
    for name in ("conv1", "conv2"):
        gate = params[name].pop("gate")
        assert (gate["bias"] == 1).all()
        assert 0.5 < jnp.std(gate["kernel"]) * (gate["kernel"].shape[0] / 2) ** 0.5 < 1.5
    chex.assert_trees_all_equal(params, plain)


def test_suppressed_pairs_have_no_gradient():
    """One example at a time, without normalisation: every parameter of a suppressed channel."""
    model = gated(MODELS["cnn"](), ratio=0.5)
    params = random_params(model)
    _, gates = jax.jit(model.forward)(params, images())
    loss = training.cross_entropy(model.apply)
    gradient = jax.jit(jax.grad(loss))
    moved = 0
    for index, x in enumerate(images()):
        batch = training.Batch(x[None], jnp.array([index % 4]), jnp.ones(1, bool), jnp.int32(0))
        grads = jax.device_get(gradient(params, batch, jax.random.key(0)))
        for name, gate in gates.items():
            suppressed = ~np.asarray(gate.active[index])
            layer = trees.get(grads, tuple(name.split("/")))
            for leaf in jax.tree.leaves(layer):
                assert (leaf[..., suppressed] == 0).all()
                moved += np.count_nonzero(leaf[..., ~suppressed])
    assert moved > 1000


@pytest.mark.parametrize("case", marked("cnn-norm"), indirect=True)
def test_channels_that_are_suppressed_in_all_examples_have_no_gradient(case):
    """With batch normalisation, too: nothing reads them."""
    _, model, params, _, gates = case
    batch = training.Batch(jnp.asarray(images()), jnp.arange(6) % 4, jnp.ones(6, bool), jnp.int32(0))
    gradient = jax.jit(jax.grad(training.cross_entropy(model.apply)))
    grads = jax.device_get(gradient(params, batch, jax.random.key(0)))
    found = 0
    for name, gate in gates.items():
        unused = ~gate.active.any(0)
        found += unused.sum()
        for leaf in jax.tree.leaves(trees.get(grads, tuple(name.split("/")))):
            assert (leaf[..., unused] == 0).all()
    assert found
    gate_grads = [trees.get(grads, kernel.gate)["kernel"] for kernel in model.kernels if kernel.gate]
    assert all(np.any(leaf != 0) for leaf in gate_grads)


def test_a_hook_sees_the_layers_and_the_gate_multiplies_what_it_returns(case):
    net, model, params, logits, gates = case
    kinds = {kernel.name: kernel.kind for kernel in net.kernels}
    seen = {}

    def hook(layer, x):
        seen[layer.name] = layer.kind
        factor = 2 if layer.name in gates else 1
        return factor * layer(x), factor

    doubled, aux = jax.jit(lambda params, x: model.forward(params, x, hook=hook))(params, images())
    assert seen == kinds
    assert aux == {name: 2 if name in gates else 1 for name in kinds}
    twice = jax.tree.map(lambda a: a, params)
    for kernel in model.kernels:
        if kernel.gate:  # the gate's value doubled; what is selected stays
            gate = jax.tree.map(lambda a: 2 * a, trees.get(params, kernel.gate))
            twice = trees.put(twice, kernel.gate, gate)
    np.testing.assert_allclose(doubled, jax.jit(model.apply)(twice, images()), rtol=1e-4, atol=1e-4)
    assert np.abs(doubled - logits).max() > 1e-2


def test_a_gated_model_can_be_cut(case):
    _, model, params, logits, gates = case
    halves = jax.jit(model.forward, static_argnames=("start", "stop"))
    for split in (model.splits[0], model.splits[-1]):
        first = model.splits[: model.splits.index(split) + 1]
        device = {name: params[name] for name in first}
        server = {name: leaf for name, leaf in params.items() if name not in first}
        h, before = halves(device, images(), stop=split)
        got, behind = halves(server, h, start=split)
        np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-4)
        assert set(before) | set(behind) == set(gates)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"ratio": 1.2}, "ratio=1.2"),
        ({"ratio": 0.05}, "to keep a channel of conv1"),
    ],
)
def test_ratios_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gated(MODELS["cnn"](), **options)


def test_a_model_without_convolutions_has_no_gates():
    with pytest.raises(ValueError, match="'mlp': must have a convolution"):
        gated(mlp(TASK))


def test_traced_counts_select_like_static_ones(case):
    net, _, params, _, gates = case
    select = jax.jit(lambda counts: gated(net, counts=counts, saliency="mean").forward(params, images())[1])
    static = active_counts(net, 0.6)
    traced = select(static)
    chex.assert_trees_all_equal(
        {name: gate.active for name, gate in traced.items()},
        {name: gate.active for name, gate in gates.items()},
    )
    everything = select({name: gate.active.shape[-1] for name, gate in gates.items()})
    assert all(gate.active.all() for gate in everything.values())


@pytest.mark.parametrize("outputs", [1, 5, 40])
def test_distinct_selections_are_counted_exactly(outputs):
    rng = np.random.default_rng(outputs)
    kinds = rng.random((7, outputs)) < 0.5
    count = jax.jit(count_distinct)
    for number in (1, 3, 7):
        active = kinds[:number][rng.integers(0, number, 20)]
        assert count(active) == len(np.unique(active, axis=0))


def test_distinct_selections_of_a_data_set(case):
    _, model, params, _, gates = case
    expected = {name: len(np.unique(gate.active, axis=0)) for name, gate in gates.items()}
    assert distinct_selections(model, params, images(), batch_size=6) == expected
    if not model.kernels[0].norm:  # else, statistics of a batch depend on its size
        assert distinct_selections(model, params, images(), batch_size=4) == expected


def fake_gates(model, ratio):
    return {k.name: np.arange(k.outputs)[None] < round(ratio * k.outputs) for k in model.kernels if k.gate}


@pytest.mark.parametrize(("ratio", "relative"), [(0.8, 0.73), (0.7, 0.585), (0.6, 0.484), (0.5, 0.375)])
def test_published_macs_of_resnet32(ratio, relative):
    model = gated(resnet32(CIFAR), ratio=ratio)
    dense = sum(k.positions * math.prod(k.shape) for k in model.kernels if k.kind == "conv")
    conv = inference_macs(model, fake_gates(model, ratio)).conv
    assert conv[0] / dense == pytest.approx(relative, abs=10 ** -len(str(relative)[2:]) / 2)


@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.25])
def test_macs_of_a_block_and_of_a_chain(ratio):
    """(r + r^2) / 2 and r^2, exact where r times the channels is whole."""
    blocks = gated(resnet20(TASK, channels=(8, 8, 8)), ratio=ratio)
    counts = {k.name: k.positions * math.prod(k.shape) for k in blocks.kernels}
    macs = inference_macs(blocks, fake_gates(blocks, ratio))
    of_blocks = sum(n for name, n in counts.items() if name.startswith("block"))
    # Three first convolutions see the same number of positions as their seconds.
    assert macs.conv[0] - counts["conv1"] == of_blocks * (ratio + ratio**2) / 2

    chain = gated(cnn(TASK).rebuild((8, 12, 5, 4)), ratio=ratio)
    counts = {k.name: k.positions * math.prod(k.shape) for k in chain.kernels}
    macs = inference_macs(chain, fake_gates(chain, ratio))
    assert macs.conv[0] == counts["conv1"] * ratio + counts["conv2"] * ratio**2
    assert macs.dense[0] == counts["dense1"] * ratio + counts["dense2"]
    gates = (2 * 8 + 8 * 64) + (8 * ratio * 12 + 12 * 16)
    assert macs.gates[0] == gates


def test_macs_follow_each_example(case):
    _, model, _, _, gates = case
    active = {name: gate.active.copy() for name, gate in gates.items()}
    first = next(iter(active))
    active[first][0] = False
    macs = inference_macs(model, active)
    assert macs.conv.shape == macs.gates.shape == (6,)
    assert macs.conv[0] < macs.conv[1] == macs.conv[2]


def test_activity_is_a_share_of_all_examples(case):
    _, model, params, _, _ = case
    if model.kernels[0].norm:
        pytest.skip("statistics of a batch depend on its size")
    _, gates = jax.jit(model.forward)(params, images(10))
    for batch_size in (4, 64):  # whole batches and a rest, and one that is not full
        activity = channel_activity(model, params, images(10), batch_size=batch_size)
        for name, gate in gates.items():
            np.testing.assert_allclose(activity[name], gate.active.mean(0), atol=1e-6)


@pytest.mark.parametrize("case", marked("cnn-norm"), indirect=True)
def test_removing_channels_that_a_client_never_uses_changes_nothing(case):
    _, model, params, logits, gates = case
    activity = {name: gate.active.mean(0) for name, gate in gates.items()}
    keep = channels_in_use(activity, 1e-9)
    smaller, small_params = keep_outputs(model, params, keep)
    assert trees.size(small_params) < trees.size(params)
    assert jax.tree.map(np.shape, small_params) == jax.tree.map(lambda a: a.shape, shapes(smaller))
    got, few = jax.jit(smaller.forward)(small_params, images())
    np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-4)
    removed = {k.name for k in model.kernels if k.gate and k.successor is not None}
    for name, gate in few.items():
        kept = keep[name] if name in removed else np.ones(gate.active.shape[-1], bool)
        np.testing.assert_array_equal(gate.active, gates[name].active[:, kept])


def test_removing_silent_channels_changes_no_sigmoid_gate():
    model = gated(MODELS["cnn"](), ratio=0.6, saliency="sigmoid")
    params = random_params(model)
    logits, gates = jax.jit(model.forward)(params, images())
    keep = channels_in_use({name: gate.active.mean(0) for name, gate in gates.items()}, 1e-9)
    smaller, small_params = keep_outputs(model, params, keep)
    assert trees.size(small_params) < trees.size(params)
    got = jax.jit(smaller.apply)(small_params, images())
    np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-4)


def test_a_client_keeps_at_least_the_most_active_channel():
    used = channels_in_use({"a": np.array([0.1, 0.4, 0.3])}, 0.9)
    np.testing.assert_array_equal(used["a"], [False, True, False])
    model = MODELS["cnn"]()
    with pytest.raises(ValueError, match="conv1: must keep one or more of the layer's 7 outputs"):
        keep_outputs(model, random_params(model), {"conv1": np.zeros(7, bool)})


def test_dead_channels_under_a_gate_stay():
    """They compete for places: without them, others would be active."""
    model = gated(MODELS["cnn"](), ratio=0.6)
    params = random_params(model)
    params["conv1"]["kernel"][..., :3] = 0
    params["conv1"]["bias"][:3] = -1
    smaller, _ = compact(model, params)
    assert smaller.kernels[0].outputs == 7


@pytest.mark.slow
def test_every_algorithm_takes_a_gated_model():
    task = fm.load_task("digits", clients=4, partition="iid", examples_per_client=8)
    model = gated(cnn(task).rebuild((4, 6, 8, 10)))
    for algorithm in (
        fm.fedskel(model, optax.sgd(0.1), ratios=(0.5,)),
        fm.fedmask(model, optax.sgd(100.0), epochs=1),
        fm.local(model, optax.sgd(0.1)),
        fm.fedprox(model, optax.sgd(0.1)),
    ):
        run = fm.simulate(algorithm, task, rounds=1, cohort=2)
        assert run.records[-1]["clients_dropped"] == 0
