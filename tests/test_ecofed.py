"""EcoFed against its paper: quantisation, replays, the server's cache, and bytes."""

from functools import partial

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.algorithms.activations import quantize
from fedjax_masks.algorithms.fedavg import averaging
from fedjax_masks.algorithms.splitfed import Sides
from fedjax_masks.communication import codecs
from fedjax_masks.core import trees
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.training import Trainer
from fedjax_masks.costs.devices import make_population
from fedjax_masks.data import synthetic_task
from fedjax_masks.simulation import make_simulation
from fedjax_masks.simulation.cohorts import draw_cohort
from fedjax_masks.transforms.compression import with_codecs

SGD = optax.sgd(0.1)
COHORT = 3


@pytest.fixture(scope="module")
def task():
    return cases.task((8, 8, 1))  # ragged clients


@pytest.fixture(scope="module")
def model(task):
    return fm.models.cnn(task).rebuild((4, 6, 8, 3))


@pytest.fixture(scope="module", params=["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
def whole(request, model):
    """Sent every round, and unquantized: a task of clients that weigh alike, the model, the last state."""
    task = synthetic_task({"mlp": (6,), "cnn": (8, 8, 1)}[request.param], 3, [12] * 8, seed=1)
    net = fm.models.mlp(task, hidden=(8, 8)) if request.param == "mlp" else model
    algorithm = fm.ecofed(net, SGD, batch_size=5, split=net.splits[1], period=1, quantized=False)
    return task, net, simulate(algorithm, task, 3)[0][-1]


@pytest.fixture(scope="module")
def unquantized(task, model):
    """The algorithm, its simulation, the states before and after each of five rounds, and their metrics."""
    algorithm = fm.ecofed(model, SGD, batch_size=5, split="conv1", quantized=False)
    simulation = make_simulation(algorithm, task, cohort=COHORT, chunk=1, plan="scan")
    return algorithm, simulation, *run(simulation, 5)


@pytest.fixture(scope="module")
def lossy(task, model):
    """The states before and after each of six rounds with clients who get lost, and the metrics."""
    population = make_population("rpi4@wifi,dropout=0.4,available=0.8", task.num_clients)
    algorithm = fm.ecofed(model, SGD, batch_size=5, split="conv2")
    return simulate(algorithm, task, 6, cohort=5, population=population)


def simulate(algorithm, task, rounds, *, cohort=COHORT, population=None):
    """The states before and after every round, and all metrics."""
    simulation = make_simulation(algorithm, task, cohort=cohort, chunk=1, plan="scan", population=population)
    return run(simulation, rounds)


def run(simulation, rounds):
    states, history = [jax.device_get(simulation.init())], []
    for number in range(rounds):
        state, (metrics,) = simulation.run(jax.device_put(states[-1]), number, 1)
        states.append(jax.device_get(state))
        history.append(metrics)
    return states, history


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).standard_normal((5, 4, 3)),
        np.abs(np.random.default_rng(1).standard_normal((5, 7))) * 1e-20,
        np.zeros((2, 3)),
        np.full((3, 2), -2.5),
        [[0.5, 1.5, 2.5, 127.0]],
    ],
)
def test_no_value_is_off_by_more_than_half_a_step(values):
    values = jnp.asarray(values, jnp.float32)
    codes, scale = quantize(values, jnp.ones(len(values), bool))
    assert codes.dtype == jnp.int8
    back = np.asarray(codes, np.float64) * float(scale)
    assert np.abs(back - np.asarray(values, np.float64)).max() <= float(scale) / 2 * (1 + 1e-6)


def test_halves_are_rounded_to_even():
    codes, _ = quantize(jnp.array([[0.5, 1.5, 2.5, -0.5, 127.0]]), jnp.ones(1, bool))
    assert codes.tolist() == [[0, 2, 2, 0, 127]]


def test_a_nan_is_not_hidden_by_quantisation():
    assert jnp.isnan(quantize(jnp.array([[1.0, jnp.nan]]), jnp.ones(1, bool))[1])


@pytest.mark.slow
def test_sent_every_round_and_whole_it_is_splitfed_whose_devices_do_not_learn(whole):
    task, model, ours = whole
    rules = {"moves": SGD, "still": optax.set_to_zero()}
    still = optax.multi_transform(rules, Sides("still", "moves"))
    vanilla = fm.splitfed(model, still, batch_size=5, split=model.splits[1])
    other = simulate(vanilla, task, 3)[0][-1]
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), ours.server.params, other.server.server)
    chex.assert_trees_all_equal(ours.server.device, other.server.device)


def test_sent_every_round_and_whole_it_is_fedavg_whose_devices_do_not_learn(whole):
    task, model, ours = whole
    moves = jax.tree.map(
        lambda a: jnp.ones((1,) * a.ndim, bool), jax.eval_shape(model.init, jax.random.key(0))
    )
    moves = {name: trees.zeros_like(m) if name in model.splits[:2] else m for name, m in moves.items()}
    fit = Trainer(SGD, batch_size=5).supervised(model.apply)
    frozen = averaging(model, partial(fit, update_mask=moves))
    other = simulate(frozen, task, 3)[0][-1]
    both = {**ours.server.device, **ours.server.params}
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), both, other.server.params)


def test_devices_send_every_other_round_and_never_change(unquantized):
    _, _, states, history = unquantized
    sends = [metrics.bytes_up.sum() > 0 for metrics in history]
    assert sends == [True, False, True, False, True]
    assert not sum(metrics.bytes_down.sum() for metrics in history)
    for before, after, metrics, sent in zip(states, states[1:], history, sends):
        chex.assert_trees_all_equal(after.server.device, before.server.device)
        old, new = (state.profiles.activations.values for state in (before, after))
        changed = np.any(new != old, axis=(1, 2, 3, 4, 5))
        assert set(np.flatnonzero(changed)) <= set(metrics.ids[0] if sent else [])
        known = set(np.flatnonzero(before.profiles.size)) | set(metrics.ids[0] if sent else [])
        assert set(np.flatnonzero(after.profiles.size)) == known
        with np.testing.assert_raises(AssertionError):
            chex.assert_trees_all_equal(after.server.params, before.server.params)


def test_the_first_replay_is_of_the_first_cohort(task, unquantized):
    """Other clients' activations are not read."""
    _, simulation, (_, state, *_), (metrics, *_) = unquantized
    others = ~np.isin(np.arange(task.num_clients), metrics.ids)
    activations = state.profiles.activations
    values = np.where(others.reshape(-1, *(1,) * 5), np.nan, activations.values)
    profiles = state.profiles._replace(activations=activations._replace(values=values))
    ruined = state._replace(profiles=profiles)
    (clean, _), (replayed, (again,)) = (simulation.run(jax.device_put(s), 1, 1) for s in (state, ruined))
    np.testing.assert_array_equal(again.ids, metrics.ids)
    chex.assert_trees_all_equal(replayed.server.params, clean.server.params)
    assert not np.array_equal(
        clean.server.params["dense1"]["kernel"], state.server.params["dense1"]["kernel"]
    )


def test_replays_are_drawn_evenly_from_all_earlier_cohorts():
    algorithm = fm.ecofed(fm.models.cnn(synthetic_task((8, 8, 1), 3, [9])), SGD, period=3)
    draws, select = [], algorithm.schedule.select

    def draw(index, among=None):
        draws.append((index, among))
        return np.array([index, index + 1, 7])

    assert select(6, draw).tolist() == [6, 7, 7]
    assert draws == [(6, None)]
    select(8, draw)
    index, among = draws[-1]
    assert index == 8
    assert among.tolist() == [0, 1, 3, 4, 6, 7]  # those of rounds 0, 3 and 6, each once
    counts = np.bincount(np.concatenate([draw_cohort(s, 8, 9, 3, among) for s in range(600)]), minlength=9)
    assert not counts[[2, 5, 8]].any()
    # Each of six is in half of the draws: five standard deviations of a binomial are 61.
    assert np.abs(counts[among] - 300).max() < 61


def test_the_cache_holds_the_activations_behind_a_codec(task, unquantized):
    """Two bits leave an example three different values at most."""
    plain, _, exact, _ = unquantized
    states, metrics = simulate(with_codecs(plain, up=codecs.quantize(2)), task, 2)
    for client in metrics[0].ids[0]:
        assert len(np.unique(states[1].profiles.activations.values[client])) <= 3
    with np.testing.assert_raises(AssertionError):
        chex.assert_trees_all_close(states[2].server.params, exact[2].server.params, atol=1e-4)


def who_is_gone(metrics):
    return (metrics.train["lost"] + metrics.train["away"])[0] > 0


def test_lost_clients_are_not_replayed_and_nobody_is_lost_in_a_replay(lossy):
    states, history = lossy
    gone = [who_is_gone(metrics) for metrics in history]
    assert any(each.any() for each in gone[::2])
    assert not any(each.any() for each in gone[1::2])
    assert not any(metrics.train["late"].any() for metrics in history)
    cached = set()
    for after, metrics, lost in zip(states[1::2], history[::2], gone[::2]):
        cached |= set(metrics.ids[0][~lost].tolist())
        assert set(np.flatnonzero(after.profiles.size).tolist()) == cached
    # A replay of clients without activations costs the server nothing.
    steps = {client: -(-int(size) // 5) for client, size in enumerate(states[1].profiles.size)}
    per_step = history[0].server["flops"][0] / sum(steps.values())
    replayed = sum(steps[client] for client in history[1].ids[0].tolist())
    np.testing.assert_allclose(history[1].server["flops"][0], per_step * replayed, rtol=1e-6)


def test_late_uploads_stay_out_of_the_cache():
    task = cases.task()
    algorithm = fm.ecofed(fm.models.mlp(task, hidden=(8,)), SGD, batch_size=4)
    population = make_population("rpi4@wifi,deadline=1e-9", task.num_clients)
    states, (metrics, _) = simulate(algorithm, task, 2, population=population)
    assert metrics.train["late"].all()
    assert metrics.bytes_up.all()
    assert not states[2].profiles.size.any()
    chex.assert_trees_all_equal(states[2].server, states[0].server)


def test_a_copy_that_diverges_is_left_out_and_counted(unquantized):
    """From weights whose products overflow, no step is finite."""
    _, simulation, (state, *_), _ = unquantized
    huge = jax.tree.map(lambda a: np.full_like(a, 1e30), state.server.params)
    state, before = state._replace(server=state.server._replace(params=huge)), huge
    for number in range(2):
        state, (metrics,) = simulation.run(jax.device_put(jax.device_get(state)), number, 1)
        assert metrics.dropped.all()
    chex.assert_trees_all_equal(jax.device_get(state).server.params, before)


@pytest.mark.parametrize("quantized", [True, False])
def test_an_upload_has_the_bytes_of_the_formula(request, task, quantized):
    *_, history = request.getfixturevalue("lossy" if quantized else "unquantized")
    activations = 2 * 2 * 6 if quantized else 4 * 4 * 4
    for metrics in history[::2]:
        sent = ~who_is_gone(metrics) if quantized else np.ones(COHORT, bool)
        examples = task.train.sizes[metrics.ids[0][sent]]
        formula = examples * activations * (1 if quantized else 4) + 4 * -(-examples // 5) + 8 * examples
        np.testing.assert_array_equal(metrics.bytes_up[0][sent], formula)
        assert sent.any()


@pytest.mark.parametrize("split", ["dense9", "dense2", ""])
def test_a_model_is_cut_only_where_it_can_be(split, model):
    with pytest.raises(UserError, match=r"split='.*': must be one of conv1, conv2, dense1"):
        fm.ecofed(model, SGD, split=split)


def test_a_model_of_one_layer_cannot_be_cut():
    with pytest.raises(UserError, match=r"model='mlp'"):
        fm.ecofed(fm.models.mlp(cases.task(), hidden=()), SGD)


def test_the_devices_part_is_installed_once(unquantized):
    _, simulation, *_ = unquantized
    assert simulation.setup_bytes == 4 * (3 * 3 * 4 + 4)


def test_a_period_of_0_is_refused(model):
    with pytest.raises(UserError, match=r"^period=0: must be an integer at least 1"):
        fm.ecofed(model, SGD, period=0)
