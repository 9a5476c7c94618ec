"""Codecs: bounds on values, exact sizes, and their composition with any algorithm."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_masks.communication import codecs
from fedjax_masks.communication.codecs import chain, identity, parse_codec, quantize, top_k
from fedjax_masks.communication.payload import (
    AlreadyKnown,
    Conditional,
    Encoded,
    Installed,
    Masked,
    Quantized,
    Sparse,
    nodes,
)
from fedjax_masks.communication.serialization import decode, encode
from fedjax_masks.communication.size import bits, installed_bytes, static_bits
from fedjax_masks.communication.visitor import poison
from fedjax_masks.core import trees
from fedjax_masks.core.aggregation import weighted, weighted_mean
from fedjax_masks.core.algorithm import ClientIndex, FederatedAlgorithm, Info, Round, Stack, State, Task
from fedjax_masks.core.errors import UserError
from fedjax_masks.experiment import build, config
from fedjax_masks.simulation import make_simulation
from fedjax_masks.transforms.compression import with_codecs

CODECS = {
    "identity": identity(),
    "quantize": quantize(5),
    "stochastic": quantize(8, stochastic=True),
    "top_k": top_k(0.1),
    "top_k without memory": top_k(0.1, error_feedback=False),
    "both": chain(top_k(0.1), quantize(8)),
    "entropy": codecs.entropy(),
}


@functools.partial(jax.jit, static_argnums=0)
def send(codec, payload, key=None):
    """What the receiver has, and what was packed, in a first round."""
    packed, _ = codec.pack(key, payload, codec.init(payload))
    return codec.unpack(packed), packed


def normal(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def mixed_payload(seed):
    """Everything that a payload may hold; values that are not sent are 0, as after decoding."""
    rng = np.random.default_rng(seed)
    mask, flag = rng.random((1, 6)) < 0.5, np.bool_(seed % 2)
    return {
        "plain": normal(seed, (6, 10)),
        "half": normal(seed, (60,), jnp.bfloat16),
        "scalar": np.asarray(rng.random(), np.float32),
        "masked": Masked({"w": np.where(mask, normal(seed, (10, 6)), 0)}, {"w": mask}),
        "conditional": Conditional(flag, [np.where(flag, normal(seed, 60), 0)]),
        "known": AlreadyKnown(normal(seed, 60)),
        "installed": Installed([normal(seed, 60), rng.random(60) < 0.1]),
        "coded": Encoded(rng.random(60) < 0.5),
        "counts": np.arange(60, dtype=np.int32),
        "bits": rng.random(300) < 0.1,
    }


QUANTIZE = {num: quantize(num) for num in (2, 5, 8)}  # compiled once each
TOP_K = {fraction: top_k(fraction) for fraction in (0.01, 0.3)}
floats = hnp.arrays(np.float32, 40, elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))


@settings(max_examples=30, deadline=None)
@given(floats, st.sampled_from(list(QUANTIZE)))
def test_rounding_errs_by_at_most_half_a_scale(values, num):
    top = 2 ** (num - 1) - 1
    # XLA flushes a scale below the smallest normal number to zero; that case is below.
    assume(np.abs(values).max() / top >= np.finfo(np.float32).tiny or not values.any())
    got, packed = send(QUANTIZE[num], jnp.asarray(values))
    scale = np.float64(packed.scale)
    np.testing.assert_allclose(scale, np.abs(values).max() / top, rtol=2**-22)
    # The division before rounding is in float32: relative error 2**-24, of at most ``top``.
    error = np.abs(values - np.asarray(packed.codes, np.float64) * scale)
    assert error.max() <= (0.5 + top * 2**-23) * scale
    assert np.abs(packed.codes).max() <= top
    assert got.dtype == values.dtype


def test_values_too_small_for_a_scale_stay_small():
    tiny = np.finfo(np.float32).tiny
    got, _ = send(quantize(8), jnp.array([tiny, -tiny, 0.0, tiny / 2]))
    assert np.abs(got).max() <= 2 * tiny


def test_ties_go_to_even_and_zeros_stay_zero():
    values = jnp.pad(jnp.array([127.0, 0.5, 1.5, 2.5, -0.5, -1.5]), (0, 10))
    got, packed = send(quantize(8), values)
    assert packed.codes[:6].tolist() == [127, 0, 2, 2, 0, -2]
    assert got[6:].tolist() == [0] * 10
    assert send(quantize(4), jnp.zeros(30))[0].tolist() == [0] * 30


def test_divergence_stays_visible():
    for bad in (jnp.nan, jnp.inf):
        got, _ = send(quantize(8), jnp.ones(30).at[3].set(bad))
        assert not trees.all_finite(got)


def test_stochastic_rounding_is_unbiased():
    values = jnp.asarray(normal(0, 50))
    codec, draws = quantize(3, stochastic=True), 4000
    keys = jax.random.split(jax.random.key(0), draws)
    scale = np.abs(values).max() / 3
    got = np.asarray(jax.jit(jax.vmap(lambda key: send(codec, values, key)[0]))(keys))
    assert np.abs(got - values).max() < scale
    assert len({row.tobytes() for row in got}) > 1
    deviation = scale / 2 / math.sqrt(draws)  # of a mean of draws from two neighbours, at most
    assert np.abs(np.mean(got, axis=0, dtype=np.float64) - values).max() < 5 * deviation


def test_arrays_draw_independently():
    same = {"a": jnp.asarray(normal(0, 200)), "b": jnp.asarray(normal(0, 200))}
    got, _ = send(quantize(2, stochastic=True), same, jax.random.key(0))
    assert (got["a"] != got["b"]).any()


@settings(max_examples=30, deadline=None)
@given(floats, st.sampled_from(list(TOP_K)))
def test_top_k_sends_the_largest(values, fraction):
    keep = max(1, round(fraction * 40))
    got, packed = send(TOP_K[fraction], jnp.asarray(values))
    assert packed.values.shape == packed.indices.shape == (keep,)
    assert len(set(packed.indices.tolist())) == keep
    np.testing.assert_array_equal(got[packed.indices], values[packed.indices])
    assert np.count_nonzero(got) <= keep
    left_out = np.abs(np.delete(values, packed.indices))
    assert np.abs(packed.values).min() >= left_out.max()


def test_error_feedback_loses_nothing():
    """Sent values plus residuals equal the sum of all values; whole numbers make the sums exact."""
    rng = np.random.default_rng(0)
    codec = top_k(0.1)
    state, total, sent = codec.init(jnp.zeros((10, 10))), np.zeros((10, 10)), np.zeros((10, 10))
    pack = jax.jit(lambda values, state: codec.pack(None, values, state))
    for _ in range(8):
        values = rng.integers(-100, 100, (10, 10)).astype(np.float32)
        packed, state = pack(values, state)
        total, sent = total + values, sent + codec.unpack(packed)
        np.testing.assert_array_equal(sent + state[0], total)
    assert np.count_nonzero(state[0])
    for _ in range(9):
        packed, state = pack(np.zeros((10, 10), np.float32), state)
    assert not np.count_nonzero(state[0])


def test_error_feedback_keeps_the_rounding_of_a_short_dtype():
    codec = top_k(0.1)
    values = jnp.arange(100, dtype=jnp.bfloat16)
    tiny = jnp.full(100, 2.0**-10, jnp.float32)
    packed, (residual,) = jax.jit(lambda *args: codec.pack(None, *args))(values, (tiny,))
    got = np.asarray(codec.unpack(packed), np.float64)
    np.testing.assert_array_equal(got + residual, np.asarray(values, np.float64) + 2.0**-10)


def test_top_k_without_error_feedback_has_no_state():
    assert jax.tree.leaves(top_k(0.1, error_feedback=False).init(jnp.zeros(40))) == []


def test_masked_elements_decide_nothing_and_keep_their_residual():
    values = jnp.arange(100.0)
    mask = values < 50
    memory = (jnp.full(100, 0.5),)
    pack = jax.jit(lambda payload: top_k(0.1).pack(None, payload, memory))
    packed, (residual,) = pack(Masked(values, mask))
    assert sorted(packed.values.indices.tolist()) == list(range(40, 50))
    assert residual[50:].tolist() == [0.5] * 50
    assert residual[:40].tolist() == [i + 0.5 for i in range(40)]
    assert residual[40:50].tolist() == [0.0] * 10
    _, (residual,) = pack(Conditional(jnp.array(False), values))
    assert residual.tolist() == [0.5] * 100

    poisoned = poison(Masked(values, mask))
    got, packed = send(quantize(8), poisoned)
    assert float(packed.values.scale) == np.float32(49) / np.float32(127)
    assert trees.all_finite(got.values)


def test_bits_by_hand():
    values = jax.ShapeDtypeStruct((10, 100), jnp.float32)
    cases = [
        (quantize(5), values, 1000 * 5 + 32),
        (top_k(0.1), values, 100 * (32 + 10)),
        (chain(top_k(0.1), quantize(8)), values, 100 * (8 + 10) + 32),
        (chain(quantize(8), top_k(0.1)), values, 1000 * 8 + 32),  # nothing is left to pick from
        (quantize(8), jax.ShapeDtypeStruct((1,), jnp.float32), 32),  # a scale costs more than it saves
        (top_k(1.0), values, 1000 * 32),
        (quantize(8), jax.ShapeDtypeStruct((7,), jnp.int32), 7 * 32),
    ]
    for codec, payload, expected in cases:
        assert static_bits(jax.eval_shape(functools.partial(send, codec), payload)[1]) == expected
    mask = np.arange(100)[None] < 25
    masked = Masked(np.ones((10, 100), np.float32), mask)
    assert bits(send(quantize(8), masked)[1]) == 250 * 8 + 32


@pytest.mark.parametrize("name", CODECS)
def test_unpacking_restores_structure_and_bytes_are_exact(name):
    codec, payload = CODECS[name], mixed_payload(3)
    got, packed = send(codec, payload, jax.random.key(0))
    data = encode(packed)
    assert len(data) == -(-bits(packed) // 8)
    assert bits(packed) <= bits(payload)

    received = codec.unpack(decode(data, packed))
    assert jax.tree.structure(received) == jax.tree.structure(payload)
    for sent, direct, coded in zip(*map(jax.tree.leaves, (payload, got, received))):
        assert (coded.shape, coded.dtype) == (sent.shape, sent.dtype)
        np.testing.assert_array_equal(coded, direct)
    assert installed_bytes(packed) == installed_bytes(payload) == 60 * 5
    for same in ("known", "installed", "coded", "counts", "bits", "scalar"):
        np.testing.assert_array_equal(*map(jax.tree.leaves, (received[same], payload[same])))


@pytest.mark.parametrize("name", ["stochastic", "both"])
def test_a_codec_gives_the_same_under_vmap(name):
    codec = CODECS[name]
    clients = [{name: mixed_payload(seed)[name] for name in ("plain", "masked")} for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *clients)
    keys = jax.random.split(jax.random.key(0), 3)
    states = trees.replicate(codec.init(clients[0]), 3)

    def first_round(key, payload, state):
        return codec.unpack(codec.pack(key, payload, state)[0])

    got = jax.jit(jax.vmap(first_round))(keys, stacked, states)
    alone = jax.jit(first_round)
    for i, (key, client) in enumerate(zip(keys, clients)):
        expected = alone(key, client, codec.init(client))
        for many, one in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
            np.testing.assert_allclose(np.float32(many[i]), np.float32(one), rtol=1e-6)


def test_shapes_suffice_for_a_state():
    payload = mixed_payload(0)
    like = jax.eval_shape(lambda: payload)
    for codec in CODECS.values():
        a, b = jax.eval_shape(codec.init, payload), codec.init(like)
        assert jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)
    assert [r.dtype for r in top_k(0.5).init(like)] == [np.float32] * 5


def test_impossible_codecs_are_refused():
    values = jnp.ones(100)
    for num in (1, 9):
        with pytest.raises(ValueError, match=f"bits={num}: must be an integer at least 2 and at most 8"):
            quantize(num)
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"fraction={fraction}: must be a finite number above 0"):
            top_k(fraction)
    with pytest.raises(ValueError, match="must get a key"):
        quantize(8, stochastic=True).pack(None, values, ())
    with pytest.raises(ValueError, match="one quantize"):
        send(chain(quantize(8), quantize(4)), values)
    with pytest.raises(ValueError, match="one top_k"):
        send(chain(top_k(0.5), top_k(0.5)), values)


# A toy: every client pulls the server's vector towards a target that it keeps.

CLIENTS, SIZE = 4, 64
TARGETS = np.random.default_rng(9).integers(-50, 50, (CLIENTS, SIZE)).astype(np.float32)


def toy(*, stacked=False):
    """Federated averaging of the distances to the targets; contributions arrive stacked, or summed."""

    def init(key, task):
        return State(jnp.zeros(SIZE), jnp.asarray(TARGETS), jnp.zeros(CLIENTS))

    def send(round, server, profile):
        return {"model": server}

    def train(round, message, target, data):
        return target, {"update": target - message["model"]}, Info(jnp.zeros(()))

    def receive(round, server, profile, upload, weight):
        part = (upload["update"], weight) if stacked else weighted(upload["update"], weight)
        return profile + 1, Stack(part) if stacked else part

    def merge(round, server, total):
        if stacked:
            updates, weight = total.tree
            return server + weight @ updates / weight.sum(), None
        return server + weighted_mean(total, jnp.zeros(SIZE)), None

    models = {
        "personal": lambda server, client, x: x * client,
        "double": lambda server, client, x: 2 * x * client,
    }
    return FederatedAlgorithm(init, send, train, receive, merge, models)


@functools.cache
def toy_task():
    index = ClientIndex(np.arange(CLIENTS), np.arange(CLIENTS), np.ones(CLIENTS, np.int32))
    arrays = np.zeros((CLIENTS, 2), np.float32), np.zeros(CLIENTS, np.int32)
    return Task("toy", *arrays, *arrays, index, index, 2)


def run(algorithm, rounds=1, plan="blocks:2"):
    """The state after some rounds of all clients, as the engine runs them."""
    simulation = make_simulation(algorithm, toy_task(), cohort=CLIENTS, chunk=rounds, plan=plan)
    return jax.device_get(simulation.run(simulation.init(), 0, rounds)[0])


@pytest.mark.parametrize("stacked", [False, True])
def test_with_codecs_without_a_codec_changes_nothing(stacked):
    plain = toy(stacked=stacked)
    expected, state = run(plain), run(with_codecs(plain))
    np.testing.assert_array_equal(expected.server, TARGETS.mean(0))
    np.testing.assert_array_equal(state.server, expected.server)
    np.testing.assert_array_equal(state.clients.inner, expected.clients)
    assert state.profiles.tolist() == [1] * CLIENTS
    assert not jax.tree.leaves(state.clients.codec)


@pytest.mark.parametrize("plan", ["scan", "vmap", "blocks:3", "scan,mesh:2"])
def test_a_stack_arrives_stacked_and_the_rest_summed(plan):
    """Rows of padding, and of clients whose upload did not arrive, hold zeros."""
    shapes, median = [], np.median(TARGETS[:, 0])

    def train(round, message, target, data):
        target, upload, info = toy().train(round, message, target, data)
        lost = jnp.where(target[0] > median, jnp.nan, 0)  # two uploads are not finite, and never arrive
        return target, {"update": upload["update"] + lost}, info

    def receive(round, server, profile, upload, weight):
        return profile, {"rows": Stack((upload["update"], weight)), "sum": weighted(upload["update"], weight)}

    def merge(round, server, total):
        updates, weight = total["rows"].tree
        shapes.append((updates.shape, weight.shape, total["sum"].total.shape))
        error = jnp.max(jnp.abs(weight @ updates - total["sum"].total))
        return server.at[:3].set(jnp.stack([jnp.sum(weight), total["sum"].weight, error])), None

    state = run(toy()._replace(receive=receive, merge=merge, train=train), plan=plan)
    rows = {"blocks:3": 6}.get(plan, CLIENTS)
    assert shapes[-1] == ((rows, SIZE), (rows,), (SIZE,))
    assert state.server[:3].tolist() == [2, 2, 0]


@pytest.mark.parametrize("stacked", [False, True])
def test_residuals_live_with_the_client(stacked):
    coded = with_codecs(toy(stacked=stacked), up=top_k(0.25))
    (residual,) = coded.init(jax.random.key(0), toy_task()).clients.codec
    assert residual.shape == (CLIENTS, SIZE)
    state = run(coded)
    (residual,) = state.clients.codec
    # Whole numbers and four clients: the sums are exact.
    np.testing.assert_array_equal(state.server + residual.mean(0), TARGETS.mean(0))
    assert (np.count_nonzero(TARGETS - residual, axis=1) == SIZE // 4).all()


def test_codecs_work_in_both_directions_and_models_get_the_inner_state():
    coded = with_codecs(toy(), up=chain(top_k(0.25), quantize(8)), down=quantize(8))
    state, round = run(coded, rounds=5), Round(jax.random.key(0), jnp.int32(5))
    message = coded.send(round, state.server, state.profiles[1])
    assert bits(message) == SIZE * 8 + 32
    assert isinstance(message["model"], Quantized)
    row = jax.tree.map(lambda a: a[1], state.clients)
    x = jnp.array([[1.0], [2.0]])
    assert coded.predict["personal"](None, row, x)[1].tolist() == (2 * TARGETS[1]).tolist()
    assert coded.predict["double"](None, row, x)[1].tolist() == (4 * TARGETS[1]).tolist()
    _, upload, _ = coded.train(round, message, row, None)
    assert isinstance(upload["update"], Sparse)
    assert isinstance(upload["update"].values, Quantized)


def test_a_stochastic_down_link_is_unbiased_over_clients_and_rounds():
    """Each client gets a rounding of its own, by the key of its round."""
    coded = with_codecs(toy(), down=quantize(3, stochastic=True))
    server = jnp.asarray(normal(0, SIZE))

    def received(client_key):
        message = coded.send(Round(client_key, jnp.int32(0)), server, ())
        return codecs.dequantize(message["model"])

    draws = 2000
    values = np.asarray(jax.jit(jax.vmap(received))(jax.random.split(jax.random.key(1), draws)))
    assert len(np.unique(values, axis=0)) > draws / 2
    deviation = np.abs(server).max() / 3 / 2 / math.sqrt(draws)
    assert np.abs(values.mean(0, dtype=np.float64) - server).max() < 5 * deviation


def test_a_down_link_with_error_feedback_is_refused():
    with pytest.raises(UserError, match=r"wire\.down: must be a codec without error feedback"):
        with_codecs(toy(), down=top_k(0.5)).init(jax.random.key(0), toy_task())


def test_entropy_is_lossless_and_leaves_masks_that_an_algorithm_encodes():
    mask = np.arange(5000) % 50 == 0
    payload = {
        "mask": mask,
        "encoded": Encoded(mask),
        "conditional": Conditional(np.bool_(True), mask),
        "masked": Masked(mask, ~mask),
        "known": AlreadyKnown(mask),
        "installed": Installed(mask),
        "floats": np.ones(10, np.float32),
    }
    entropy = codecs.entropy()
    packed, _ = entropy.pack(None, payload, entropy.init(payload))
    assert bits(packed) == 3 * bits(Encoded(mask)) + 4900 + 320  # under a mask, a bool costs its bit
    assert len(nodes(Encoded, packed)) == 3
    received = entropy.unpack(decode(encode(packed), packed))
    assert jax.tree.structure(received) == jax.tree.structure(payload)
    assert isinstance(received["encoded"], Encoded)
    for name in set(payload) - {"masked"}:
        jax.tree.map(np.testing.assert_array_equal, received[name], payload[name])
    np.testing.assert_array_equal(received["masked"].values, mask & ~mask)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topk:0.1", r"wire=topk:0.1: must be one of top_k:SHARE"),
        ("top_k", r"must be one of top_k:SHARE"),
        ("top_k:0.1:always", r"must be one of top_k:SHARE"),
        ("quantize:eight", r"must be one of top_k:SHARE, .*quantize:BITS"),
        ("quantize:9", r"bits=9: must be an integer at least 2 and at most 8"),
        ("top_k:0.1+", r"must be one of top_k:SHARE"),
    ],
)
def test_malformed_codec_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_codec(text)


SKELETAL = {"algorithm.name": "fedskel", "algorithm.prune_dense": True}
SPLIT = {"algorithm.name": "ecofed", "algorithm.quantized": False}


@pytest.mark.parametrize(
    ("algorithm", "up", "ratio"),
    [
        pytest.param({"algorithm.name": "fedavg"}, "top_k:0.05", 10, marks=pytest.mark.slow),
        ({"algorithm.name": "fedavg"}, "top_k:0.1:forget+quantize:8", 13),
        pytest.param(SKELETAL, "quantize:8", 3.5, marks=pytest.mark.slow),
        pytest.param(SPLIT, "quantize:4", 6, marks=pytest.mark.slow),
    ],
    ids=["fedavg top_k", "fedavg both", "fedskel quantize", "ecofed quantize"],
)
def test_a_configuration_composes_any_algorithm_with_codecs(algorithm, up, ratio):
    common = {"data.clients": 10, "model.name": "mlp", "training.epochs": 1}

    def bytes_up(options):
        built, task = build.build(config.make_config(common | algorithm | options))
        simulation = make_simulation(built, task, cohort=3, chunk=1, plan="scan")
        _, (metrics,) = simulation.run(simulation.init(), 0, 1)
        assert np.isfinite((metrics.train | metrics.server)["loss"]).all()
        assert not metrics.dropped.any()
        return metrics.bytes_up.sum()

    assert bytes_up({}) / bytes_up({"wire.up": up}) > ratio
