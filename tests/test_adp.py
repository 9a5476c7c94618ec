"""ADP against its paper: gated nets in four federations, thresholds, and what travels."""

from functools import partial

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks import payload, trees
from fedjax_masks.models import gated
from fedjax_masks.simulation import make_simulation

SGD = optax.sgd(0.1, momentum=0.5)
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


def train_once(algorithm, task, client=3):
    """Message, upload and metrics of one client's round."""
    state = algorithm.init(jax.random.key(0), task)
    message = algorithm.send(state.server, client)
    own = jax.tree.map(lambda a: a[client], state.clients)
    data = cases.data_of(task, client)
    _, upload, metrics = jax.jit(algorithm.train)(jax.random.key(1), (), message, own, data)
    return message, upload, metrics


def final(algorithm, task, rounds=2):
    simulation = make_simulation(algorithm, task, cohort=4, seed=1, chunk=rounds)
    return jax.device_get(simulation.run(simulation.init(), 0, rounds)[0].server)


@pytest.mark.parametrize("federation", FEDERATIONS)
def test_it_is_a_gated_net_in_any_federation(model, task, federation):
    ours = fm.adp(model, SGD, batch_size=4, epochs=2, ratio=0.6, federation=federation)
    theirs = FEDERATIONS[federation](gated(model, ratio=0.6), SGD, batch_size=4, epochs=2)
    got, want = (train_once(algorithm, task)[1] for algorithm in (ours, theirs))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)


def test_gates_travel_like_everything_else(model, task):
    message, upload, _ = train_once(fm.adp(model, SGD, batch_size=4), task)
    net = trees.size(jax.eval_shape(model.init, jax.random.key(0)))
    gates = (1 * 6 + 6) + (6 * 8 + 8)
    assert payload.bits(message) == payload.bits(upload) == 32 * (net + gates)


def test_gates_pay_for_their_sum(model, task):
    def sums(l1):
        algorithm = fm.adp(model, optax.sgd(0.1), batch_size=4, epochs=3, l1=l1)
        message, update, metrics = train_once(algorithm, task)
        net = gated(model)
        _, gates = net.forward(trees.add(message, update), task.inputs[:20])
        return sum(float(gate.value.sum(-1).mean()) for gate in gates.values()), float(metrics["loss"])

    (free, loss), (paid, with_term) = sums(0.0), sums(0.05)
    assert paid < 0.9 * free
    assert with_term > loss


def test_threshold_zeroes_small_weights_of_convolutions_only(model, task):
    threshold = 0.05
    algorithm = fm.adp(model, SGD, batch_size=4, epochs=2, threshold=threshold)
    message, update, _ = train_once(algorithm, task)
    params = jax.device_get(trees.add(message, update))
    for kernel in model.kernels:
        weights = np.abs(trees.get(params, kernel.path))
        small = np.count_nonzero(weights <= threshold - 1e-6)
        # What the client holds is zero up to the rounding of message + (params - message).
        zeros = np.count_nonzero(weights < 1e-7)
        assert small > 0
        assert (zeros == small) == (kernel.kind == "conv")


def test_weights_that_were_zeroed_may_come_back(model, task):
    """There is no lasting mask: only the last epoch's end decides."""
    one, two = (fm.adp(model, SGD, batch_size=4, epochs=epochs, threshold=0.05).train for epochs in (1, 2))
    message = gated(model).init(jax.random.key(0))
    data = cases.data_of(task, 3)
    zero = []
    for train in (one, two):
        _, update, _ = jax.jit(train)(jax.random.key(1), (), message, (), data)
        kernel = trees.add(message, update)["conv2"]["kernel"]
        zero.append(np.abs(np.asarray(kernel)) < 1e-7)
    assert np.any(zero[0] & ~zero[1])


def test_salient_channels_are_those_most_often_active(model, task):
    """With a rate of 0 all examples meet the first model."""
    algorithm = fm.adp(model, optax.sgd(0.0), batch_size=4, epochs=2, upload_share=0.5)
    message, upload, _ = train_once(algorithm, task)
    data = cases.data_of(task, 3)
    inputs = data.inputs[data.rows[: int(data.size)]]
    _, gates = gated(model).forward(message, inputs)
    for name, chosen in upload.channels.items():
        often = np.asarray(gates[name].active).sum(0)
        best = np.argsort(-often, kind="stable")[: round(0.5 * chosen.size)]
        np.testing.assert_array_equal(np.flatnonzero(chosen), np.sort(best))


def test_bits_of_salient_uploads(model, task):
    algorithm = fm.adp(model, SGD, batch_size=4, upload_share=0.5)
    message, upload, _ = train_once(algorithm, task)
    of_channel = {"conv1": 9 * 1 + 1 + 1 + 1, "conv2": 9 * 6 + 1 + 6 + 1}  # kernel, bias, gate's two
    outside = 3 * of_channel["conv1"] + 4 * of_channel["conv2"]
    assert payload.bits(message) == 32 * trees.size(message)
    assert payload.bits(upload) == 32 * (trees.size(message) - outside) + 6 + 8


def test_server_averages_each_channel_over_its_senders(model, task):
    algorithm = fm.adp(model, SGD, batch_size=4, upload_share=0.5)
    state = algorithm.init(jax.random.key(0), task)
    message = algorithm.send(state.server, 0)
    train = jax.jit(algorithm.train)
    clients, weights = [0, 3, 4], np.array([7.0, 20.0, 0.0])
    uploads = [train(jax.random.key(c), (), message, (), cases.data_of(task, c))[1] for c in clients]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(payload.poison, uploads))
    cohort = fm.Cohort(jnp.array(clients), jnp.asarray(weights, jnp.float32))
    new = algorithm.merge(jax.random.key(0), (), state.server, stacked, cohort).params
    held = 0
    for name in ("conv1", "conv2"):
        senders = np.stack([np.asarray(upload.channels[name]) for upload in uploads]) * weights[:, None]
        total = senders.sum(0)
        old, got = message[name]["kernel"], new[name]["kernel"]
        updates = np.stack([np.asarray(upload.update.values[name]["kernel"]) for upload in uploads])
        mean = np.einsum("kc,khwic->hwic", senders, updates) / np.where(total, total, 1)
        np.testing.assert_allclose(got, old + mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(got)[..., total == 0], np.asarray(old)[..., total == 0])
        held += np.sum(total == 0)
    assert held


def test_uploading_all_channels_is_fedavg(model, task):
    """All but the 1: the share that rounds to all channels takes the other way."""
    some = final(fm.adp(model, SGD, batch_size=4, upload_share=0.999), task)
    everything = final(fm.adp(model, SGD, batch_size=4), task)
    chex.assert_trees_all_close(some.params, everything.params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"upload_share": 0.0}, "upload_share=0.0"),
        ({"upload_share": 0.5, "federation": "scaffold"}, "scaffold uploads everything"),
        ({"federation": "fedsgd"}, "federation=fedsgd: accepted are fedavg"),
    ],
)
def test_options_that_make_no_sense_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        fm.adp(model, SGD, **options)
