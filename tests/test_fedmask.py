"""FedMask against its paper: figure 8, byte counts, the protocol's promises."""

from functools import cache

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.algorithms.fedmask import Upload
from fedjax_masks.communication import size
from fedjax_masks.communication.payload import AlreadyKnown, Conditional
from fedjax_masks.core import masks, target
from fedjax_masks.core.aggregation import majority, vote
from fedjax_masks.core.algorithm import Round, Schedule
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.masks import binarize, binarize_straight_through, group_norms, top_share
from fedjax_masks.data import synthetic_task
from fedjax_masks.simulation import make_simulation


def bits(text):
    return np.array([[int(c) for c in row] for row in text.split("/")], bool)


def write_back(values, structures):
    """The protocol of one round for devices with given bits and structures."""

    @jax.jit
    def counted(values, structures):
        total = jax.tree.map(lambda *parts: sum(parts), *map(vote, values, structures))
        return majority(total, default=jnp.zeros(values[0].shape, bool))

    bits = np.asarray(counted(values, structures))
    return [bits & structure for structure in structures]


def test_worked_example_of_figure_8():
    """Li et al. 2021, figure 8: a shared channel, one pruned on both devices, one on j alone."""
    alive, pruned = np.ones((3, 3), bool), np.zeros((3, 3), bool)
    i, j = bits("111/011/010"), bits("110/101/011")
    own = bits("101/010/110")
    values = [np.stack([i, pruned, own]), np.stack([j, pruned, pruned])]
    structures = [np.stack([alive, pruned, alive]), np.stack([alive, pruned, pruned])]
    device_i, device_j = write_back(values, structures)
    for device in (device_i, device_j):
        np.testing.assert_array_equal(device[0], bits("110/001/010"))
        assert not device[1].any()
    np.testing.assert_array_equal(device_i[2], own)
    assert not device_j[2].any()


def test_majority_is_taken_over_owners_and_ties_are_zero():
    rng = np.random.default_rng(0)
    structures = rng.random((6, 500)) < 0.4
    values = (rng.random((6, 500)) < 0.5) & structures
    counted = write_back(list(values), list(structures))
    for element in range(500):
        owners = [k for k in range(6) if structures[k, element]]
        ones = [k for k in owners if values[k, element]]
        for k in range(6):
            expected = k in owners and len(ones) / len(owners) > 0.5
            assert counted[k][element] == expected


def test_gradient_is_that_of_the_soft_mask():
    """Equations 5 to 7: the hard mask forward, the sigmoid's slope backward."""
    scores = jax.random.normal(jax.random.key(0), (7, 5))
    weight = jax.random.normal(jax.random.key(1), (7, 5))
    x = jax.random.normal(jax.random.key(2), (7,))
    loss = lambda r, mask: jnp.sum((x @ (weight * mask(r))) * jnp.arange(5.0))
    dy = np.arange(5.0)
    slope = jax.jit(jax.grad(loss), static_argnums=1)
    dm = np.asarray(x)[:, None] * dy * np.asarray(weight)
    soft = 1 / (1 + np.exp(-np.asarray(scores, np.float64)))
    expected = soft * (1 - soft) * dm
    np.testing.assert_allclose(slope(scores, binarize), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope(scores, jax.nn.sigmoid), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope(scores, binarize_straight_through), dm, rtol=1e-5, atol=1e-6)


def test_group_norms_against_numpy():
    kernel = np.random.default_rng(1).random((3, 3, 4, 5))
    expected = sum(np.linalg.norm(kernel[..., o]) for o in range(5))
    expected += sum(np.linalg.norm(kernel[:, :, i]) for i in range(4))
    np.testing.assert_allclose(jax.jit(group_norms)(kernel), expected, rtol=1e-6)
    assert np.isfinite(jax.jit(jax.grad(group_norms))(np.zeros((4, 3), np.float32))).all()


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_top_share_keeps_the_largest_and_of_equals_the_first(share, dtype, monkeypatch):
    scores = np.random.default_rng(2).integers(-9, 9, (9, 11)) * np.array([[1], [-1], [0.5]] * 3)
    expected = np.zeros(99, bool)
    expected[np.argsort(-scores.ravel(), kind="stable")[: max(1, round(share * 99))]] = True
    kept = jax.jit(top_share, static_argnums=1)(scores.astype(dtype), share)
    np.testing.assert_array_equal(kept, expected.reshape(9, 11))
    for pairs in (0, 1024):  # on an accelerator by digits, and by pairs
        monkeypatch.setattr(masks, "_PAIRS", pairs)
        with target.making_for(target.Target("gpu")):
            kept = jax.jit(top_share, static_argnums=1)(scores.astype(dtype), share)
        np.testing.assert_array_equal(kept, expected.reshape(9, 11))


def vgg16_upload_bits(classes, **options):
    """Static bits of one upload and message of FedMask on VGG16, from shapes alone."""
    task = synthetic_task((32, 32, 3), classes, np.array([20]), seed=0)
    algorithm = fm.fedmask(fm.models.build_model("vgg16", task), optax.adam(0.1), prune_layers=8, **options)
    state = jax.eval_shape(lambda key: algorithm.init(key, task), jax.random.key(0))
    client = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), state.clients)
    round = Round(jax.random.key(0), jnp.int32(0))
    message = jax.eval_shape(algorithm.send, round, state.server, ())
    _, upload, _ = jax.eval_shape(algorithm.train, round, message, client, cases.data_of(task, 0))
    return size.static_bits(upload), size.static_bits(message)


def test_bytes_of_vgg16():
    """Li et al. 2021, tables 4 and 5: 134,301,514 parameters, of which the weights are masked."""
    up, down = vgg16_upload_bits(10)
    assert -(-up // 8) == -(-down // 8) == 16_786_136
    task = synthetic_task((32, 32, 3), 10, np.array([20]), seed=0)
    params = jax.eval_shape(fm.models.build_model("vgg16", task).init, jax.random.key(0))
    assert size.static_bits(params) // 8 == 537_206_056


@cache
def trained(name, rounds, cohort=cases.NUM_CLIENTS, seed=0):
    """The simulation, the states before the first and after each of its rounds, and the rounds' facts."""
    simulation = make_simulation(
        cases.algorithm(name), cases.task(), cohort=cohort, seeds=(seed,), chunk=1, plan="scan"
    )
    state, facts = simulation.init(), []
    states = [jax.device_get(state)]
    for r in range(rounds):
        state, (metrics,) = simulation.run(state, r, 1)
        states.append(jax.device_get(state))
        facts.append(metrics)
    return simulation, states, facts


def test_pruned_elements_never_return_and_the_share_kept_is_exact():
    task, (_, states, _) = cases.task(), trained("fedmask", 4)
    for name, structure in states[1].clients.structure.items():
        kept = structure.reshape(task.num_clients, -1).sum(1)
        assert (kept == max(1, round(0.2 * structure[0].size))).all() or structure[0].size == 1
        for later in states[2:]:
            np.testing.assert_array_equal(later.clients.structure[name], structure)
            assert not (later.clients.value[name] & ~structure).any()


def test_bits_flip_in_the_first_round():
    _, _, facts = trained("fedmask", 4)
    assert facts[0].mean("flip_fraction")[0] > 0.01


def test_frozen_weights_stay_and_cost_their_size_once():
    simulation, states, _ = trained("fedmask", 4)
    weights = states[0].server.weights
    for state in states[1:]:
        chex.assert_trees_all_equal(state.server.weights, weights)
    assert simulation.setup_bytes == 4 * sum(leaf.size for leaf in jax.tree.leaves(weights))


def test_a_lone_voter_keeps_its_bits_with_start_own():
    task, algorithm = cases.task(), cases.algorithm("fedmask-own")
    _, states, facts = trained("fedmask-own", 2, cohort=1, seed=4)
    (client,) = facts[-1].ids[0]
    state = states[-1]
    one = jax.tree.map(lambda a: jnp.asarray(a[client]), state.clients)
    inputs = jnp.asarray(task.test_inputs[:16])
    names = ("personal", "personal_accuracy_writeback")
    predict = jax.jit(lambda *arguments: [algorithm.predict[name](*arguments) for name in names])
    np.testing.assert_array_equal(*predict(state.server, one, inputs))


def test_own_start_of_three_devices_against_numpy():
    """Shared elements become the majority of the last voters; other elements stay each device's own."""
    algorithm = fm.fedmask(fm.models.mlp(cases.task(), hidden=(8,)), optax.sgd(1.0), start="own")
    server = jax.jit(algorithm.init, static_argnums=1)(jax.random.key(0), cases.task()).server
    rng, round = np.random.default_rng(4), Round(jax.random.key(0), jnp.int32(0))
    shapes = {name: bit.shape for name, bit in server.bits.items()}
    draw = lambda name, share: rng.random(shapes[name]) < share
    masks = [{name: np.ones(shapes[name], bool) for name in shapes} for _ in range(3)]
    structures = [
        {n: draw(n, 0.4) if server.shared[n].size > 1 else np.ones((1, 1), bool) for n in shapes}
        for _ in range(3)
    ]
    profiles, last = list(masks), {name: [[]] * np.prod(shapes[name]) for name in shapes}
    for cohort in ((0, 1, 2), (1,), (0, 2), (2, 1)):
        totals = []
        for k in cohort:
            masks[k] = {name: draw(name, 0.5) & structures[k][name] for name in shapes}
            upload = Upload(masks[k], AlreadyKnown(structures[k]), Conditional(jnp.array(True), {}))
            profiles[k], contribution = algorithm.receive(round, server, profiles[k], upload, jnp.float32(1))
            totals.append(contribution)
        server, _ = algorithm.merge(round, server, jax.tree.map(lambda *parts: sum(parts), *totals))
        messages = [algorithm.send(round, server, profile) for profile in profiles]
        assert {size.static_bits(message) for message in messages} == {sum(map(np.prod, shapes.values()))}
        for name in shapes:
            owners = [np.broadcast_to(structures[j][name], shapes[name]).ravel() for j in cohort]
            for element in range(np.prod(shapes[name])):
                votes = [masks[j][name].ravel()[element] for j, mine in zip(cohort, owners) if mine[element]]
                last[name][element] = votes or last[name][element]
            for mask, message in zip(masks, messages):
                expected = [
                    sum(votes) > len(votes) / 2 if len(votes) > 1 else bit
                    for votes, bit in zip(last[name], mask[name].ravel())
                ]
                np.testing.assert_array_equal(message.bits[name].ravel(), expected)


def test_no_bit_flips_where_the_step_is_far_too_small():
    task = cases.task()
    still = fm.fedmask(fm.models.mlp(task, hidden=(8,)), optax.sgd(0.01), batch_size=4, sparsity=0.0)
    state, train = jax.jit(lambda key: still.init(key, task))(jax.random.key(0)), jax.jit(still.train)
    round = Round(jax.random.key(1), jnp.int32(0))
    message = still.send(round, state.server, ())
    for client in range(task.num_clients):
        own = jax.tree.map(lambda a, client=client: a[client], state.clients)
        _, _, info = train(round, message, own, cases.data_of(task, client))
        assert info.extra["flip_fraction"] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"prune_ratio": 0.0},
        {"prune_ratio": 1.5},
        {"prune_layers": 9},
        {"score_scale": 0.0},
        {"encoding": "entropy"},
    ],
)
def test_bad_options_are_named(options):
    (name,) = options
    with pytest.raises(UserError, match=f"{name}=.*: must be"):
        fm.fedmask(fm.models.mlp(cases.task()), optax.adam(0.1), **options)


def test_the_one_shot_prune_runs_for_blocks_with_a_new_device_alone():
    calls = []
    task = synthetic_task((6,), 3, [8] * 15)
    model = fm.models.mlp(task, hidden=(8,))

    def apply(params, x):
        jax.debug.callback(lambda _: calls.append(1), x[0, 0])
        return model.apply(params, x)

    algorithm = fm.fedmask(
        model._replace(apply=apply), optax.sgd(1.0), epochs=2, batch_size=4, prune_layers=1
    )
    half_new = Schedule(select=lambda index, draw: (np.arange(10) + 5 * index) % 15)
    simulation = make_simulation(
        algorithm._replace(schedule=half_new), task, cohort=10, chunk=1, plan="blocks:5"
    )
    state, numbers = simulation.init(), []
    for index in range(2):
        calls.clear()
        state, _ = simulation.run(state, index, 1)
        jax.effects_barrier()
        numbers.append(len(calls))
    # Two minibatches of an epoch: three epochs in both blocks, then two in the block of known devices.
    assert numbers == [10 * 2 * 3, 5 * 2 * 2 + 5 * 2 * 3]
