"""Split training: SplitFed, LGL, FedGKT."""

from functools import cache, partial

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.algorithms.fedgkt import distillation
from fedjax_masks.algorithms.splitfed import LABEL
from fedjax_masks.communication import serialization, size
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Round
from fedjax_masks.core.errors import UserError
from fedjax_masks.costs.devices import make_population
from fedjax_masks.data import synthetic_task
from fedjax_masks.models import cut_model
from fedjax_masks.simulation import make_simulation

SGD = optax.sgd(0.1)
SHAPE = (8, 8, 1)
OTHERS = {"lgl": fm.lgl, "fedgkt": fm.fedgkt}
ALL = {"splitfed": fm.splitfed, **OTHERS}
CLIENT = 3
EPOCHS = {"splitfed": 2, "lgl": 1, "fedgkt": 2}
DEVICES = "rpi4@wifi"
every_protocol = pytest.mark.parametrize("name", ALL)


@pytest.fixture(scope="module")
def task():
    return cases.task(SHAPE)  # ragged clients


@pytest.fixture(scope="module")
def model(task):
    return fm.models.cnn(task).rebuild((4, 6, 8, 3))


def simulate(algorithm, task, rounds, **options):
    options = {"cohort": task.num_clients, "chunk": rounds, "plan": "scan"} | options
    simulation = make_simulation(algorithm, task, **options)
    state, (metrics,) = simulation.run(simulation.init(), 0, rounds)
    return jax.device_get(state), metrics


@pytest.fixture(scope="module")
def visited(task, model):
    """A protocol's first state, and a function of the server's that gives a client's upload."""
    round = Round(jax.random.key(1), jnp.int32(0))

    @cache
    def start(name, **options):
        algorithm = ALL[name](model, SGD, batch_size=5, split="conv2", **options)

        @jax.jit
        def upload(server):
            return algorithm.train(round, algorithm.send(round, server, ()), (), cases.data_of(task, CLIENT))[
                1
            ]

        return algorithm.init(jax.random.key(0), task), upload

    return start


@pytest.fixture(scope="module")
def splitfed_twice(task, model):
    """State and metrics of SplitFed after three rounds of all clients, who have devices."""
    population = make_population(DEVICES, task.num_clients)

    @cache
    def run(split, momentum):
        algorithm = fm.splitfed(model, with_momentum(momentum), split=split, **TWICE)
        return simulate(algorithm, task, 3, population=population)

    return run


@pytest.fixture(scope="module")
def first_round(task, model, splitfed_twice):
    """Metrics whose first round is one of all clients, by protocol and epochs."""

    @cache
    def metrics(name, epochs):
        if (name, epochs) == ("splitfed", 2):
            return splitfed_twice("conv2", 0.9)[1]
        algorithm = ALL[name](model, SGD, batch_size=5, split="conv2", epochs=epochs)
        return simulate(algorithm, task, 1)[1]

    return metrics


def whole(sides):
    return {**{k: v for k, v in sides.device.items() if k != "head"}, **sides.server}


TWICE = {"epochs": 2, "batch_size": 5}


@pytest.fixture(scope="module")
def fedavg_twice(task, model):
    """FedAvg's state and metrics after three rounds, by the optimizer's momentum."""
    return cache(lambda momentum: simulate(fm.fedavg(model, with_momentum(momentum), **TWICE), task, 3))


def with_momentum(momentum):
    return optax.sgd(0.05, momentum=momentum) if momentum else SGD


@pytest.mark.parametrize(
    ("split", "momentum"),
    [
        ("conv2", 0.9),
        *(pytest.param(split, 0.9, marks=pytest.mark.slow) for split in ("conv1", "dense1")),
        *(pytest.param(split, None, marks=pytest.mark.slow) for split in ("conv1", "conv2", "dense1")),
    ],
)
def test_splitfed_is_fedavg(splitfed_twice, fedavg_twice, split, momentum):
    (ours, _), (theirs, _) = splitfed_twice(split, momentum), fedavg_twice(momentum)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), whole(ours.server), theirs.server.params)


def formula(name, examples, batches, sizes):
    """Bytes up and down by the cost model of Wu et al. 2024, arXiv 2304.05495, without overhead."""
    activation, device, head, classes = sizes
    if name == "splitfed":
        return 4 * examples * activation + 8 * examples + 4 * device, 4 * examples * activation + 4 * device
    logits = 4 * classes * examples if name == "fedgkt" else 0
    travels = 4 * (device + head)
    return 4 * examples * activation + 8 * examples + logits + travels, logits + travels


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        *EPOCHS.items(),
        *(pytest.param(name, 3 - epochs, marks=pytest.mark.slow) for name, epochs in EPOCHS.items()),
    ],
)
def test_bytes_are_those_of_the_formula(task, first_round, name, epochs):
    metrics = first_round(name, epochs)
    examples = epochs * task.train.sizes[metrics.ids[0]]
    sizes = 2 * 2 * 6, 4 * 10 + 6 * 37, 24 * 3 + 3, 3
    up, down = formula(name, examples, None, sizes)
    np.testing.assert_array_equal(metrics.bytes_up[0], up)
    np.testing.assert_array_equal(metrics.bytes_down[0], down)


LABELS_ALONE = {"fedgkt": {"alpha": 0.0}}


@every_protocol
def test_what_passes_in_a_batch_is_what_its_arrays_serialise_to(task, model, visited, name):
    """The conversation about one client, written out with real activations."""
    halves = cut_model(model, "conv2")
    state, upload = visited(name, **LABELS_ALONE.get(name, {}))
    upload, data = upload(state.server), cases.data_of(task, CLIENT)
    number = int(data.size)
    activations = halves.activate(state.server.device, data.inputs[data.rows[:number]])
    logits = halves.finish(state.server.server, activations)
    labels = np.zeros((number, *LABEL.shape), LABEL.dtype)
    up = {"splitfed": (activations, labels), "lgl": (activations, labels)}.get(
        name, (activations, labels, logits)
    )
    down = {"splitfed": activations, "lgl": ()}.get(name, logits)
    assert int(upload.dialogue.up) == 8 * len(serialization.encode(up))
    assert int(upload.dialogue.down) == 8 * len(serialization.encode(down))


@pytest.mark.parametrize("name", OTHERS)
def test_the_servers_loss_does_not_move_the_device(visited, name):
    """The device's half depends on labels and its head, and in FedGKT on what the server answers."""
    (start, *_), upload = visited(name, **LABELS_ALONE.get(name, {}))
    other = start._replace(server=jax.tree.map(lambda a: a + 0.3, start.server))
    updates = [upload(server).update for server in (start, other)]
    chex.assert_trees_all_equal(updates[0].device, updates[1].device)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(updates[0].device)) > 0
    with np.testing.assert_raises(AssertionError):
        chex.assert_trees_all_close(updates[0].server.tree, updates[1].server.tree)


def test_fedgkts_device_learns_from_the_server(visited):
    (start, *_), upload = visited("fedgkt", alpha=1.0)

    def device(shift):
        server = start._replace(server=jax.tree.map(lambda a: a + shift, start.server))
        return upload(server).update.device

    with np.testing.assert_raises(AssertionError):
        chex.assert_trees_all_close(device(0.0), device(0.3))


def test_distillation_is_a_scaled_divergence():
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal((2, 4, 5))
    soft = [np.exp(z / 3) / np.exp(z / 3).sum(-1, keepdims=True) for z in (ours, theirs)]
    expected = 9 * np.sum(soft[1] * np.log(soft[1] / soft[0]), -1)
    np.testing.assert_allclose(distillation(jnp.asarray(ours), jnp.asarray(theirs), 3.0), expected, rtol=1e-5)


@every_protocol
def test_flops_are_those_of_each_side(first_round, fedavg_twice, name):
    """Three passes, less the gradient of the images; FedGKT's devices look once more."""
    metrics = first_round(name, EPOCHS[name])
    conv1, conv2 = 2 * 64 * 9 * 4, 2 * 16 * 9 * 4 * 6
    dense = 2 * (24 * 8 + 8 * 3)
    head = 0 if name == "splitfed" else 2 * 24 * 3
    device = 2 * conv1 + 3 * (conv2 + head)
    if name == "fedgkt":
        device += conv1 + conv2 + head
    server = 3 * dense if name == "splitfed" else 3 * dense - 2 * 24 * 8
    places = metrics.train["slots"][0]
    np.testing.assert_allclose(metrics.train["flops"][0], places * device, rtol=1e-6)
    np.testing.assert_allclose(metrics.server["flops"][0], places.sum() * server, rtol=1e-6)
    if name == "splitfed":
        _, whole = fedavg_twice(0.9)
        both = metrics.train["flops"] + metrics.train["server_flops"]
        np.testing.assert_allclose(both, whole.train["flops"], rtol=1e-6)


def test_every_batch_takes_its_messages_time(task, first_round):
    metrics = first_round("splitfed", 2)
    batches = 2 * -(-task.train.sizes[metrics.ids[0]] // 5)
    bits = 8 * (metrics.bytes_up[0] + metrics.bytes_down[0])
    work = metrics.train["flops"][0] / 2.5e9 + metrics.train["traffic"][0] / 4.0e9
    expected = work + bits / 60e6 + (2 + 2 * batches) * 0.025
    np.testing.assert_allclose(metrics.train["client_seconds"][0], expected, rtol=1e-5)


def test_who_vanishes_says_nothing(task, model):
    population = make_population(f"{DEVICES},dropout=0.5", task.num_clients)
    algorithm = fm.splitfed(model, SGD, batch_size=5, split="conv2")
    _, metrics = simulate(algorithm, task, 3, population=population)
    lost = metrics.train["lost"] > 0
    assert lost.any()
    assert not lost.all()
    assert not metrics.bytes_up[lost].any()
    helped = np.where(lost, 0, metrics.train["server_flops"]).sum(1)
    np.testing.assert_allclose(metrics.server["flops"], helped, rtol=1e-6)
    np.testing.assert_array_equal(metrics.bytes_down[lost], 4 * (4 * 10 + 6 * 37))


@pytest.mark.slow
@pytest.mark.parametrize("plan", [pytest.param("scan", marks=pytest.mark.slow), "blocks:2"])
def test_memory_does_not_grow_with_the_cohort(plan):
    """The server's private copies live a block at a time."""
    task = synthetic_task((64,), 10, np.full(100, 18), test_per_client=1)
    net = fm.models.mlp(task, hidden=(64, 512))
    need = [
        make_simulation(fm.splitfed(net, SGD), task, cohort=cohort, chunk=1, plan=plan).memory_bytes
        for cohort in (4, 40)
    ]
    copy = 4 * trees.size(jax.eval_shape(net.init, jax.random.key(0)))
    assert need[1] - need[0] < copy / 2


@pytest.mark.slow
def test_a_run_of_the_published_size_is_blocked_or_refused_where_memory_is_short(monkeypatch):
    """VGG11, 100 clients of 500 images, 20 a round: 34 M parameters in every copy of the server's part."""
    task = synthetic_task((32, 32, 3), 10, np.full(100, 500), test_per_client=1)
    net = fm.models.vgg11(task)

    def prepare(factory, gigabytes, plan):
        monkeypatch.setattr("fedjax_masks.simulation.memory.available_bytes", lambda: int(gigabytes * 1e9))
        algorithm = factory(net, SGD, split="conv2")
        return make_simulation(algorithm, task, cohort=20, chunk=1, plan=plan)

    with pytest.raises(MemoryError, match=r"needs .* GB, 0.5 GB are free, and clients already run one"):
        prepare(fm.ecofed, 0.5, "scan")
    blocked = prepare(fm.splitfed, 2, "blocks:4")
    assert blocked.plan.block < 4
    assert "2.0 GB are free" in blocked.plan.reason
    assert blocked.memory_bytes <= 2e9


@every_protocol
def test_a_model_is_cut_only_where_it_can_be(name, model):
    with pytest.raises(UserError, match=r"split='dense9': must be one of conv1, conv2, dense1"):
        ALL[name](model, SGD, split="dense9")


def test_a_conversation_too_long_to_count_is_refused():
    big = jax.ShapeDtypeStruct((2**20,), jnp.float32)
    with pytest.raises(OverflowError, match=r"bits of messages in a round"):
        size.dialogue(big, (), jnp.int32(1), 2**7)
