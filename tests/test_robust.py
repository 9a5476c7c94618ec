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
from fedjax_masks.communication import codecs
from fedjax_masks.communication.payload import (
    AlreadyKnown,
    Conditional,
    Dialogue,
    Installed,
    Masked,
    Quantized,
    shape_only,
)
from fedjax_masks.core import trees
from fedjax_masks.core.aggregation import masked, masked_mean, weighted, weighted_mean
from fedjax_masks.core.algorithm import FederatedAlgorithm, Round, Stack
from fedjax_masks.core.errors import UserError
from fedjax_masks.simulation import make_simulation
from fedjax_masks.transforms.attacks import with_attack
from fedjax_masks.transforms.robust import clip, clip_to_median, median, trimmed_mean, with_robust_merge

COHORT = 7
WEIGHT = np.array([5, 0, 2, 9, 0, 1, 4], np.float32)  # two rows are padding or dropped
PRESENT = WEIGHT > 0
VALUES = np.random.default_rng(0).normal(size=(COHORT, 4, 3)).astype(np.float32)
MASK = np.random.default_rng(1).random((COHORT, 1, 3)) < 0.6
ROUND = Round(jax.random.key(0), jnp.int32(0))


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
    uploads = {"plain": VALUES, "masked": Masked({"w": VALUES}, {"w": MASK}), "known": AlreadyKnown(VALUES)}
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


def test_conditional_values_count_where_they_are_sent():
    flag = np.array([True, True, False, True, True, False, True])
    got, _ = after(median(), Conditional(flag, Masked(VALUES, MASK)))
    sent = (flag & PRESENT)[:, None] & MASK[:, 0]
    for column in range(3):
        values = VALUES[sent[:, column]][:, :, column]
        expected = np.median(values, axis=0) if len(values) else np.zeros(4)
        np.testing.assert_allclose(got.tree.values[0][:, column], expected, rtol=1e-6)
    assert bool(got.flag[0])
    nobody, _ = after(median(), Conditional(np.zeros(COHORT, bool), VALUES))
    assert not nobody.flag[0]
    assert not np.any(nobody.tree)


def test_a_share_is_exact_in_decimals():
    """0.3 times 10 is below 3 in floating point."""
    values = np.arange(10.0, dtype=np.float32) ** 3
    got, _ = after(trimmed_mean(0.3), values, np.ones(10, np.float32))
    np.testing.assert_allclose(got[0], values[3:7].mean(), rtol=1e-6)


def test_clipping_is_exact_and_leaves_short_uploads_alone():
    uploads = {"a": VALUES, "b": Masked(10 * VALUES, MASK)}
    norms = np.asarray(jax.vmap(codecs.global_norm)(uploads))
    expected = [np.sqrt((a**2).sum() + (100 * a**2 * m).sum()) for a, m in zip(VALUES.astype(float), MASK)]
    np.testing.assert_allclose(norms, expected, rtol=1e-5)
    for defence, limit in (
        (clip(float(norms[3])), norms[3]),
        (clip_to_median(0.5), 0.5 * np.median(norms[PRESENT])),
    ):
        got, weight = after(defence, uploads)
        np.testing.assert_array_equal(weight, WEIGHT)
        np.testing.assert_allclose(jax.vmap(codecs.global_norm)(got), np.minimum(norms, limit), rtol=1e-5)
        factor = np.minimum(1, limit / norms)
        np.testing.assert_allclose(got["a"], VALUES * factor[:, None, None], rtol=1e-5)
        short = norms <= limit
        np.testing.assert_array_equal(got["a"][short], VALUES[short])
    got, _ = after(clip(1.0), np.zeros((COHORT, 3), np.float32))
    assert not np.any(got)


@pytest.mark.slow
def test_a_trim_of_0_of_clients_of_equal_weight_is_the_algorithm():
    """So is the merge without defences, which the contract suite compares."""
    task = fm.load_task("digits", clients=10, examples_per_client=20)
    plain = fm.fedavg(fm.models.mlp(task, hidden=(8,)), optax.sgd(0.1))
    states = []
    for algorithm in (plain, with_robust_merge(plain, trimmed_mean(0.0))):
        simulation = make_simulation(algorithm, task, cohort=5, chunk=2, plan="scan")
        states.append(jax.device_get(simulation.run(simulation.init(), 0, 2)[0]))
    assert len(set(task.train.sizes.tolist())) == 1
    chex.assert_trees_all_close(*states, rtol=1e-5, atol=1e-6)


def server_of(receive, merge):
    """The server's half of an algorithm, of which no test here runs the other half."""
    return FederatedAlgorithm(None, None, None, receive, merge, {"global": None})


def test_elements_that_few_own_reach_a_masked_mean():
    """The centre over an element's owners is what a merge by elements gets."""
    algorithm = server_of(
        receive=lambda round, server, profile, upload, weight: (profile, masked(*upload, weight)),
        merge=lambda round, server, total: (masked_mean(total, server), None),
    )
    uploads, weight = Masked(VALUES, MASK), jnp.asarray(WEIGHT)
    robust = with_robust_merge(algorithm, median())
    merged, _ = robust.merge(ROUND, jnp.zeros((4, 3)), Stack((uploads, weight, ())))
    owned = PRESENT[:, None] & MASK[:, 0]
    for column in range(3):
        np.testing.assert_allclose(
            merged[:, column], np.median(VALUES[owned[:, column]][:, :, column], axis=0), rtol=1e-6
        )


def receive_weighted(round, server, profile, upload, weight):
    return profile, weighted(upload, weight)


def merge_nothing(round, server, total):
    return server, None


@pytest.mark.parametrize(
    ("upload", "words"),
    [
        ({"a": VALUES, "b": MASK}, "bool"),
        (Quantized(np.ones(3, np.int8), np.float32(1), shape_only((8,))), "Quantized"),
        ((), "nothing"),
        (Installed(VALUES), "nothing"),
    ],
    ids=["bool", "quantized", "nothing", "installed"],
)
def test_uploads_without_a_centre_are_refused(upload, words):
    robust = with_robust_merge(server_of(receive_weighted, merge_nothing), median())
    with pytest.raises(UserError, match=f"robust: must meet uploads of floats; these hold {words}"):
        robust.receive(ROUND, (), (), upload, jnp.float32(1))


def test_a_centre_of_known_bools_is_refused():
    with pytest.raises(UserError, match="robust: must meet uploads of floats; these hold bool"):
        after(median(), {"a": VALUES, "b": AlreadyKnown(MASK)})


def receive_by_profile(round, server, profile, upload, weight):
    return profile + 1, weighted(upload, weight * profile)


def receive_and_count(round, server, profile, upload, weight):
    return profile + jnp.sum(upload), weighted(upload, weight)


def test_contributions_that_depend_on_the_profile_are_refused():
    """Of a cohort's uploads one row may be left, which is no client's."""
    upload, weight, profile = jnp.ones(3), jnp.float32(2), jnp.float32(1)
    refused, accepted = (
        with_robust_merge(server_of(receive, merge_nothing), median())
        for receive in (receive_by_profile, receive_and_count)
    )
    with pytest.raises(UserError, match="robust: must meet an algorithm whose server treats the uploads"):
        refused.receive(ROUND, (), profile, upload, weight)
    # A profile may depend on the upload.
    new, contribution = accepted.receive(ROUND, (), profile, upload, weight)
    assert float(new) == 4
    jax.tree.map(np.testing.assert_array_equal, contribution, Stack((upload, weight, profile)))


def test_a_stack_arrives_stacked_behind_defences():
    """The rows that the defences leave, zeros for those without weight."""
    algorithm = server_of(
        receive=lambda round, server, profile, upload, weight: (
            profile,
            {"rows": Stack(upload), "sum": weight},
        ),
        merge=lambda round, server, total: ((total["rows"].tree, total["sum"]), None),
    )
    uploads, like = Stack((VALUES, jnp.asarray(WEIGHT), ())), (jnp.zeros_like(VALUES), jnp.float32(0))
    (rows, total), _ = with_robust_merge(algorithm).merge(ROUND, like, uploads)
    np.testing.assert_array_equal(rows, np.where(PRESENT[:, None, None], VALUES, 0))
    assert float(total) == WEIGHT.sum()


def test_profiles_of_clients_are_kept_beside_a_robust_merge():
    task, plain = cases.task(), cases.algorithm("fedavg")
    counting = plain._replace(
        init=lambda key, task: plain.init(key, task)._replace(profiles=jnp.zeros(task.num_clients)),
        receive=lambda round, server, profile, upload, weight: (profile + 1, weighted(upload, weight)),
    )
    robust = with_robust_merge(counting, median())
    simulation = make_simulation(robust, task, cohort=5, chunk=1, plan="scan")
    state, (metrics,) = simulation.run(simulation.init(), 0, 1)
    assert np.flatnonzero(state.profiles).tolist() == sorted(metrics.ids[0])


def test_a_dialogue_is_counted_once_beside_a_robust_merge():
    talk = Dialogue(jnp.uint32(80), jnp.uint32(160), jnp.float32(2), jnp.float32(3))
    plain = cases.algorithm("fedavg")

    def train(round, message, client, data):
        client, update, info = plain.train(round, message, client, data)
        return client, (update, talk), info

    def receive(round, server, profile, upload, weight):
        return profile, weighted(upload[0], weight)

    talking = with_robust_merge(plain._replace(train=train, receive=receive), trimmed_mean(0.2))
    simulation = make_simulation(talking, cases.task(), cohort=5, chunk=1, plan="scan")
    state = simulation.init()
    model = 4 * trees.size(state.server.params)
    _, (metrics,) = simulation.run(state, 0, 1)
    np.testing.assert_array_equal(metrics.bytes_up, model + 10)
    np.testing.assert_array_equal(metrics.bytes_down, model + 20)
    np.testing.assert_array_equal(metrics.server["flops"], 5 * 3)


def test_impossible_defences_and_attacks_are_refused():
    for share in (-0.1, 0.5):
        with pytest.raises(UserError, match=f"share={share}: must be at least 0 and below 0.5"):
            trimmed_mean(share)
    for make in (clip, clip_to_median):
        with pytest.raises(UserError, match=r"=0\.0: must be a number above 0"):
            make(0.0)
    plain = cases.algorithm("fedavg")
    with pytest.raises(UserError, match=r"attack\.kind=zeros: must be one of nan, scale, sign"):
        with_attack(plain, "zeros")
    with pytest.raises(UserError, match=r"attack\.share=2: must be a finite number at least 0 and at most 1"):
        with_attack(plain, "nan", share=2)
    with pytest.raises(UserError, match=r"attack\.kind=nan: must meet uploads of floats; these hold .*bool"):
        make_simulation(with_attack(cases.algorithm("fedmask"), "nan"), cases.task(), cohort=2)
    with pytest.raises(UserError, match="robust: must meet uploads of floats; these hold bool"):
        make_simulation(with_robust_merge(cases.algorithm("fedskel"), median()), cases.task(), cohort=2)


@pytest.mark.parametrize(("kind", "by"), [("scale", 50.0), ("sign", -1.0), ("nan", np.nan)])
def test_an_attack_spoils_floats_of_the_chosen_and_nothing_else(kind, by):
    plain, task = cases.algorithm("masked-fedavg"), cases.task()
    attacked = with_attack(plain, kind, share=0.34, factor=50.0, seed=1)
    honest, state = (algorithm.init(ROUND.key, task) for algorithm in (plain, attacked))
    assert int(state.clients.hostile.sum()) == round(0.34 * cases.NUM_CLIENTS)
    other = with_attack(plain, kind, share=0.34, seed=2).init(ROUND.key, task)
    assert (other.clients.hostile != state.clients.hostile).any()
    train, spoilt = jax.jit(plain.train), jax.jit(attacked.train)
    for client in np.argsort(state.clients.hostile)[[0, -1]]:
        message = plain.send(ROUND, honest.server, honest.profiles[client])
        row, own = jax.tree.map(lambda a, client=client: a[client], (state.clients, honest.clients))
        data = cases.data_of(task, int(client))
        new, upload, info = spoilt(ROUND, message, row, data)
        expected = train(ROUND, message, own, data)
        chex.assert_trees_all_equal((new.inner, info), (expected[0], expected[2]))
        if row.hostile:
            sent = codecs.map_floats(lambda leaf, sent: jnp.where(sent, leaf, 0), upload).values
            honest_sent = codecs.map_floats(
                lambda leaf, sent: jnp.where(sent, leaf * by, 0), expected[1]
            ).values
            chex.assert_trees_all_close(sent, honest_sent, rtol=1e-6)
            chex.assert_trees_all_equal(upload.mask, expected[1].mask)
        else:
            chex.assert_trees_all_close(upload, expected[1], rtol=1e-6)


def test_one_upload_of_nan_ruins_a_mean_without_the_engine():
    receive, upload = cases.algorithm("fedavg").receive, {"w": jnp.ones(3)}
    spoilt = jax.tree.map(lambda a: a * jnp.nan, upload)
    parts = [
        receive(ROUND, (), (), *sent)[1] for sent in ((upload, jnp.float32(9)), (spoilt, jnp.float32(1)))
    ]
    assert not trees.all_finite(weighted_mean(trees.add(*parts), upload))


# One in five clients is hostile: the plain mean against robust merges.

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


BREADTH = [pytest.param(name, marks=pytest.mark.slow) for name in ("trimmed mean", "clip")]


@pytest.mark.parametrize("defence", ["median", *BREADTH])
@pytest.mark.parametrize("kind", ["scale", pytest.param("nan", marks=pytest.mark.slow)])
def test_a_robust_merge_keeps_its_accuracy(kind, defence):
    assert accuracy(None, "mean") > 0.9
    assert accuracy(kind, defence) > accuracy(None, "mean") - 0.02


def test_the_mean_loses_its_accuracy_to_large_uploads():
    assert accuracy("scale", "mean") < 0.5


@pytest.mark.slow
def test_the_mean_keeps_its_accuracy_where_the_engine_leaves_nan_out():
    assert accuracy("nan", "mean") > accuracy(None, "mean") - 0.02
