"""FedDST against its paper: densities of layers, pruning and growing, the server's mask, bytes."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import fedjax_masks as fm
from fedjax_masks.algorithms.feddst import Upload
from fedjax_masks.algorithms.regrowth import drop_share, readjust, strongest, weight_counts
from fedjax_masks.communication import payload, size, visitor
from fedjax_masks.core.algorithm import Round
from fedjax_masks.core.errors import UserError
from fedjax_masks.data.tasks import rows_of
from fedjax_masks.simulation import make_simulation

LAYERS = ("dense1", "dense2")
WEIGHTS, BIASES = 6 * 8 + 8 * 3, 8 + 3


def mlp():
    return fm.models.mlp(cases.task(), hidden=(8,))


def feddst(optimizer=None, **options):
    options: Any = {"batch_size": 4, "sparsity": 0.5} | options
    return fm.feddst(mlp(), optimizer or optax.sgd(0.1), **options)


def kernels_of(params):
    return {name: np.asarray(params[name]["kernel"]) for name in LAYERS}


def largest(values, number):
    """bool: the largest of all values, the first of equals."""
    chosen = np.zeros(values.size, bool)
    chosen[np.argsort(-values, axis=None, kind="stable")[:number]] = True
    return chosen.reshape(values.shape)


def visit(algorithm, server, *, index=0, version=-1, mask=None):
    """A client's message, upload and facts in a round; the client has a version of the mask, or none."""
    round = Round(jax.random.key(1), jnp.int32(index))
    mask = jax.tree.map(jnp.zeros_like, server.mask) if mask is None else mask
    message = algorithm.send(round, server, jnp.int32(version))
    data = cases.data_of(cases.task(), 3)
    _, upload, info = jax.jit(algorithm.train)(round, visitor.poison(message), mask, data)
    return message, upload, info


@cache
def start():
    """The server's first state, which only the model and the sparsity decide."""
    return feddst().init(jax.random.key(0), cases.task()).server


EVERY, SHARE, UNTIL = 3, 0.4, 12


@pytest.fixture(scope="module")
def moving():
    """An algorithm whose mask moves in rounds 3, 6 and 9."""
    return feddst(adjust_every=EVERY, adjust_share=SHARE, adjust_until=UNTIL)


@pytest.fixture(scope="module")
def rounds(moving):
    """Six rounds of all clients: the states before and after each, and its facts."""
    simulation = make_simulation(moving, cases.task(), cohort=9, chunk=1)
    found, state = [], simulation.init()
    for index in range(6):
        before = jax.device_get(state)
        state, (metrics,) = simulation.run(state, index, 1)
        found.append((before, metrics, jax.device_get(state)))
    return found


CNN = [
    SimpleNamespace(name=name, shape=shape)
    for name, shape in (("a", (3, 3, 1, 32)), ("b", (3, 3, 32, 64)), ("c", (1024, 128)), ("d", (128, 10)))
]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_layers_share_the_budget(sparsity, distribution):
    counts = weight_counts(CNN, sparsity, distribution)
    sizes = {layer.name: int(np.prod(layer.shape)) for layer in CNN}
    assert abs(sum(counts.values()) - (1 - sparsity) * sum(sizes.values())) <= 0.5 * len(CNN)
    density = {name: counts[name] / sizes[name] for name in counts}
    if distribution == "uniform":
        np.testing.assert_allclose(list(density.values()), 1 - sparsity, atol=2e-3)
    else:
        # Where a layer is not whole, its weights are in proportion to the sum of its axes.
        factors = {x.name: counts[x.name] / sum(x.shape) for x in CNN}
        partial = [factors[x.name] for x in CNN if density[x.name] < 1]
        factor = max(factors.values())
        np.testing.assert_allclose(partial, [factor] * len(partial), rtol=0.02)


@pytest.mark.parametrize("drop", [0.0, 0.05, 0.3, 1.0])
def test_the_smallest_weights_make_room_for_the_largest_slopes(drop):
    rng = np.random.default_rng(0)
    weights, slopes = rng.normal(size=(2, 9, 11)).astype(np.float32)
    mask = largest(rng.random((9, 11)), 40)
    keep = max(1, 40 - round(drop * 40))
    held = largest(np.where(mask, np.abs(weights), -1), keep)
    grown = largest(np.where(held, -1, np.abs(slopes)), 40 - keep)
    new, kept = readjust(jnp.array(weights), jnp.array(slopes), jnp.array(mask), 40, jnp.float32(drop))
    np.testing.assert_array_equal(kept, held)
    np.testing.assert_array_equal(new, held | grown)
    assert new.sum() == 40


def test_of_equal_weights_those_of_most_support_stay():
    rng = np.random.default_rng(0)
    weights = np.where(rng.random(60) < 0.3, 0, rng.normal(size=60)).astype(np.float32)
    support = rng.integers(0, 4, 60).astype(np.float32)
    ranked = sorted(range(60), key=lambda i: (support[i] == 0, -abs(weights[i]), -support[i], i))
    for count in (5, 20, 35):
        expected = np.isin(np.arange(60), ranked[:count])
        np.testing.assert_array_equal(jax.jit(strongest)(weights, support, count), expected)


@pytest.mark.slow
def test_the_share_to_drop_decays_by_half_a_cosine_and_stops(moving):
    server, drops = start(), drop_share(jnp.arange(19), EVERY, SHARE, UNTIL)
    for number, drop in enumerate(drops.tolist(), start=1):
        expected = 0.2 * (1 + np.cos(np.pi * number / 12)) if number in (3, 6, 9) else 0.0
        assert drop == pytest.approx(expected, abs=1e-6)
        if number % EVERY == 0 or number < EVERY:
            _, upload, _ = visit(moving, server, index=number - 1)
            assert upload.mask.flag == (expected > 0)


def test_a_client_grows_where_the_gradient_over_its_data_is_largest():
    """Nothing is learnt before, so that the gradient is that at the weights received."""
    task, algorithm = cases.task(), feddst(optax.sgd(0.0), adjust_every=1, adjust_share=0.5)
    server = start()
    _, upload, info = visit(algorithm, server)
    rows = rows_of(task.train, 3)
    inputs = task.inputs[rows].astype(np.float64)
    slopes = reference.gradient(reference.layers(server.params), inputs, task.labels[rows])[::2]
    drop, moved = 0.25 * (1 + np.cos(np.pi / 200)), 0
    for name, weights, slope in zip(LAYERS, kernels_of(server.params).values(), slopes):
        mask = np.asarray(server.mask[name])
        count = mask.sum()
        held = largest(np.where(mask, np.abs(weights), -1), count - round(drop * count))
        grown = largest(np.where(held, -1, np.abs(slope)), round(drop * count))
        np.testing.assert_array_equal(upload.mask.tree[name], held | grown)
        np.testing.assert_array_equal(upload.params.values[name]["kernel"], np.where(held, weights, 0))
        moved += (grown & ~mask).sum()
    assert info.extra["readjusted"] == pytest.approx(moved / sum(int(m.sum()) for m in server.mask.values()))
    assert moved > 0
    assert upload.mask.flag


def test_the_server_averages_over_holders_and_prunes_to_the_target():
    algorithm = feddst()
    server = start()
    rng, weights = np.random.default_rng(0), [3.0, 1.0, 0.0]
    counts = {name: int(m.sum()) for name, m in server.mask.items()}
    uploads, masks, values = [], [], []
    for _ in weights:
        masks.append({n: largest(rng.random(m.shape), counts[n]) for n, m in server.mask.items()})
        values.append(jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), server.params))
        kept = {n: {"kernel": jnp.array(masks[-1][n]), "bias": jnp.ones(1, bool)} for n in LAYERS}
        bitmap = payload.Conditional(jnp.array(True), jax.tree.map(jnp.asarray, masks[-1]))
        uploads.append(
            visitor.poison(Upload(payload.Masked(jax.tree.map(jnp.asarray, values[-1]), kept), bitmap))
        )
    round, stale = Round(jax.random.key(0), jnp.int32(0)), jnp.int32(-1)

    @jax.jit
    def averaged(uploads):
        received = [
            algorithm.receive(round, server, stale, up, jnp.float32(w)) for up, w in zip(uploads, weights)
        ]
        total = jax.tree.map(lambda *parts: sum(parts), *(part for _, part in received))
        return algorithm.merge(round, server, total)[0], [version for version, _ in received]

    after, versions = averaged(uploads)  # a client of weight 0 adds nothing
    for name in LAYERS:
        owners = sum(w * m[name] for w, m in zip(weights, masks))
        sums = sum(w * np.where(m[name], v[name]["kernel"], 0) for w, m, v in zip(weights, masks, values))
        mean = np.divide(sums, owners, out=np.zeros_like(sums), where=owners > 0)
        kept = largest(np.where(owners > 0, np.abs(mean), -1), counts[name])
        np.testing.assert_array_equal(after.mask[name], kept)
        np.testing.assert_allclose(after.params[name]["kernel"], np.where(kept, mean, 0), rtol=1e-5)
        bias = (3 * values[0][name]["bias"] + values[1][name]["bias"]) / 4
        np.testing.assert_allclose(after.params[name]["bias"], bias, rtol=1e-5)
    # The mask has changed, and nobody has the new one.
    assert after.version == 1
    assert [int(version) for version in versions] == [0, 0, 0]


def test_the_mask_moves_in_its_rounds_only_and_keeps_its_size(rounds):
    moved, counts = [], {name: int(m.sum()) for name, m in rounds[0][0].server.mask.items()}
    assert sum(counts.values()) == WEIGHTS // 2
    for before, _, after in rounds:
        mask, params = after.server.mask, after.server.params
        moved.append(any((mask[name] != before.server.mask[name]).any() for name in LAYERS))
        assert {name: m.sum() for name, m in mask.items()} == counts
        assert not any(w[~mask[n]].any() for n, w in kernels_of(params).items())
    assert moved == [False, False, True, False, False, True]


def test_bytes_are_those_of_the_weights_kept_and_of_a_mask_that_moves(moving, rounds):
    """32 (1 - S) M, and M more on readjustment: up in its round, down after it, or at first contact."""
    weights, first, moves, rest = 32 * (WEIGHTS // 2 + BIASES), (True, False), (False, True), (False, False)
    for index, (down, up) in enumerate([first, rest, moves, first, rest, moves]):
        state, metrics, _ = rounds[index]
        mask, version = jax.tree.map(lambda a: a[3], (state.clients, state.profiles))
        message, upload, _ = visit(moving, state.server, index=index, version=version, mask=mask)
        assert size.bits(message) == weights + down * WEIGHTS
        assert size.bits(upload) == weights + up * WEIGHTS
        assert metrics.bytes_up.sum() == 9 * -(-(weights + up * WEIGHTS) // 8)
        assert metrics.bytes_down.sum() == 9 * -(-(weights + down * WEIGHTS) // 8)


@pytest.mark.parametrize("options", [{"sparsity": 1.0}, {"adjust_share": 1.5}, {"adjust_every": 0}])
def test_bad_options_are_named(options):
    (name,) = options
    with pytest.raises(UserError, match=f"^{name}=.*: must be"):
        feddst(**options)
