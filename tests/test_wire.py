"""Wires: what they promise of the values, of the bits, and of any algorithm behind them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fedjax_masks as fm
from fedjax_masks.communication.payload import (
    Encoded,
    Known,
    Masked,
    Quantized,
    Sparse,
    When,
    bits,
    decode,
    encode,
    poison,
    static_bits,
)
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import ClientIndex, Cohort, FederatedAlgorithm, State, Task
from fedjax_masks.experiment import build, config
from fedjax_masks.transforms.compression import chain, identity, parse_wire, quantize, top_k, with_wire

WIRES = {
    "identity": identity(),
    "quantize": quantize(5),
    "stochastic": quantize(8, stochastic=True),
    "top_k": top_k(0.1),
    "top_k without memory": top_k(0.1, error_feedback=False),
    "both": chain(top_k(0.1), quantize(8)),
}


@functools.partial(jax.jit, static_argnums=0)
def send(wire, payload, key=None):
    """What the receiver has, and what was packed, in a first round."""
    packed, _ = wire.pack(key, payload, wire.init(payload))
    return wire.unpack(packed), packed


def normal(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def mixed_payload(seed):
    """Everything that a payload may hold. What is not sent is 0, as after a journey."""
    rng = np.random.default_rng(seed)
    mask, flag = rng.random((1, 6)) < 0.5, np.bool_(seed % 2)
    return {
        "plain": normal(seed, (6, 10)),
        "half": normal(seed, (60,), jnp.bfloat16),
        "scalar": np.asarray(rng.random(), np.float32),
        "masked": Masked({"w": np.where(mask, normal(seed, (10, 6)), 0)}, {"w": mask}),
        "when": When(flag, [np.where(flag, normal(seed, 60), 0)]),
        "known": Known(normal(seed, 60)),
        "coded": Encoded(rng.random(60) < 0.5),
        "counts": np.arange(60, dtype=np.int32),
        "bits": rng.random(60) < 0.5,
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


def test_values_too_small_for_a_scale_come_out_as_nothing_much():
    tiny = np.finfo(np.float32).tiny
    got, _ = send(quantize(8), jnp.array([tiny, -tiny, 0.0, tiny / 2]))
    assert np.abs(got).max() <= 2 * tiny


def test_ties_go_to_even_and_zeros_stay():
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
    wire, draws = quantize(3, stochastic=True), 4000
    keys = jax.random.split(jax.random.key(0), draws)
    scale = np.abs(values).max() / 3
    got = np.asarray(jax.jit(jax.vmap(lambda key: send(wire, values, key)[0]))(keys))
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
    """Sent plus residual equals all there ever was; whole numbers make the sums exact."""
    rng = np.random.default_rng(0)
    wire = top_k(0.1)
    state, total, sent = wire.init(jnp.zeros((10, 10))), np.zeros((10, 10)), np.zeros((10, 10))
    pack = jax.jit(lambda values, state: wire.pack(None, values, state))
    for _ in range(8):
        values = rng.integers(-100, 100, (10, 10)).astype(np.float32)
        packed, state = pack(values, state)
        total, sent = total + values, sent + wire.unpack(packed)
        np.testing.assert_array_equal(sent + state[0], total)
    assert np.count_nonzero(state[0])
    for _ in range(9):
        packed, state = pack(np.zeros((10, 10), np.float32), state)
    assert not np.count_nonzero(state[0])


def test_error_feedback_keeps_what_a_short_dtype_cannot_send():
    wire = top_k(0.1)
    values = jnp.arange(100, dtype=jnp.bfloat16)
    tiny = jnp.full(100, 2.0**-10, jnp.float32)
    packed, (residual,) = jax.jit(lambda *args: wire.pack(None, *args))(values, (tiny,))
    got = np.asarray(wire.unpack(packed), np.float64)
    np.testing.assert_array_equal(got + residual, np.asarray(values, np.float64) + 2.0**-10)


def test_without_error_feedback_there_is_no_state():
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
    _, (residual,) = pack(When(jnp.array(False), values))
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
    for wire, payload, expected in cases:
        assert static_bits(jax.eval_shape(functools.partial(send, wire), payload)[1]) == expected
    mask = np.arange(100)[None] < 25
    masked = Masked(np.ones((10, 100), np.float32), mask)
    assert bits(send(quantize(8), masked)[1]) == 250 * 8 + 32


@pytest.mark.parametrize("name", WIRES)
def test_bytes_and_structure_survive(name):
    wire, payload = WIRES[name], mixed_payload(3)
    got, packed = send(wire, payload, jax.random.key(0))
    data = encode(packed)
    assert len(data) == -(-bits(packed) // 8)
    assert bits(packed) <= bits(payload)

    received = wire.unpack(decode(data, packed))
    assert jax.tree.structure(received) == jax.tree.structure(payload)
    for sent, direct, coded in zip(*map(jax.tree.leaves, (payload, got, received))):
        assert (coded.shape, coded.dtype) == (sent.shape, sent.dtype)
        np.testing.assert_array_equal(coded, direct)
    for same in ("known", "coded", "counts", "bits", "scalar"):
        np.testing.assert_array_equal(*map(jax.tree.leaves, (received[same], payload[same])))


@pytest.mark.parametrize("name", ["stochastic", "both"])
def test_one_client_or_many(name):
    wire = WIRES[name]
    clients = [{name: mixed_payload(seed)[name] for name in ("plain", "masked")} for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *clients)
    keys = jax.random.split(jax.random.key(0), 3)
    states = trees.replicate(wire.init(clients[0]), 3)

    def first_round(key, payload, state):
        return wire.unpack(wire.pack(key, payload, state)[0])

    got = jax.jit(jax.vmap(first_round))(keys, stacked, states)
    alone = jax.jit(first_round)
    for i, (key, client) in enumerate(zip(keys, clients)):
        expected = alone(key, client, wire.init(client))
        for many, one in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
            np.testing.assert_allclose(np.float32(many[i]), np.float32(one), rtol=1e-6)


def test_shapes_suffice_for_a_state():
    payload = mixed_payload(0)
    like = jax.eval_shape(lambda: payload)
    for wire in WIRES.values():
        a, b = jax.eval_shape(wire.init, payload), wire.init(like)
        assert jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)
    assert [r.dtype for r in top_k(0.5).init(like)] == [np.float32] * 5


def test_requests_that_cannot_be_met():
    values = jnp.ones(100)
    for num in (1, 9):
        with pytest.raises(ValueError, match=f"bits={num}; accepted are 2 to 8"):
            quantize(num)
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"fraction={fraction}; accepted"):
            top_k(fraction)
    with pytest.raises(ValueError, match="needs a key"):
        quantize(8, stochastic=True).pack(None, values, ())
    with pytest.raises(ValueError, match="one quantize"):
        send(chain(quantize(8), quantize(4)), values)
    with pytest.raises(ValueError, match="one top_k"):
        send(chain(top_k(0.5), top_k(0.5)), values)


# A toy: every client pulls the server's vector towards a target of its own.

CLIENTS, SIZE = 4, 64
TARGETS = np.random.default_rng(9).integers(-50, 50, (CLIENTS, SIZE)).astype(np.float32)


def toy(*, stacked):
    def init(key, task):
        return State((), jnp.zeros(SIZE), jnp.asarray(TARGETS))

    def train(key, common, message, target, data):
        return target, {"update": target - message["model"]}, {"loss": jnp.zeros(())}

    def reduce(upload, weight):
        return {"sum": weight * upload["update"]}

    def merge(key, common, server, uploads, cohort):
        if stacked:
            return server + cohort.weight @ uploads["update"] / cohort.weight.sum()
        return server + uploads["sum"] / cohort.weight.sum()

    return FederatedAlgorithm(
        init=init,
        send=lambda server, client_id: {"model": server},
        train=train,
        merge=merge,
        reduce=None if stacked else reduce,
        predict=lambda common, server, client, x: x * client,
        probes={"double": lambda common, server, client, x: 2 * x * client},
    )


def toy_task():
    index = ClientIndex(np.arange(CLIENTS), np.arange(CLIENTS), np.ones(CLIENTS, np.int32))
    arrays = np.zeros((CLIENTS, 2), np.float32), np.zeros(CLIENTS, np.int32)
    return Task("toy", *arrays, *arrays, index, index, 2)


def one_round(algorithm, state, key):
    def client(client_id, row):
        message = algorithm.send(state.server, client_id)
        return algorithm.train(jax.random.fold_in(key, client_id), state.common, message, row, None)

    ids, weight = jnp.arange(CLIENTS), jnp.ones(CLIENTS)
    clients, uploads, _ = jax.vmap(client)(ids, state.clients)
    if algorithm.reduce is not None:
        uploads = jax.tree.map(lambda a: a.sum(0), jax.vmap(algorithm.reduce)(uploads, weight))
    server = algorithm.merge(key, state.common, state.server, uploads, Cohort(ids, weight))
    return State(state.common, server, clients)


def jitted_round(algorithm):
    return jax.jit(functools.partial(one_round, algorithm))


@pytest.mark.parametrize("stacked", [False, True])
def test_an_idle_wire_changes_nothing(stacked):
    key, plain = jax.random.key(0), toy(stacked=stacked)
    wired = with_wire(plain)
    expected = jitted_round(plain)(plain.init(key, toy_task()), key)
    got = jitted_round(wired)(wired.init(key, toy_task()), key)
    np.testing.assert_array_equal(got.server, expected.server)
    np.testing.assert_array_equal(got.clients.inner, expected.clients)


@pytest.mark.parametrize("stacked", [False, True])
def test_residuals_live_with_the_client(stacked):
    key = jax.random.key(0)
    wired = with_wire(toy(stacked=stacked), up=top_k(0.25))
    state = wired.init(key, toy_task())
    (residual,) = state.clients.wire
    assert residual.shape == (CLIENTS, SIZE)
    after = jitted_round(wired)(state, key)
    # Whole numbers and four clients: the sums are exact.
    np.testing.assert_array_equal(after.server + after.clients.wire[0].mean(0), TARGETS.mean(0))
    assert (np.count_nonzero(TARGETS - after.clients.wire[0], axis=1) == SIZE // 4).all()


def test_both_directions_and_the_clients_own_state():
    key = jax.random.key(0)
    wired = with_wire(toy(stacked=False), up=chain(top_k(0.25), quantize(8)), down=quantize(8))
    state = wired.init(key, toy_task())
    step = jitted_round(wired)
    for _ in range(5):
        state = step(state, key)
    message = wired.send(state.server, jnp.array(0))
    assert bits(message) == SIZE * 8 + 32
    assert isinstance(message["model"], Quantized)
    row = jax.tree.map(lambda a: a[1], state.clients)
    assert wired.predict(None, None, row, 2).tolist() == (2 * TARGETS[1]).tolist()
    assert wired.probes["double"](None, None, row, 2).tolist() == (4 * TARGETS[1]).tolist()
    _, upload, _ = wired.train(key, (), message, row, None)
    assert isinstance(upload["update"], Sparse)
    assert isinstance(upload["update"].values, Quantized)


@pytest.mark.parametrize("down", [quantize(8, stochastic=True), top_k(0.5)], ids=["stochastic", "memory"])
def test_the_down_link_is_deterministic_and_stateless(down):
    with pytest.raises(ValueError, match=r"stochastic=False|without error feedback"):
        with_wire(toy(stacked=False), down=down).init(jax.random.key(0), toy_task())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topk:0.1", r"wire=topk:0.1: .*accepted are top_k:SHARE"),
        ("top_k", r"accepted are top_k:SHARE"),
        ("top_k:0.1:always", r"accepted are top_k:SHARE"),
        ("quantize:eight", r"accepted are top_k:SHARE, .*quantize:BITS"),
        ("quantize:9", r"bits=9; accepted are 2 to 8"),
        ("top_k:0.1+", r"accepted are top_k:SHARE"),
    ],
)
def test_what_is_no_wire(text, message):
    with pytest.raises(ValueError, match=message):
        parse_wire(text)


@pytest.mark.parametrize(
    ("algorithm", "options", "least"),
    [
        ("fedavg", {"wire.up": "top_k:0.05"}, 10),
        ("fedavg", {"wire.up": "top_k:0.1:forget+quantize:8"}, 13),
        ("fedskel", {"wire.up": "quantize:8"}, 3.5),
        ("ecofed", {"algorithm.quantized": False, "wire.up": "quantize:4"}, 6),
    ],
)
def test_a_configuration_composes_any_algorithm_with_wires(algorithm, options, least):
    common = {"algorithm.name": algorithm, "data.clients": 10, "cohort": 3, "training.epochs": 1}

    def bytes_up(options):
        built, task = build.build(config.make_config(common | options))
        record = fm.simulate(built, task, rounds=1, cohort=3).records[0]
        assert np.isfinite(record["train_loss"])
        assert not record["clients_dropped"]
        return record["bytes_up"]

    plain = {key: value for key, value in options.items() if key != "wire.up"}
    assert bytes_up(plain) / bytes_up(options) > least
