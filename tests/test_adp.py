"""ADP against its paper: gated nets in four federations, thresholds, and what travels."""

from functools import cache, partial

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.algorithms.gate_warm_up import warm_up_counts
from fedjax_masks.communication import size, visitor
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Round
from fedjax_masks.core.errors import UserError
from fedjax_masks.models import gated
from fedjax_masks.simulation import make_simulation

SGD = optax.sgd(0.1, momentum=0.5)
ROUND, STILL = (Round(jax.random.key(1), jnp.int32(index)) for index in (0, 1))
FEDERATIONS = {
    "fedavg": fm.fedavg,
    "fedprox": partial(fm.fedprox, mu=0.01),
    "fednova": fm.fednova,
    "scaffold": fm.scaffold,
}


@pytest.fixture(scope="module")
def task():
    return cases.task((8, 8, 1))


@pytest.fixture(scope="module")
def model(task):
    return fm.models.cnn(task).rebuild((6, 8, 16, task.num_classes))


def compiled(algorithm, task):
    """The first message, and ``(client, message, round) -> (upload, info)``."""
    state = jax.jit(lambda key: algorithm.init(key, task))(jax.random.key(0))
    message = algorithm.send(ROUND, state.server, ())
    program = jax.jit(algorithm.train)

    def train(client, message=message, round=ROUND):
        own = jax.tree.map(lambda a: a[client], state.clients)
        _, *sent = program(round, message, own, cases.data_of(task, client))
        return jax.device_get(sent)

    return message, train


@pytest.fixture(scope="module")
def salient(model, task):
    """Clients that send half of the channels, and learn nothing in a round."""
    schedule = lambda index: jnp.where(index == STILL.index, 0.0, 1.0)
    trainer = fm.Trainer(SGD, batch_size=4, epochs=2, schedule=schedule)
    algorithm = fm.adp(model, trainer, upload_share=0.5, l1=0.05)
    return algorithm, *compiled(algorithm, task)


@pytest.fixture(scope="module")
def still(model, task, salient):
    """With a rate of 0 all examples meet the first model: an upload, facts, logits and gates."""
    _, message, train = salient
    data = cases.data_of(task, 3)
    mine = data.rows[: int(data.size)]
    logits, gates = jax.jit(gated(model).forward)(message, data.inputs[mine])
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, data.labels[mine]).mean()
    upload, info = train(3, round=STILL)
    assert not any(leaf.any() for leaf in jax.tree.leaves(upload.update.values))
    return upload, info, float(entropy), jax.device_get(gates)


@pytest.fixture(scope="module")
def gated_upload(model, task):
    """What a client sends of a gated net, by federation."""

    @cache
    def upload(federation):
        algorithm = FEDERATIONS[federation](gated(model, ratio=0.6), SGD, batch_size=4)
        return compiled(algorithm, task)[1](3)[0]

    return upload


def final(algorithm, task, rounds=2):
    simulation = make_simulation(algorithm, task, cohort=4, seeds=(1,), chunk=rounds, plan="scan")
    return jax.device_get(simulation.run(simulation.init(), 0, rounds)[0].server)


@pytest.mark.slow
@pytest.mark.parametrize(
    "federation",
    [pytest.param(name, marks=[] if name == "fedavg" else [pytest.mark.slow]) for name in FEDERATIONS],
)
def test_it_is_a_gated_net_in_any_federation(model, task, gated_upload, federation):
    algorithm = fm.adp(model, SGD, batch_size=4, ratio=0.6, federation=federation)
    upload, _ = compiled(algorithm, task)[1](3)
    chex.assert_trees_all_close(upload, gated_upload(federation), rtol=1e-5, atol=1e-6)


def test_gates_pay_for_their_sum(still):
    _, info, entropy, gates = still
    gate_sum = sum(gate.value.sum(-1) for gate in gates.values()).mean()
    assert gate_sum > 1
    assert float(info.loss) == pytest.approx(entropy + 0.05 * gate_sum, rel=1e-5)


def test_threshold_zeroes_small_weights_of_convolutions_only_and_not_for_ever(model, task):
    threshold = 0.05
    algorithm = fm.adp(model, SGD, batch_size=4, epochs=2, threshold=threshold)
    message, train = compiled(algorithm, task)
    for name in ("conv1", "conv2"):
        small = jnp.abs(message[name]["kernel"]) <= threshold
        message[name]["kernel"] = jnp.where(small, 0, message[name]["kernel"])
    update, _ = train(3, message)
    params = jax.device_get(trees.add(message, update))
    for kernel in model.kernels:
        weights = np.abs(trees.get(params, kernel.path))
        # The client's zeros are zeros up to the rounding of message + (params - message).
        small, zeros = np.sum(weights <= threshold - 1e-6), np.sum(weights < 1e-7)
        assert small > 0
        assert (zeros == small) == (kernel.kind == "conv")
    was_zero = np.asarray(message["conv2"]["kernel"]) == 0
    assert np.any(np.abs(params["conv2"]["kernel"][was_zero]) > threshold)


def test_salient_channels_are_those_most_often_active(still):
    upload, _, _, gates = still
    for name, chosen in upload.channels.items():
        often = gates[name].active.sum(0)
        best = np.argsort(-often, kind="stable")[: round(0.5 * chosen.size)]
        np.testing.assert_array_equal(np.flatnonzero(chosen), np.sort(best))


def test_bits_with_and_without_choice_of_channels(salient, model):
    _, message, train = salient
    upload, _ = train(3)
    net, gates = jax.eval_shape(model.init, jax.random.key(0)), (1 * 6 + 6) + (6 * 8 + 8)
    assert size.bits(message) == 32 * (trees.size(net) + gates)
    of_channel = {"conv1": 9 * 1 + 1 + 1 + 1, "conv2": 9 * 6 + 1 + 6 + 1}  # kernel, bias, gate's two
    left_out = 3 * of_channel["conv1"] + 4 * of_channel["conv2"]
    assert size.bits(upload) == 32 * (trees.size(message) - left_out) + 6 + 8


def test_server_averages_each_channel_over_its_senders(salient, task):
    algorithm, message, train = salient
    clients, weights = [0, 3, 4], np.array([7.0, 20.0, 0.0])
    uploads = [train(client)[0] for client in clients]
    server = algorithm.init(jax.random.key(0), task).server
    receive = jax.jit(lambda upload, weight: algorithm.receive(ROUND, server, (), upload, weight)[1])
    arrived = [(upload, weight) for upload, weight in zip(uploads, weights) if weight]
    parts = [receive(visitor.poison(upload), jnp.float32(weight)) for upload, weight in arrived]
    total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    new = jax.jit(algorithm.merge)(ROUND, server, total)[0].params
    held = 0
    for name in ("conv1", "conv2"):
        senders = np.stack([upload.channels[name] for upload in uploads]) * weights[:, None]
        total = senders.sum(0)
        old, got = np.asarray(message[name]["kernel"]), np.asarray(new[name]["kernel"])
        updates = np.stack([upload.update.values[name]["kernel"] for upload in uploads])
        mean = np.einsum("kc,khwic->hwic", senders, updates) / np.where(total, total, 1)
        np.testing.assert_allclose(got, old + mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(got[..., total == 0], old[..., total == 0])
        held += np.sum(total == 0)
    assert held


@pytest.mark.slow
def test_uploading_all_channels_is_fedavg(model, task, gated_upload):
    """A share that rounds to all channels, but is not 1, takes the other way."""
    algorithm = fm.adp(model, SGD, batch_size=4, ratio=0.6, upload_share=0.999)
    message, train = compiled(algorithm, task)
    upload, _ = train(3)

    @jax.jit
    def merged(upload):
        server = algorithm.init(jax.random.key(0), task).server
        part = algorithm.receive(ROUND, server, (), upload, jnp.float32(20))[1]
        return algorithm.merge(ROUND, server, part)[0].params

    expected = trees.add(message, gated_upload("fedavg"))
    chex.assert_trees_all_close(merged(upload), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_in_which_all_channels_are_uploaded_is_that_of_fedavg(model, task):
    some = final(fm.adp(model, SGD, batch_size=4, upload_share=0.999), task)
    everything = final(fm.adp(model, SGD, batch_size=4), task)
    chex.assert_trees_all_close(some.params, everything.params, rtol=1e-4, atol=1e-5)


def test_a_small_scale_of_gates_keeps_their_order(model, task):
    nets = [gated(model, saliency="mean", scale=scale) for scale in (1.0, 0.1)]
    (_, gates), (_, small) = jax.jit(
        lambda x: [net.forward(net.init(jax.random.key(0)), x, stop="conv1") for net in nets]
    )(task.test_inputs)
    above = np.min(gates["conv1"].value, -1) > 0
    assert above.sum() > 3
    np.testing.assert_array_equal(gates["conv1"].active[above], small["conv1"].active[above])
    np.testing.assert_allclose(
        gates["conv1"].value[above] - 1, 10 * (small["conv1"].value[above] - 1), atol=1e-4
    )


def shifted(index):
    return ROUND._replace(index=jnp.int32(index))


def test_a_warm_up_falls_linearly_to_the_ratio(model):
    counts = warm_up_counts(model, 0.5, 4)
    assert {name: values.tolist() for name, values in counts.items()} == {
        "conv1": [6, 5, 4, 4, 3],  # of 6: 6, 5.25, 4.5, 3.75, 3; a half is rounded to even
        "conv2": [8, 7, 6, 5, 4],
    }


@pytest.mark.parametrize("saliency", ["mean", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_a_warm_up_trains_and_predicts_with_the_ratio_of_the_round(model, task, saliency):
    """Against the gated net of that ratio."""
    make = partial(fm.adp, model, SGD, batch_size=4, saliency=saliency)
    algorithm = make(ratio=0.5, warm_up=2)
    message, train = compiled(algorithm, task)
    state = jax.jit(lambda key: algorithm.init(key, task))(jax.random.key(0))
    predict = jax.jit(algorithm.predict["global"])
    for index, ratio in ((0, 1.0), (1, 0.75), (2, 0.5), (7, 0.5)):
        net = gated(model, ratio=ratio, saliency=saliency)
        logits = jax.jit(net.apply)(message, task.test_inputs)
        server = state.server._replace(round=jnp.int32(index))
        np.testing.assert_allclose(predict(server, None, task.test_inputs), logits, rtol=1e-5, atol=1e-5)
        if index == 1:
            upload, _ = train(3, round=shifted(index))
            expected, _ = compiled(make(ratio=ratio), task)[1](3, message, round=shifted(index))
            chex.assert_trees_all_close(upload, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_server_remembers_the_round_of_a_warm_up(model, task):
    server = final(fm.adp(model, SGD, batch_size=4, warm_up=5, upload_share=0.5), task, rounds=3)
    assert server.round == 2


@pytest.mark.parametrize("upload_share", [1.0, 0.5])
def test_different_selections_of_the_trained_model_are_reported(model, task, upload_share):
    algorithm = fm.adp(model, SGD, batch_size=8, saliency="mean", upload_share=upload_share)
    message, train = compiled(algorithm, task)
    upload, info = train(3)
    data = cases.data_of(task, 3)
    if upload_share < 1:
        # The upload lacks channels of the trained model; the other federation trains the same one.
        same = fm.adp(model, SGD, batch_size=8, saliency="mean")
        upload, _ = compiled(same, task)[1](3, message)
    inputs = data.inputs[data.rows[:8]]
    _, gates = jax.jit(gated(model, saliency="mean").forward)(trees.add(message, upload), inputs)
    counts = {f"selections/{name}": len(np.unique(gate.active, axis=0)) for name, gate in gates.items()}
    assert info.extra == counts
    assert max(counts.values()) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warm_up": -1}, "warm_up=-1: must be"),
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"upload_share": 0.0}, "upload_share=0.0"),
        ({"threshold": -1.0}, "threshold=-1.0: must be"),
        ({"upload_share": 0.5, "federation": "scaffold"}, "upload_share=0.5: must be 1, since scaffold"),
        ({"federation": "fedsgd"}, "federation=fedsgd: must be one of fedavg"),
    ],
)
def test_options_that_make_no_sense_are_refused(model, options, message):
    with pytest.raises(UserError, match=message):
        fm.adp(model, SGD, **options)
