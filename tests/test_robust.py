"""Robust merges: against NumPy, under every plan, and against clients that spoil their uploads."""

from functools import cache

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.communication.payload import Known, Masked, Quantized, When, shape_only
from fedjax_masks.core import trees
from fedjax_masks.core.aggregation import masked_mean, weighted, weighted_mean
from fedjax_masks.core.algorithm import Cohort, FederatedAlgorithm
from fedjax_masks.simulation import make_simulation
from fedjax_masks.transforms import compression
from fedjax_masks.transforms.attacks import with_attack
from fedjax_masks.transforms.robust import clip, clip_to_median, median, trimmed_mean, with_robust_merge

COHORT = 7
WEIGHT = np.array([5, 0, 2, 9, 0, 1, 4], np.float32)  # two rows are padding or dropped
PRESENT = WEIGHT > 0
VALUES = np.random.default_rng(0).normal(size=(COHORT, 4, 3)).astype(np.float32)
MASK = np.random.default_rng(1).random((COHORT, 1, 3)) < 0.6


def trimmed(values, cut):
    """The definition, for one coordinate: floats in, a float out."""
    ranked = sorted(values)
    kept = ranked[cut : len(ranked) - cut]
    return sum(kept) / len(kept) if kept else 0.0


def after(defence, uploads, weight=WEIGHT):
    return jax.jit(defence)(uploads, jnp.asarray(weight))


@pytest.mark.parametrize(
    ("defence", "cut_of"),
    [
        (median(), lambda n: max(n - 1, 0) // 2),
        (trimmed_mean(0.0), lambda n: 0),
        (trimmed_mean(0.2), lambda n: n // 5),
        (trimmed_mean(0.4), lambda n: 2 * n // 5),
    ],
    ids=["median", "trim 0", "trim 0.2", "trim 0.4"],
)
@pytest.mark.parametrize("weight", [WEIGHT, np.ones(COHORT, np.float32), np.eye(COHORT)[2]])
def test_a_centre_follows_its_definition(defence, cut_of, weight):
    uploads = {"plain": VALUES, "masked": Masked({"w": VALUES}, {"w": MASK}), "known": Known(VALUES)}
    got, total = after(defence, uploads, weight)
    assert float(total[0]) == weight.sum()
    owners = {"plain": weight > 0, "known": weight > 0}
    for index in np.ndindex(VALUES.shape[1:]):
        owned = (weight > 0) & MASK[:, 0, index[1]]
        for values, who in (
            (got["plain"], owners["plain"]),
            (got["known"].tree, owners["known"]),
            (got["masked"].values["w"], owned),
        ):
            expected = trimmed(VALUES[who][:, *index].astype(np.float64), cut_of(who.sum()))
            np.testing.assert_allclose(values[0][index], expected, rtol=1e-5, atol=1e-6)
        assert bool(got["masked"].mask["w"][0, 0, index[1]]) == owned.any()


def test_the_median_is_numpys():
    got, _ = after(median(), VALUES)
    np.testing.assert_allclose(got[0], np.median(VALUES[PRESENT], axis=0), rtol=1e-6)


def test_what_is_sent_now_and_then_counts_when_it_is_sent():
    flag = np.array([True, True, False, True, True, False, True])
    got, _ = after(median(), When(flag, Masked(VALUES, MASK)))
    sent = (flag & PRESENT)[:, None] & MASK[:, 0]
    for column in range(3):
        values = VALUES[sent[:, column]][:, :, column]
        expected = np.median(values, axis=0) if len(values) else np.zeros(4)
        np.testing.assert_allclose(got.tree.values[0][:, column], expected, rtol=1e-6)
    assert bool(got.flag[0])
    nobody, _ = after(median(), When(np.zeros(COHORT, bool), VALUES))
    assert not nobody.flag[0]
    assert not np.any(nobody.tree)


def test_a_share_is_taken_as_it_is_written():
    """0.3 times 10 is below 3 in floating point."""
    values = np.arange(10.0, dtype=np.float32) ** 3
    got, _ = after(trimmed_mean(0.3), values, np.ones(10, np.float32))
    np.testing.assert_allclose(got[0], values[3:7].mean(), rtol=1e-6)


def test_clipping_is_exact_and_leaves_the_short_alone():
    uploads = {"a": VALUES, "b": Masked(10 * VALUES, MASK)}
    norms = np.asarray(jax.vmap(compression.global_norm)(uploads))
    expected = [np.sqrt((a**2).sum() + (100 * a**2 * m).sum()) for a, m in zip(VALUES.astype(float), MASK)]
    np.testing.assert_allclose(norms, expected, rtol=1e-5)
    for defence, limit in (
        (clip(float(norms[3])), norms[3]),
        (clip_to_median(0.5), 0.5 * np.median(norms[PRESENT])),
    ):
        got, weight = after(defence, uploads)
        np.testing.assert_array_equal(weight, WEIGHT)
        np.testing.assert_allclose(
            jax.vmap(compression.global_norm)(got), np.minimum(norms, limit), rtol=1e-5
        )
        factor = np.minimum(1, limit / norms)
        np.testing.assert_allclose(got["a"], VALUES * factor[:, None, None], rtol=1e-5)
        short = norms <= limit
        np.testing.assert_array_equal(got["a"][short], VALUES[short])
    got, _ = after(clip(1.0), np.zeros((COHORT, 3), np.float32))
    assert not np.any(got)


def test_without_hostile_clients_and_with_equal_ones_a_trim_of_0_is_the_algorithm():
    """With equal weights the merge without defences and the mean without weights are the same."""
    task = fm.load_task("digits", clients=10, examples_per_client=20)
    plain = fm.fedavg(fm.models.mlp(task, hidden=(8,)), optax.sgd(0.1))
    states = []
    for algorithm in (plain, with_robust_merge(plain), with_robust_merge(plain, trimmed_mean(0.0))):
        simulation = make_simulation(algorithm, task, cohort=5, chunk=2, plan="scan")
        states.append(jax.device_get(simulation.run(simulation.init(), 0, 2)[0]))
    assert len(set(task.train.sizes.tolist())) == 1
    for state in states[1:]:
        chex.assert_trees_all_close(state, states[0], rtol=1e-5, atol=1e-6)


def test_elements_that_few_own_reach_a_masked_mean():
    """The centre over an element's owners is what a merge by elements gets."""
    algorithm = FederatedAlgorithm(
        init=None,
        send=None,
        train=None,
        merge=lambda key, common, server, total, cohort: total,
        reduce=lambda upload, weight: masked_mean(
            *jax.tree.map(lambda a: a[None], tuple(upload)), weight[None], default=jnp.zeros((4, 3))
        ),
    )
    merged = with_robust_merge(algorithm, median()).merge(
        None, (), (), Masked(VALUES, MASK), Cohort(jnp.arange(COHORT), jnp.asarray(WEIGHT))
    )
    owned = PRESENT[:, None] & MASK[:, 0]
    for column in range(3):
        np.testing.assert_allclose(
            merged[:, column], np.median(VALUES[owned[:, column]][:, :, column], axis=0), rtol=1e-6
        )


@pytest.mark.parametrize(
    ("uploads", "words"),
    [
        ({"a": VALUES, "b": MASK}, "bool"),
        (Quantized(np.ones((COHORT, 3), np.int8), np.ones(COHORT), shape_only((COHORT, 8))), "Quantized"),
        ((), "nothing"),
        ({"a": VALUES, "b": Known(MASK)}, "bool"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_uploads_that_have_no_centre_are_refused(uploads, words):
    algorithm = FederatedAlgorithm(None, None, None, lambda *args: args[3], reduce=weighted)
    merge = with_robust_merge(algorithm, median()).merge
    with pytest.raises(ValueError, match=f"hold {words}; accepted are floats"):
        merge(None, (), (), uploads, Cohort(jnp.arange(COHORT), jnp.asarray(WEIGHT)))


def test_requests_that_cannot_be_met():
    for share in (-0.1, 0.5):
        with pytest.raises(ValueError, match=f"share={share}; accepted"):
            trimmed_mean(share)
    for make in (clip, clip_to_median):
        with pytest.raises(ValueError, match="accepted is a number above 0"):
            make(0.0)
    plain = cases.algorithm("fedavg")
    with pytest.raises(ValueError, match="accepted is one that adds them up"):
        with_robust_merge(cases.algorithm("fedskel"), median())
    with pytest.raises(ValueError, match="kind='zeros'; accepted are nan, scale, sign"):
        with_attack(plain, "zeros")
    with pytest.raises(ValueError, match="share=2; accepted"):
        with_attack(plain, "nan", share=2)
    with pytest.raises(ValueError, match=r"uploads hold .*bool; accepted are floats"):
        make_simulation(with_attack(cases.algorithm("fedmask"), "nan"), cases.task(), cohort=2)


@pytest.mark.parametrize(("kind", "by"), [("scale", 50.0), ("sign", -1.0), ("nan", np.nan)])
def test_an_attack_spoils_floats_of_the_chosen_and_nothing_else(kind, by):
    plain, task = cases.algorithm("masked-fedavg"), cases.task()
    attacked = with_attack(plain, kind, share=0.34, factor=50.0, seed=1)
    key = jax.random.key(0)
    honest, state = plain.init(key, task), attacked.init(key, task)
    assert int(state.clients.hostile.sum()) == round(0.34 * cases.NUM_CLIENTS)
    other = with_attack(plain, kind, share=0.34, seed=2).init(key, task)
    assert (other.clients.hostile != state.clients.hostile).any()
    train, spoilt = jax.jit(plain.train), jax.jit(attacked.train)
    for client in np.argsort(state.clients.hostile)[[0, -1]]:
        message = plain.send(honest.server, jnp.int32(client))
        row, own = jax.tree.map(lambda a, client=client: a[client], (state.clients, honest.clients))
        data = cases.data_of(task, int(client))
        new, upload, metrics = spoilt(key, (), message, row, data)
        expected = train(key, (), message, own, data)
        chex.assert_trees_all_equal((new.inner, metrics), (expected[0], expected[2]))
        if row.hostile:
            sent = compression.map_floats(lambda leaf, sent: jnp.where(sent, leaf, 0), upload).values
            honest_sent = compression.map_floats(
                lambda leaf, sent: jnp.where(sent, leaf * by, 0), expected[1]
            ).values
            chex.assert_trees_all_close(sent, honest_sent, rtol=1e-6)
            chex.assert_trees_all_equal(upload.mask, expected[1].mask)
        else:
            chex.assert_trees_all_close(upload, expected[1], rtol=1e-6)


def test_one_upload_of_nan_ruins_a_mean_that_nobody_guards():
    plain, upload = cases.algorithm("fedavg"), {"w": jnp.ones(3)}
    spoilt = jax.tree.map(lambda a: a * jnp.nan, upload)
    sums = trees.add(plain.reduce(upload, jnp.float32(9)), plain.reduce(spoilt, jnp.float32(1)))
    assert not trees.all_finite(weighted_mean(sums, upload))


# One in five clients is hostile: the merge that believes everybody against those that do not.

ROUNDS = 10
DEFENCES = {
    "mean": (),
    "median": (median(),),
    "trimmed mean": (trimmed_mean(0.35),),
    "clip": (clip_to_median(1.0),),
}


@cache
def accuracy(kind, defence):
    task = fm.load_task("digits", clients=20)
    algorithm = fm.fedavg(fm.models.mlp(task, hidden=(32,)), optax.sgd(0.1), epochs=2)
    if kind is not None:
        algorithm = with_attack(algorithm, kind)
    if DEFENCES[defence]:
        algorithm = with_robust_merge(algorithm, *DEFENCES[defence])
    run = fm.simulate(algorithm, task, rounds=ROUNDS, cohort=20, plan="scan")
    return run.records[-1]["global_accuracy"]


@pytest.mark.parametrize("defence", ["median", "trimmed mean", "clip"])
@pytest.mark.parametrize("kind", ["scale", "nan"])
def test_a_robust_merge_keeps_its_accuracy(kind, defence):
    assert accuracy(None, "mean") > 0.9
    assert accuracy(kind, defence) > accuracy(None, "mean") - 0.02


def test_the_mean_does_not():
    assert accuracy("scale", "mean") < 0.5
    assert accuracy("nan", "mean") > accuracy(None, "mean") - 0.02  # left out before any merge
