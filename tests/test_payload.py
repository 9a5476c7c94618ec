"""Payloads: their exact sizes, their bytes, and the poison on values that are not sent."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_masks.communication import entropy
from fedjax_masks.communication.payload import (
    AlreadyKnown,
    Conditional,
    Dialogue,
    Encoded,
    Installed,
    Masked,
    Quantized,
    Sparse,
    nodes,
    replace_nodes,
    shape_only,
)
from fedjax_masks.communication.serialization import decode, encode
from fedjax_masks.communication.size import (
    bits,
    dialogue,
    installed_bytes,
    static_bits,
    total_dialogue,
    traced_bits,
)
from fedjax_masks.communication.visitor import fold_sent, map_sent, poison

WIDTHS = {
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "int32": 32,
    "uint8": 8,
    "int8": 8,
    "int4": 4,
    "uint2": 2,
    "bool": 1,
}
SHAPES = [(), (5,), (2, 0), (3, 1, 2)]


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


def random_array(rng, shape, dtype):
    dtype = jnp.dtype(dtype)
    if jnp.issubdtype(dtype, jnp.bool_):
        return rng.random(shape) < 0.3
    if jnp.issubdtype(dtype, jnp.integer):
        # Poison writes the largest integer, so no value that is sent may equal it.
        info = jnp.iinfo(dtype)
        return rng.integers(int(info.min), int(info.max), shape).astype(dtype)
    return rng.normal(size=shape).astype(dtype)


def random_mask(rng, shape):
    whole = rng.random(len(shape)) < 0.3
    return rng.random([1 if one else n for one, n in zip(whole, shape)]) < 0.5


def random_payload(rng, depth=2):
    """A pytree of arrays and wrappers, drawn from a NumPy generator."""
    shape = SHAPES[rng.integers(len(SHAPES))]
    kind = rng.integers(10 if depth else 3)
    if kind < 3:
        return random_array(rng, shape, list(WIDTHS)[rng.integers(len(WIDTHS))])
    if kind == 3:
        return Masked(random_array(rng, shape, "float32"), np.asarray(random_mask(rng, shape)))
    if kind == 4:
        return AlreadyKnown(random_payload(rng, depth - 1))
    if kind == 5:
        return Conditional(np.bool_(rng.random() < 0.5), random_payload(rng, depth - 1))
    if kind == 6:
        return Encoded([rng.random((7, 5)) < rng.random(), rng.random(4500) < rng.random()])
    if kind == 7:
        size = int(rng.integers(1, 300))
        picked = rng.permutation(size)[: size // 3 + 1].astype(np.int32)
        like = np.zeros((size, 0), np.float32)
        return Sparse(random_array(rng, picked.shape, "float32"), picked, like)
    if kind == 8:
        return Installed(random_array(rng, shape, "float32"))
    num = int(rng.integers(1, 9))
    codes = rng.integers(-(2 ** (num - 1)), 2 ** (num - 1) - (num == 8), shape).astype(np.int8)
    quantized = Quantized(codes, np.float32(rng.random()), np.zeros((num, 0), np.float32))
    masked = Masked({"q": quantized}, {"q": np.asarray(random_mask(rng, shape))})
    return [quantized, masked, random_payload(rng, depth - 1)]


def reference_bits(node):
    """The definition, in plain Python, on concrete payloads."""
    if isinstance(node, (AlreadyKnown, Installed)):
        return 0
    if isinstance(node, Conditional):
        return reference_bits(node.tree) if node.flag else 0
    if isinstance(node, Masked) and isinstance(node.values, dict):
        (quantized,), (mask,) = node.values.values(), node.mask.values()
        sent = np.broadcast_to(mask, quantized.codes.shape).sum()
        return int(sent) * quantized.like.shape[0] + 32
    if isinstance(node, Masked):
        return int(np.broadcast_to(node.mask, node.values.shape).sum()) * 32
    if isinstance(node, Encoded):
        return sum(reference_code_length(mask) for mask in node.mask)
    if isinstance(node, Sparse):
        return len(node.values) * (32 + math.ceil(math.log2(node.like.shape[0])))
    if isinstance(node, Quantized):
        return node.codes.size * node.like.shape[0] + 32
    if isinstance(node, list):
        return sum(reference_bits(child) for child in node)
    return node.size * WIDTHS[str(node.dtype)]


def reference_code_length(mask):
    total = 0
    for start in range(0, mask.size, entropy.BLOCK):
        block = mask.ravel()[start : start + entropy.BLOCK]
        patterns = math.comb(block.size, int(block.sum()))
        total += block.size.bit_length() + (patterns - 1).bit_length()
    return total


@pytest.mark.parametrize(("dtype", "width"), WIDTHS.items())
def test_an_array_costs_its_size_times_its_width(dtype, width):
    values = random_array(np.random.default_rng(0), (3, 5), dtype)
    if jnp.issubdtype(values.dtype, jnp.integer):
        values[0, :2] = jnp.iinfo(values.dtype).min, jnp.iinfo(values.dtype).max
    assert bits(values) == static_bits(jax.ShapeDtypeStruct((3, 5), values.dtype)) == 15 * width
    received = decode(encode(values), jax.ShapeDtypeStruct((3, 5), values.dtype))
    assert received.dtype == values.dtype
    assert received.tobytes() == values.tobytes()


def test_sizes_of_vgg16_masks_as_published():
    """Li et al. 2021 (FedMask): one bit per weight of VGG16 with 10 classes."""
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    kernels = [(3, 3, i, o) for i, o in itertools.pairwise(channels)]
    kernels += [(25088, 4096), (4096, 4096), (4096, 10)]
    weights = [jax.ShapeDtypeStruct(shape, bool) for shape in kernels]
    biases = [jax.ShapeDtypeStruct(shape[-1:], bool) for shape in kernels]
    assert static_bits(weights) == 8 * 16_786_136
    assert -(-static_bits([weights, biases]) // 8) == 16_787_690


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_bits_bytes_and_values_agree(seed):
    payload = [random_payload(np.random.default_rng([seed, i])) for i in range(3)]
    data = encode(payload)
    assert bits(payload) == reference_bits(payload)
    assert len(data) == -(-bits(payload) // 8)

    # Values that are not sent neither change the bytes nor come back.
    poisoned = as_numpy(poison(payload))
    assert encode(poisoned) == data
    received = decode(data, payload)
    for sent, hidden, got in zip(*map(jax.tree.leaves, (payload, poisoned, received))):
        assert (got.shape, got.dtype) == (sent.shape, sent.dtype)
        unsent = (hidden != sent) & ~((hidden != hidden) & (sent != sent))
        np.testing.assert_array_equal(got, np.where(unsent, np.zeros_like(sent), sent))
    assert encode(received) == data


def test_decode_takes_known_parts_from_the_receiver():
    mask = np.array([True, False, True])
    sent = {"a": Masked(np.arange(3.0, dtype=np.float32), mask), "b": AlreadyKnown(np.array([1]))}
    like = {"a": Masked(jax.ShapeDtypeStruct((3,), np.float32), mask), "b": AlreadyKnown(np.array([2]))}
    received = decode(encode(sent), like)
    assert received["a"].values.tolist() == [0, 0, 2]
    assert received["b"].tree.tolist() == [2]


def test_whole_filters_count_all_their_values():
    filters = jnp.array([True, False, True, True]).reshape(1, 1, 1, 4)
    payload = Masked({"kernel": jnp.ones((3, 3, 2, 4))}, {"kernel": filters})
    assert bits(payload) == 3 * 3 * 2 * 3 * 32
    assert jnp.isnan(poison(payload).values["kernel"]).sum((0, 1, 2)).tolist() == [0, 18, 0, 0]


def test_sparse_indices_have_the_exact_width():
    for size, width in [(1, 0), (2, 1), (1000, 10), (1024, 10), (1025, 11)]:
        last = Sparse(np.array([2.5], np.float32), np.array([size - 1], np.int32), shape_only((size,)))
        assert bits(last) == 32 + width
        assert decode(encode(last), last).indices.tolist() == [size - 1]


@pytest.mark.parametrize(
    ("dtype", "unsent"),
    [("float32", np.nan), ("bfloat16", np.nan), ("int8", 127), ("uint8", 255), ("int32", 2**31 - 1)],
)
def test_poison_by_dtype(dtype, unsent):
    values = jnp.arange(3).astype(dtype)
    poisoned = jax.jit(poison)(Masked(values, jnp.array([False, True, False]))).values
    assert poisoned.dtype == values.dtype
    np.testing.assert_array_equal(np.asarray(poisoned, np.float64), [unsent, 1, unsent])
    assert poison(Conditional(jnp.array(True), values)).tree.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(
        np.asarray(poison(Conditional(jnp.array(False), values)).tree, float), [unsent] * 3
    )


def test_poison_negates_bools_and_leaves_known_parts():
    flags = jnp.array([True, False])
    payload = {"sent": Encoded(flags), "known": AlreadyKnown(flags), "installed": Installed(flags)}
    poisoned = poison(Conditional(jnp.array(False), payload)).tree
    assert poisoned["sent"].mask.tolist() == [False, True]
    assert poisoned["known"].tree.tolist() == [True, False]
    assert poisoned["installed"].tree.tolist() == [True, False]


def test_installed_parts_are_counted_apart_and_never_visited():
    weights = {"kernel": np.ones((3, 4), np.float32), "bias": np.ones(4, np.float16)}
    payload = [Installed(weights), Conditional(np.bool_(False), Installed(weights)), np.ones(2, np.float32)]
    assert installed_bytes(payload) == 2 * (4 * 12 + 2 * 4)
    assert bits(payload) == 8 * len(encode(payload)) == 2 * 32
    assert installed_bytes(jax.eval_shape(lambda: payload[:1])) == 56  # from shapes alone
    parts = []
    visited = map_sent(lambda part: parts.append(part.shape) or 2 * part.leaf, payload, known=True)
    assert parts == [(2,)]
    assert visited[0].tree is payload[0].tree
    assert len(nodes(Installed, payload)) == 2
    # The receiver takes an installed part from what it holds.
    like = [Installed({name: 5 * leaf for name, leaf in weights.items()}), *payload[1:]]
    assert decode(encode(payload), like)[0].tree["bias"].tolist() == [5] * 4


def test_map_sent_visits_known_parts_on_request():
    payload = {"a": AlreadyKnown(Masked(np.ones(3), np.array([True, False, True]))), "b": np.ones(2)}
    double = lambda part: 2 * part.leaf
    without, visited = (map_sent(double, payload, known=known) for known in (False, True))
    assert without["a"].tree.values.tolist() == [1, 1, 1]
    assert visited["a"].tree.values.tolist() == [2, 2, 2]
    assert without["b"].tolist() == visited["b"].tolist() == [2, 2]
    assert [part.sent_mask is True for part in fold_sent(lambda part: part, payload)] == [True]


@pytest.mark.parametrize("outer", [False, True])
def test_map_sent_replaces_conditions_by_their_conjunction(outer):
    first, second = np.array([True, True, False, False]), np.array([True, False, True, False])
    payload = Conditional(np.bool_(outer), Masked(Masked(np.arange(4.0), first), second))
    seen = []
    flip = lambda condition: seen.append(np.asarray(condition).tolist()) or ~condition
    mapped = map_sent(lambda part: part.leaf, payload, condition=flip)
    assert bool(mapped.flag) is not outer
    assert mapped.tree.mask.tolist() == (~(outer & second)).tolist()
    assert mapped.tree.values.mask.tolist() == (~(outer & first & second)).tolist()
    # Values are visited before their mask.
    assert seen == [outer, (outer & first & second).tolist(), (outer & second).tolist()]
    unchanged = map_sent(lambda part: part.leaf, payload)
    jax.tree.map(np.testing.assert_array_equal, unchanged, payload)


def test_replace_nodes_leaves_known_parts():
    coded = Encoded(np.ones(3, bool))
    replaced = replace_nodes(
        Encoded, lambda node: node.mask.sum(), [coded, AlreadyKnown(coded), Installed(coded)]
    )
    assert replaced == [3, AlreadyKnown(coded), Installed(coded)]


def test_dialogues_add_up_apart_from_the_payload():
    each = jax.ShapeDtypeStruct((10,), jnp.float32)
    talk = dialogue(each, (each, each), jnp.int32(3), 5, messages=6, flops=7.0)
    assert [int(value) for value in talk] == [3 * 320, 3 * 640, 6, 7]
    payload = {"a": talk, "b": np.ones(2, np.float32), "c": Conditional(jnp.array(True), talk)}
    assert bits(payload) == 64
    assert [int(value) for value in total_dialogue(payload)] == [1920, 3840, 12, 14]
    assert total_dialogue({"b": payload["b"]}) is None
    assert isinstance(poison(payload)["a"], Dialogue)
    assert total_dialogue(poison(payload)) == total_dialogue(payload)
    with pytest.raises(OverflowError, match="bits of messages in a round"):
        dialogue(each, (), jnp.int32(1), 2**32 // 320 + 1)


def test_nested_conditions_need_all_flags():
    for outer in (False, True):
        for inner in (False, True):
            values = Masked(np.ones(4, np.float32), np.array([True, True, False, False]))
            payload = Conditional(
                np.bool_(outer), [np.zeros(3, np.uint8), Conditional(np.bool_(inner), values)]
            )
            assert bits(payload) == outer * (24 + inner * 64) == 8 * len(encode(payload))


def test_conditional_bits_are_not_static():
    flag, values = jax.ShapeDtypeStruct((), bool), jax.ShapeDtypeStruct((4,), np.float32)
    mask = jax.ShapeDtypeStruct((4,), bool)
    nested = Conditional(flag, Conditional(flag, Masked(Masked(values, mask), mask)))
    assert static_bits([nested, values]) == 4 * 32


def test_traced_per_client_under_jit_and_vmap():
    rng = np.random.default_rng(1)
    mask = rng.random((6, 4, 5)) < 0.5
    stacked = {
        "masked": Masked(rng.normal(size=(6, 4, 5)).astype(np.float32), mask),
        "coded": Encoded(rng.random((6, 5000)) < 0.2),
        "conditional": Conditional(np.arange(6) % 2 == 0, np.ones((6, 9), np.float16)),
        "codes": Quantized(np.ones((6, 7), np.int8), np.ones(6, np.float32), np.zeros((6, 3, 0))),
    }
    clients = [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(6)]
    traced = jax.jit(jax.vmap(traced_bits))(stacked)
    assert traced.dtype == jnp.uint32
    totals = [static_bits(client) + int(t) for client, t in zip(clients, traced)]
    assert totals == [bits(client) for client in clients]
    assert [-(-total // 8) for total in totals] == [len(encode(client)) for client in clients]


def test_overflow_is_refused_while_tracing():
    def cost(size):
        mask = jax.ShapeDtypeStruct((size,), bool)
        return jax.eval_shape(traced_bits, Masked(jax.ShapeDtypeStruct((size,), jnp.float32), mask))

    assert cost(2**27 - 1).dtype == jnp.uint32
    with pytest.raises(OverflowError, match="4294967296"):
        cost(2**27)
    with pytest.raises(OverflowError):
        jax.eval_shape(
            traced_bits,
            Conditional(jax.ShapeDtypeStruct((), bool), jax.ShapeDtypeStruct((2**27,), jnp.float32)),
        )
    assert static_bits(jax.ShapeDtypeStruct((2**40,), jnp.float32)) == 2**45


@pytest.mark.parametrize(
    "payload",
    [
        Masked(np.zeros((2, 3)), np.ones(3, bool)),
        Masked(np.zeros((2, 3)), np.ones((2, 2), bool)),
        Masked(np.zeros(3), np.ones(3, np.float32)),
        Encoded(np.ones(3, np.float32)),
        Quantized(np.zeros(3, np.int8), np.ones(()), np.zeros((9, 0))),
        Quantized(np.zeros(3, np.int8), np.ones(()), np.zeros((0, 0))),
        jax.random.key(0),
    ],
    ids=["rank", "axis", "float mask", "float coded", "9 bits", "0 bits", "key"],
)
def test_malformed_payloads_are_refused(payload):
    for function in (bits, encode, poison, static_bits):
        with pytest.raises(ValueError, match="must"):
            function(payload)


def test_codes_and_indices_out_of_range_are_refused():
    with pytest.raises(ValueError, match="must be -4 to 3, and are -5 to 0"):
        encode(Quantized(np.array([-5, 0], np.int8), np.float32(1), np.zeros((3, 0))))
    with pytest.raises(ValueError, match="must be 0 to 8, and are 9 to 9"):
        encode(Sparse(np.ones(1), np.array([9]), np.zeros((3, 3, 0))))


@pytest.mark.parametrize(
    "density", [0.05, 0.5, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.2, 0.8, 0.95))]
)
def test_entropy_code_is_within_one_percent_of_the_entropy(density):
    mask = np.random.default_rng(2).random((401, 503)) < density
    p = mask.mean()
    entropy = -mask.size * (p * math.log2(p) + (1 - p) * math.log2(1 - p))
    data = encode(Encoded(mask))
    assert len(data) == -(-bits(Encoded(mask)) // 8)
    assert 8 * len(data) < 1.01 * entropy
    assert (decode(data, Encoded(mask)).mask == mask).all()


def test_lengths_of_ranks_are_exact():
    for num in [1, 2, 3, 64, 100, entropy.BLOCK]:
        patterns, lengths = 1, entropy.rank_bits(num)
        for ones in range(num + 1):
            assert lengths[ones] == (patterns - 1).bit_length()
            patterns = patterns * (num - ones) // (ones + 1)


def test_every_small_mask_has_its_own_code():
    for num in range(10):
        masks = [np.array([i >> j & 1 for j in range(num)], bool) for i in range(2**num)]
        codes = [encode(Encoded(mask)) for mask in masks]
        assert len(set(codes)) == 2**num
        for mask, code in zip(masks, codes):
            assert decode(code, Encoded(mask)).mask.tolist() == mask.tolist()


HOSTILE = {
    "floats": jax.ShapeDtypeStruct((3,), np.float32),
    "mask": Encoded(jax.ShapeDtypeStruct((21,), bool)),
    "sparse": Sparse(
        jax.ShapeDtypeStruct((2,), np.uint8), jax.ShapeDtypeStruct((2,), np.int32), shape_only((5,))
    ),
}


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=24))
def test_random_bytes_are_refused_or_decode_to_a_payload_of_these_bytes(data):
    for like in (HOSTILE, HOSTILE["mask"], HOSTILE["sparse"]):
        try:
            received = decode(data, like)
        except ValueError:
            continue
        assert encode(received) == data


def test_truncated_overlong_and_padded_bytes_are_refused():
    payload = {"a": np.ones(3, np.float32), "b": np.ones(3, bool)}
    data = encode(payload)
    for end in range(len(data)):
        with pytest.raises(ValueError, match="truncated"):
            decode(data[:end], payload)
    for more in (data + b"\0", data[:-1] + bytes([data[-1] | 1])):
        with pytest.raises(ValueError, match="too long"):
            decode(more, payload)
    with pytest.raises(ValueError, match="truncated"):
        decode(data, jax.ShapeDtypeStruct((2**50,), np.float32))


def test_impossible_masks_and_indices_are_refused():
    with pytest.raises(ValueError, match="6 ones in a block of 5"):
        decode(b"\xc0", Encoded(np.zeros(5, bool)))
    with pytest.raises(ValueError, match="no pattern"):  # 1 one of 5: ranks 0 to 4 in 3 bits
        decode(b"\x3c", Encoded(np.zeros(5, bool)))
    with pytest.raises(ValueError, match="must be 0 to 4"):
        decode(b"\x00\x00\xfc", HOSTILE["sparse"])
