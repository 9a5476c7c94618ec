"""FedSkel against its paper: skeletons, what moves, what travels, and what is saved."""

from functools import cache

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.algorithms.fedskel import Client
from fedjax_masks.algorithms.ratios import ratios_of
from fedjax_masks.algorithms.skeleton_averages import Cycle, mean_model
from fedjax_masks.algorithms.skeletons import keep_count
from fedjax_masks.analysis.records import RunRecord
from fedjax_masks.communication import size
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Round, Schedule
from fedjax_masks.core.errors import UserError
from fedjax_masks.costs.devices import make_population
from fedjax_masks.data import synthetic_task
from fedjax_masks.experiment import build, config
from fedjax_masks.experiment.notes import cycle_note
from fedjax_masks.simulation.lanes import lay_out
from fedjax_masks.simulation.plan import Plan

SGD = optax.sgd(0.01, momentum=0.5)
DECAY = optax.adamw(0.01, weight_decay=0.1)
CYCLE = {"cohorts": "cycle", "rest": "own", "absent": "ignore"}


def client_of(algorithm, task, client=3):
    """``(whole, tier, index) -> (before, after, upload, facts)`` of one client's round."""
    state = jax.jit(lambda key: algorithm.init(key, task))(jax.random.key(0))
    program = jax.jit(algorithm.train)

    def train(*, whole, tier=0, index=None):
        round = Round(jax.random.key(1), jnp.int32(not whole if index is None else index))
        before = jax.tree.map(lambda a: a[client], state.clients)
        rng = np.random.default_rng(1)
        skeleton = {}
        for name, mask in before.cycle.skeleton.items():
            keep = keep_count(mask.size, (0.3, 1.0)[tier])
            skeleton[name] = jnp.zeros(mask.size, bool).at[rng.permutation(mask.size)[:keep]].set(True)
        before = before._replace(cycle=Cycle(skeleton, jnp.int32(1)))
        message = algorithm.send(round, state.server, before.cycle)
        after, upload, info = program(round, message, before, cases.data_of(task, client, tier))
        return before, after, upload, info

    return train


@pytest.fixture(scope="module")
def task():
    return cases.task((8, 8, 1))


@pytest.fixture(scope="module")
def model(task):
    return cases.KINDS["small-cnn"][1](task)


RATIOS, EPOCHS, UPDATES = (0.3, 1.0), 2, 4


def training(optimizer):
    """In round 0 nothing is learnt: all activities are those of the first model."""
    schedule = lambda index: jnp.where(index > 0, 1.0, 0.0)
    return fm.Trainer(optimizer, batch_size=4, epochs=EPOCHS, schedule=schedule)


@pytest.fixture(scope="module")
def client(model, task):
    return client_of(fm.fedskel(model, training(DECAY), ratios=RATIOS, updates=UPDATES, **CYCLE), task)


@pytest.mark.parametrize(
    ("outputs", "ratio", "kept"),
    [(20, 0.1, 2), (50, 0.1, 5), (64, 0.189, 13), (20, 0.3, 6), (7, 1.0, 7), (5, 0.01, 1)],
)
def test_number_of_filters_kept(outputs, ratio, kept):
    assert keep_count(outputs, ratio) == kept


def assert_fedavg_in_the_limit(model, task, **options):
    skeletal = fm.fedskel(model, SGD, batch_size=4, ratios=(1.0,), updates=2, **options)
    plain = fm.fedavg(model, SGD, batch_size=4)
    if options.get("cohorts") == "cycle":
        plain = plain._replace(schedule=Schedule(select=lambda index, draw: draw(index - index % 3)))
    got, want = (fm.make_simulation(a, task, cohort=4, chunk=4, plan="scan") for a in (skeletal, plain))
    state, _ = got.run(got.init(), 0, 4)
    reference, _ = want.run(want.init(), 0, 4)
    chex.assert_trees_all_close(state.server.params, reference.server.params, rtol=1e-4, atol=1e-5)


def test_ratio_one_is_fedavg():
    assert_fedavg_in_the_limit(fm.models.mlp(cases.task(), hidden=(8,)), cases.task(), prune_dense=True)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, CYCLE, {"absent": "stale"}])
def test_ratio_one_is_fedavg_on_convolutions(model, task, options):
    assert_fedavg_in_the_limit(model, task, **options)


@pytest.mark.slow
def test_a_skeleton_of_all_filters_trains_as_the_whole_model_does(client):
    (before, whole, _, _), (_, all_filters, _, _) = (
        client(whole=True, tier=1, index=UPDATES + 1),
        client(whole=False, tier=1),
    )
    chex.assert_trees_all_close(all_filters.params, whole.params, rtol=1e-4, atol=1e-5)
    moved = jax.tree.map(lambda old, new: np.abs(old - new).max(), before.params, whole.params)
    assert min(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize(
    "optimizer", [pytest.param(SGD, marks=pytest.mark.slow), DECAY], ids=["momentum", "weight decay"]
)
def test_nothing_outside_the_skeleton_moves(model, task, client, optimizer):
    if optimizer is not DECAY:
        client = client_of(fm.fedskel(model, training(optimizer), ratios=RATIOS, **CYCLE), task)
    before, after, _, _ = client(whole=False)
    for kernel in model.kernels[:-1]:
        for path in (kernel.path, kernel.bias):
            old, new = trees.get(before.params, path), trees.get(after.params, path)
            moved = np.asarray(old != new).reshape(-1, kernel.outputs).any(0)
            skeleton = np.asarray(before.cycle.skeleton.get(kernel.name, np.ones(kernel.outputs, bool)))
            assert not moved[~skeleton].any()
            assert moved[skeleton].any()


def test_skeleton_is_what_was_most_active(model, task, client):
    """Summed over the client's data."""
    before, after, upload, _ = client(whole=True)
    chex.assert_trees_all_equal(after.params, before.params)
    data = cases.data_of(task, 3)
    inputs = data.inputs[data.rows[: int(data.size)]]
    linear = lambda layer, x: (layer(x), layer.linear(x))
    activity = jax.jit(lambda params: model.forward(params, inputs, hook=linear)[1])(before.params)
    for name, skeleton in after.cycle.skeleton.items():
        score = np.abs(np.asarray(activity[name], np.float64)).sum((0, 1, 2))
        np.testing.assert_array_equal(np.flatnonzero(skeleton), np.sort(np.argsort(-score)[: skeleton.sum()]))
        assert int(skeleton.sum()) == keep_count(skeleton.size, 0.3)
    chex.assert_trees_all_equal(upload.skeleton.tree, after.cycle.skeleton)


def small(**options):
    """FedSkel on a perceptron of eight hidden neurons, two rounds a cycle."""
    model = fm.models.mlp(cases.task(), hidden=(8,))
    dense = {"prune_dense": True, "dense_neurons": "active"}
    options = {"ratios": (0.3,), "updates": 1, "batch_size": 4, **dense, **options}
    return fm.fedskel(model, optax.sgd(0.1, momentum=0.5), **options)


def test_random_neurons_are_drawn_by_client_and_round():
    algorithm, task = small(dense_neurons="random"), cases.task()
    state, train = algorithm.init(jax.random.key(0), task), jax.jit(algorithm.train)

    def drawn(client, key):
        own = jax.tree.map(lambda leaf: leaf[client], state.clients)
        round = Round(jax.random.key(key), jnp.int32(0))
        message = algorithm.send(round, state.server, own.cycle)
        return np.asarray(train(round, message, own, cases.data_of(task, client))[0].cycle.skeleton["dense1"])

    masks = np.array([drawn(3, key) for key in range(100)])
    assert (masks.sum(axis=1) == keep_count(8, 0.3)).all()
    np.testing.assert_allclose(masks.mean(axis=0), keep_count(8, 0.3) / 8, atol=0.2)
    np.testing.assert_array_equal(drawn(4, 7), masks[7])  # the data of a client have no part in it


@pytest.mark.parametrize("absent", ["ignore", "zero", "stale"])
def test_the_server_averages_updates_of_skeletons_as_it_is_told(absent):
    """Two clients of which no skeleton has all filters, against NumPy."""
    algorithm, task, ids = small(rest="own", absent=absent), cases.task(), (3, 4)
    state, round = algorithm.init(jax.random.key(0), task), Round(jax.random.key(1), jnp.int32(1))
    train, parts, sent = jax.jit(algorithm.train), [], []
    for client, first in zip(ids, (0, 2)):
        own = jax.tree.map(lambda a, i=client: a[i], state.clients)
        stale = jax.tree.map(lambda leaf, shift=client: leaf + shift, own.params)  # old filters that differ
        skeleton = {"dense1": (jnp.arange(8) >= first) & (jnp.arange(8) < first + 3)}
        own = Client(stale, Cycle(skeleton, jnp.int32(1)))
        message = algorithm.send(round, state.server, own.cycle)
        after, upload, _ = train(round, message, own, cases.data_of(task, client))
        weight = jnp.float32(task.train.sizes[client])
        parts.append(algorithm.receive(round, state.server, own.cycle, upload, weight)[1])
        sent.append((upload.update.values, upload.update.mask, after.params, float(weight)))
    server, _ = algorithm.merge(round, state.server, jax.tree.map(lambda a, b: a + b, *parts))

    def merged(old, *leaves):
        updates, masks, params = (leaves[i::3] for i in range(3))
        weights = [weight for *_, weight in sent]
        if absent == "stale":
            return np.average(params, axis=0, weights=weights)
        total = sum(w * np.where(m, u, 0) for w, m, u in zip(weights, masks, updates))
        whole = sum(w * np.ones_like(old) * (m if absent == "ignore" else 1) for w, m in zip(weights, masks))
        return old + total / np.maximum(whole, 1)

    trees_sent = [tree for values, mask, params, _ in sent for tree in (values, mask, params)]
    expected = jax.tree.map(merged, state.server.params, *trees_sent)
    chex.assert_trees_all_close(server.params, expected, rtol=1e-5, atol=1e-5)


def test_filters_outside_the_skeleton_go_back_to_what_was_sent():
    algorithm, task = small(), cases.task()
    simulation = fm.make_simulation(algorithm, task, cohort=9, chunk=1, plan="scan")
    before = simulation.init()
    sent = jax.device_get(before.server.params["dense1"])
    state, _ = simulation.run(before, 0, 1)
    own = jax.device_get(state.clients)
    skeletons = own.cycle.skeleton["dense1"]
    for name in ("kernel", "bias"):
        same = (own.params["dense1"][name] == sent[name]).reshape(9, -1, 8).all(1)
        assert same[~skeletons].all()
        assert same[skeletons].mean() < 0.2  # some are dead for all examples of their client


def test_of_fresh_cohorts_every_client_counts_its_own_cycle():
    """Every second message is whole, from its first on; a warm-up is whole and not counted."""
    warm_up, rounds, task = 2, 8, cases.task()
    algorithm = small(warm_up=warm_up)
    simulation = fm.make_simulation(algorithm, task, cohort=4, chunk=rounds, plan="scan")
    state, (metrics,) = simulation.run(simulation.init(), 0, rounds)
    outside = 4 * (8 - keep_count(8, 0.3)) * (6 + 1)
    most = metrics.bytes_down.max()
    visits = np.zeros(task.num_clients, int)
    for index in range(rounds):
        ids = metrics.ids[index]
        whole = (visits[ids] % 2 == 0) | (index < warm_up)
        np.testing.assert_array_equal(metrics.bytes_down[index], most - outside * ~whole)
        visits[ids] += index >= warm_up
    assert len({tuple(sorted(ids)) for ids in metrics.ids.tolist()}) > rounds / 2
    np.testing.assert_array_equal(state.profiles.visits, visits)
    chex.assert_trees_all_equal(state.clients.cycle, state.profiles)


@pytest.mark.parametrize("cohorts", ["fresh", pytest.param("cycle", marks=pytest.mark.slow)])
def test_a_warm_up_is_fedavg(cohorts):
    task = cases.task()
    model = fm.models.mlp(task, hidden=(8,))
    plain = fm.fedavg(model, optax.sgd(0.1, momentum=0.5), batch_size=4)
    models, sent = [], []
    for algorithm in (small(cohorts=cohorts, warm_up=3), plain):
        simulation = fm.make_simulation(algorithm, task, cohort=4, chunk=3, plan="scan")
        state, (metrics,) = simulation.run(simulation.init(), 0, 3)
        models.append(state.server.params)
        sent.append((metrics.ids, metrics.bytes_up, metrics.bytes_down))
    chex.assert_trees_all_close(*models, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(*sent)


@pytest.mark.parametrize("options", [pytest.param(CYCLE, marks=pytest.mark.slow), {"warm_up": 1}])
def test_the_mean_model_is_that_of_all_clients(options):
    task = cases.task()
    algorithm, plain = small(**options, mean_model=True), small(**options)
    simulations = [fm.make_simulation(a, task, cohort=4, chunk=5, plan="scan") for a in (algorithm, plain)]
    (state, (metrics,)), (_, (others,)) = (s.run(s.init(), 0, 5) for s in simulations)
    expected = jax.tree.map(lambda leaf: leaf.mean(0), state.clients.params)
    chex.assert_trees_all_close(mean_model(state.server), expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(metrics.bytes_up, others.bytes_up)
    logits = algorithm.predict["mean"](state.server, None, task.test_inputs[:3])
    assert np.abs(logits - algorithm.predict["global"](state.server, None, task.test_inputs[:3])).max() > 1e-3


def test_accuracies_at_the_end_are_means_over_a_cycle(caplog):
    run = fm.simulate(small(**CYCLE), cases.task(), rounds=4, cohort=2, plan="scan", eval_every=1)
    last = [record["global_accuracy"] for record in run.records[-2:]]
    assert last[0] != last[1]
    assert run.summary["cycle_global_accuracy"] == np.mean(last)
    assert run.summary["last_global_accuracy"] == last[1]
    (row,) = fm.analysis.comparison_table([RunRecord("a", {}, run.records, run.summary)])
    assert row["global_accuracy"] == np.mean(last)
    assert "cycle" not in caplog.text
    assert "eval_every=2: every evaluation is of the same round" in cycle_note(2, period=2, rounds=4)


def test_local_dense_layers_train_but_never_travel(model, task):
    algorithm = fm.fedskel(model, SGD, batch_size=4, ratios=(0.3,), local_dense=True, **CYCLE)
    before, after, upload, _ = client_of(algorithm, task)(whole=False)
    for kernel in model.kernels:
        if kernel.kind == "dense":
            assert not trees.get(upload.update.mask, kernel.path).any()
            assert np.any(trees.get(before.params, kernel.path) != trees.get(after.params, kernel.path))


@cache
def of_resnet18():
    """A task, the model, and the shapes of its parameters."""
    task = synthetic_task((32, 32, 3), 10, np.array([20]), seed=0)
    model = fm.models.resnet18(task)
    return task, model, jax.eval_shape(model.init, jax.random.key(0))


@pytest.mark.parametrize(("updates", "ratio"), [(3, 0.135), (4, 0.189), (5, 0.22), (9, 0.28)])
def test_communication_on_resnet18(updates, ratio):
    """The published 64.8 % less, by the formula and by the bits of real messages."""
    task, model, params = of_resnet18()
    algorithm = fm.fedskel(model, SGD, ratios=(ratio,), updates=updates, **CYCLE)
    dense = 32 * trees.size(params)
    filters = [k for k in model.kernels if k.kind == "conv"]
    outside = sum((k.outputs - keep_count(k.outputs, ratio)) * np.prod(k.shape[:-1]) for k in filters)
    saved = updates * 32 * outside / ((updates + 1) * dense)
    conv_share = sum(np.prod(k.shape) for k in filters) / trees.size(params)
    assert conv_share == pytest.approx(0.9987, abs=1e-4)
    exact_ratio = 1 - outside / sum(np.prod(k.shape) for k in filters)
    formula = (1 + updates * (exact_ratio * conv_share + 1 - conv_share)) / (1 + updates)
    assert 1 - saved == pytest.approx(formula, rel=1e-9)
    assert saved == pytest.approx(0.648, abs=0.006)

    server = jax.eval_shape(lambda key: algorithm.init(key, task).server, jax.random.key(0))
    skeleton = {k.name: jnp.arange(k.outputs) < keep_count(k.outputs, ratio) for k in filters}

    def bits(index):
        round, cycle = Round(jax.random.key(0), jnp.int32(index)), Cycle(skeleton, jnp.int32(index))
        return size.bits(algorithm.send(round, trees.zeros_like(server), cycle))

    assert bits(0) == dense
    assert bits(1) == dense - 32 * outside


def test_uploads_carry_the_skeleton_and_its_mask_once(model, client):
    dense = 32 * trees.size(jax.eval_shape(model.init, jax.random.key(0)))
    filters = [k for k in model.kernels if k.kind == "conv"]
    _, _, upload, _ = client(whole=True)
    assert size.bits(upload) == dense + sum(k.outputs for k in filters)
    _, _, upload, _ = client(whole=False)
    weights = lambda k: np.prod(k.shape[:-1]) + 1
    outside = sum((k.outputs - keep_count(k.outputs, 0.3)) * weights(k) for k in filters)
    assert size.bits(upload) == dense - 32 * outside


def test_flops_of_a_client_fall_with_its_ratio(model, task, client):
    flops = [
        float(client(whole=whole, tier=tier)[3].work.flops)
        for whole, tier in [(True, 0), (False, 1), (False, 0)]
    ]
    assert flops[0] == flops[1]
    convs = [k for k in model.kernels if k.kind == "conv"]
    forward = [2 * 4 * k.positions * np.prod(k.shape) for k in convs]
    # The first layer's input gradient is never needed.
    spared = [
        f * gradients * (1 - keep_count(k.outputs, 0.3) / k.outputs)
        for f, k, gradients in zip(forward, convs, [1] + [2] * (len(convs) - 1))
    ]
    steps = EPOCHS * -(-int(task.train.sizes[3]) // 4)
    assert flops[0] - flops[2] == pytest.approx(steps * sum(spared), rel=1e-6)


@pytest.mark.parametrize("plan", [Plan(1), Plan(3), Plan(4, 2), Plan(9)])
def test_tiers_never_share_a_block(plan):
    task = cases.task()
    schedule = Schedule(num_tiers=3, tier_of=lambda ids: ids % 3)
    ids, sizes = np.array([8, 0, 3, 4, 7, 6]), task.train.sizes
    rows, places = lay_out(ids, task.train, plan, schedule)
    np.testing.assert_array_equal(rows.ids[places], ids)
    assert np.sum(rows.ids < len(sizes)) == len(ids)
    np.testing.assert_array_equal(rows.sizes[places], sizes[ids])
    for block in rows.ids.reshape(-1, plan.block):
        assert len(set(block[block < len(sizes)] % 3)) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": (0.0,)}, "must be a list of a finite number above 0 and at most 1"),
        ({"ratios": (0.5, 1.5)}, "must be a list"),
        ({"ratios": ()}, "must be one ratio or more"),
        ({"updates": 0}, "updates=0: must be"),
        ({"mean_model": True, "local_dense": True}, "mean_model=true: must be false with local_dense"),
    ],
)
def test_options_out_of_range_are_refused(model, options, message):
    with pytest.raises(UserError, match=message):
        fm.fedskel(model, SGD, **options)


def test_a_model_without_convolutions_needs_dense_skeletons():
    with pytest.raises(ValueError, match="prune_dense"):
        fm.fedskel(fm.models.mlp(cases.task(), hidden=(8,)), SGD)


def test_every_device_gets_what_it_can_do():
    values = {
        "algorithm.name": "fedskel",
        "algorithm.ratios": "devices",
        "devices": "jetson-nano:1+phone-mid:1+rpi3:2@wifi",
        "data.clients": 40,
    }
    chosen = config.make_config(values)
    algorithm, task = build.build(chosen)
    fleet = make_population(chosen.devices, task.num_clients, seed=chosen.seed).fleet
    ratios, _ = ratios_of(fleet.flops)
    assert ratios == (0.1, 0.2, 1.0)
    assert algorithm.schedule.num_tiers == 3
    for rate, tier in ((1.2e9, 0), (8e9, 1), (40e9, 2)):
        ids = np.flatnonzero(np.isclose(fleet.flops, rate))
        assert ids.size
        assert set(algorithm.schedule.tier_of(ids)) == {tier}


def test_ratios_by_device_need_devices():
    values = {"algorithm.name": "fedskel", "algorithm.ratios": "devices"}
    with pytest.raises(UserError, match=r"ratios=devices: must be used for clients that have devices"):
        build.build(config.make_config(values))
