"""Privacy of clients: clipping, the amount of noise, and its epsilon."""

import functools
import json
import math

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm as gauss

from fedjax_masks.communication import codecs
from fedjax_masks.communication.payload import AlreadyKnown, Dialogue, Encoded, Installed, Masked
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Round
from fedjax_masks.core.errors import UserError
from fedjax_masks.experiment.config import make_config
from fedjax_masks.experiment.experiment import run_experiment
from fedjax_masks.transforms.privacy import default_delta, epsilon, with_equal_weights

MASK = np.arange(300) % 3 > 0
PAYLOAD = {
    "plain": np.linspace(-3, 3, 400, dtype=np.float32).reshape(20, 20),
    "masked": Masked(np.full(300, 2.0, np.float32), MASK),
    "known": AlreadyKnown(np.ones(50, bool)),
    "installed": Installed(np.full(50, 9.0, np.float32)),
}
LENGTH = math.sqrt(float((PAYLOAD["plain"].astype(float) ** 2).sum()) + 4 * MASK.sum())


def sent_floats(payload):
    return np.concatenate([np.ravel(payload["plain"]), np.asarray(payload["masked"].values)[MASK]])


@pytest.mark.parametrize("limit", [LENGTH / 7, 2 * LENGTH])
def test_clipping_scales_all_sent_values_by_one_factor(limit):
    private = codecs.clip_and_noise(limit, 0.0, cohort=5)
    packed, _ = private.pack(jax.random.key(0), PAYLOAD, ())
    assert float(codecs.global_norm(packed)) == pytest.approx(min(limit, LENGTH), rel=1e-5)
    factor = min(1, limit / LENGTH)
    np.testing.assert_allclose(sent_floats(packed), factor * sent_floats(PAYLOAD), rtol=1e-5)
    assert packed["installed"] is PAYLOAD["installed"]


def test_the_sum_over_a_cohort_has_the_chosen_noise():
    limit, multiplier, cohort = 2.0, 1.5, 25
    private = codecs.clip_and_noise(limit, multiplier, cohort=cohort)
    keys = jax.random.split(jax.random.key(0), (40, cohort))
    pack = jax.jit(jax.vmap(jax.vmap(lambda key: private.pack(key, PAYLOAD, ())[0])))
    packed = pack(keys)
    clipped, _ = codecs.clip_and_noise(limit, 0.0, cohort=1).pack(keys[0, 0], PAYLOAD, ())
    noise = np.asarray(packed["plain"].sum(1) - cohort * clipped["plain"])
    expected = multiplier * limit
    # The deviation of n draws errs by 1 / sqrt(2 n), relatively.
    assert noise.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * noise.size))
    assert abs(noise.mean()) < 5 * expected / math.sqrt(noise.size)
    masked = np.asarray(packed["masked"].values)
    kept = np.asarray(clipped["masked"].values)[~MASK]
    np.testing.assert_allclose(masked[..., ~MASK], np.broadcast_to(kept, masked[..., ~MASK].shape), rtol=1e-5)
    single = masked[..., MASK] - np.asarray(clipped["masked"].values)[MASK]
    assert single.std() == pytest.approx(expected / math.sqrt(cohort), rel=5 / math.sqrt(2 * single.size))


def test_arrays_and_clients_draw_independently():
    private = codecs.clip_and_noise(1.0, 1.0, cohort=4)
    same = {"a": jnp.zeros(500), "b": jnp.zeros(500)}
    first, _ = private.pack(jax.random.key(0), same, ())
    second, _ = private.pack(jax.random.key(1), same, ())
    for a, b in ((first["a"], first["b"]), (first["a"], second["a"])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(500)


@pytest.mark.parametrize(
    "extra",
    [
        np.ones(3, bool),
        np.ones(3, np.int32),
        Encoded(np.ones(3, bool)),
        Dialogue(*map(np.uint32, range(4))),
    ],
    ids=["bool", "int32", "Encoded", "Dialogue"],
)
def test_values_that_noise_does_not_hide_are_refused(extra):
    private = codecs.clip_and_noise(1.0, 1.0, cohort=4)
    with pytest.raises(ValueError, match=r"must get floats alone, and the payload sends \w+"):
        private.pack(jax.random.key(0), {**PAYLOAD, "extra": extra}, ())
    with pytest.raises(ValueError, match="sends nothing"):
        private.pack(jax.random.key(0), (), ())
    with pytest.raises(ValueError, match="must get a key"):
        private.pack(None, PAYLOAD, ())


@pytest.mark.parametrize(("norm", "multiplier", "cohort"), [(0.0, 1.0, 1), (1.0, -1.0, 1), (1.0, 1.0, 0)])
def test_arguments_out_of_range_are_refused(norm, multiplier, cohort):
    with pytest.raises(ValueError, match=r"must be (a finite number|an integer)"):
        codecs.clip_and_noise(norm, multiplier, cohort=cohort)


def exact(deviation, delta):
    """Epsilon of one Gaussian mechanism of sensitivity 1 (Balle and Wang 2018, arXiv 1805.06530)."""

    def excess(eps):
        a, b = 1 / (2 * deviation), eps * deviation
        return gauss.cdf(a - b) - math.exp(eps) * gauss.cdf(-a - b) - delta

    return brentq(excess, 0, 100)


@pytest.mark.parametrize("multiplier", [3.0, 8.0])
def test_without_sampling_epsilon_is_that_of_one_gaussian(multiplier):
    """T rounds of all clients are one with a sqrt(T)-th of the noise; a replaced client moves two norms."""
    run = {"clients": 100, "cohort": 100, "rounds": 9, "multiplier": multiplier, "delta": 1e-5}
    one = exact(multiplier / 3, 1e-5)
    assert epsilon(**run, sampling="poisson") == pytest.approx(one, rel=1e-2)
    replaced = exact(multiplier / 6, 1e-5)
    assert replaced <= epsilon(**run) < 1.25 * replaced  # Rényi's way back to epsilon is an upper bound


def test_epsilon_beside_a_published_one():
    """Abadi et al. 2016 (arXiv 1607.00133), section 3.2: 1.26 by moments, an upper bound of ours."""
    run = {"clients": 60_000, "cohort": 600, "rounds": 10_000, "multiplier": 4.0, "delta": 1e-5}
    ours = epsilon(**run, sampling="poisson")
    assert 0.7 * 1.26 < ours < 1.26
    assert ours < epsilon(**run)


BASE = {"clients": 100, "cohort": 10, "rounds": 10, "multiplier": 2.0}


@functools.cache
def epsilon_of_base():
    return epsilon(**BASE)


@pytest.mark.parametrize("worse", [{"rounds": 20}, {"cohort": 20}, {"multiplier": 1.0}, {"delta": 1e-6}])
def test_epsilon_grows_with_rounds_and_cohorts_and_shrinks_with_noise(worse):
    assert epsilon_of_base() < epsilon(**{**BASE, **worse})


def test_delta_is_that_of_the_number_of_clients_unless_it_is_chosen():
    assert epsilon_of_base() == epsilon(**BASE, delta=default_delta(100))


@pytest.mark.parametrize("wrong", [{"cohort": 11}, {"multiplier": 0.0}, {"rounds": 0}, {"delta": 1.0}])
def test_impossible_guarantees_are_refused(wrong):
    with pytest.raises(ValueError, match=r"epsilon: .*must be"):
        epsilon(**{"clients": 10, "cohort": 2, "rounds": 1, "multiplier": 1.0, **wrong})


SIZES = np.array([7, 12, 1, 20], np.float32)


def updates(algorithm, uploads):
    """The change of the model by the merge of a round."""
    private = codecs.clip_and_noise(0.01, 0.0, cohort=len(SIZES))
    packed = [private.pack(jax.random.key(0), upload, ())[0] for upload in uploads]
    server, round = algorithm.init(jax.random.key(0), cases.task()).server, Round(None, jnp.int32(0))
    parts = [algorithm.receive(round, server, (), *pair)[1] for pair in zip(packed, SIZES)]
    after, _ = algorithm.merge(round, server, functools.reduce(trees.add, parts))
    return trees.sub(after.params, server.params)


def test_a_client_moves_the_sum_by_two_norms_at_most_whatever_its_size():
    plain = cases.algorithm("fedavg")
    like = plain.init(jax.random.key(0), cases.task()).server.params
    uploads = [trees.scale(jax.tree.map(jnp.ones_like, like), sign) for sign in (1.0, -2.0, 0.5, 3.0)]
    replaced = [*uploads[:-1], trees.scale(uploads[-1], -1.0)]

    def moved(algorithm):
        change = trees.sub(updates(algorithm, replaced), updates(algorithm, uploads))
        return len(SIZES) * float(codecs.global_norm(change))

    assert moved(with_equal_weights(plain)) == pytest.approx(0.02, rel=1e-3)
    assert moved(with_equal_weights(plain, 10.0)) == pytest.approx(0.02, rel=1e-3)
    assert moved(plain) == pytest.approx(0.02 * 4 * 20 / SIZES.sum(), rel=1e-3)


def test_the_summary_of_a_private_run_has_its_guarantee(tmp_path):
    values = {"algorithm.name": "fedavg", "model.name": "mlp", "model.hidden": "8", "data.clients": 10}
    values |= {"cohort": 4, "rounds": 2, "privacy.norm": 0.5, "privacy.multiplier": 2.0}
    run = run_experiment(make_config(values), tmp_path / "run", quiet=True)
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())
    expected = epsilon(clients=10, cohort=4, rounds=2, multiplier=2.0)
    assert stored["epsilon"] == run.summary["epsilon"] == expected
    assert stored["delta"] == default_delta(10)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"algorithm.name": "fedmask"}, "must get floats alone"),
        ({"algorithm.name": "fedavg", "devices": "rpi4@wifi,dropout=0.1"}, "noise with them"),
    ],
    ids=["fedmask", "dropout"],
)
def test_runs_without_a_guarantee_are_refused(tmp_path, values, words):
    config = make_config({"privacy.norm": 1.0, "model.name": "mlp", "model.hidden": "8", **values})
    with pytest.raises(UserError, match=words):
        run_experiment(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
