"""MPFL against its paper: votes, schedules, rewinding, what travels, and the smaller model."""

from functools import cache
from typing import get_args

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.algorithms.consensus import RULES, filter_norms, keep_largest
from fedjax_masks.algorithms.masked_fedavg import survivors
from fedjax_masks.algorithms.mpfl import RuleName
from fedjax_masks.communication import visitor
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Round
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.masks import prune
from fedjax_masks.models import cnn, mlp, prunable_kernels, vgg11
from fedjax_masks.models.compaction import compact

SGD = optax.sgd(0.05, momentum=0.9)
N = 10
COMPILED = {name: jax.jit(rule) for name, rule in RULES.items()}


def decide(rule, votes, required, *, voters=N, norms=None):
    norms = np.ones(len(votes)) if norms is None else norms
    arguments = (np.array(votes), np.array(voters), np.float32(required), np.array(norms, np.float32))
    return np.asarray(COMPILED[rule](*arguments)).astype(int).tolist()


def scan(votes, required, thresholds):
    """The published loop over thresholds."""
    share = np.array(votes) / N
    for threshold in thresholds:
        mask = share >= threshold - 1e-12
        if 1 - mask.mean() >= required - 1e-12:
            break
    return mask.astype(int).tolist()


VOTES = [10, 10, 9, 9, 5, 5, 4, 1, 0, 0]
TRUTH = [
    # Exactly what is required; between equal votes the higher index goes first.
    ("topk", 0.0, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ("topk", 0.1, [1, 1, 1, 1, 1, 1, 1, 1, 1, 0]),
    ("topk", 0.5, [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]),
    # All ten keep two filters, eight are kept by someone: one or the other, nothing between.
    ("dynamic", 0.2, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("dynamic", 0.8, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("dynamic", 0.9, [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]),
    ("reverse", 0.2, [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]),
    ("reverse", 0.3, [1, 1, 1, 1, 1, 1, 1, 0, 0, 0]),
    ("reverse", 0.5, [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]),
    ("reverse", 0.9, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("majority", 0.9, [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]),
    ("unanimity", 0.9, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
]


def test_every_rule_can_be_chosen_by_name():
    assert set(get_args(RuleName)) == set(RULES)


@pytest.mark.parametrize(("rule", "required", "kept"), TRUTH)
def test_truth_table(rule, required, kept):
    assert decide(rule, VOTES, required) == kept


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("required", [0.0, 0.1, 0.3, 0.7, 0.95])
def test_threshold_rules_are_the_published_scans(seed, required):
    votes = np.append(np.random.default_rng(seed).binomial(N, 0.6, size=19), N)
    down, up = [n / N for n in range(N, 0, -1)], [n / N for n in range(1, N + 1)]
    assert decide("dynamic", votes, required) == scan(votes, required, down)
    assert decide("reverse", votes, required) == scan(votes, required, up)
    percentile = np.percentile(votes / N, 95)
    assert decide("unanimity", votes, required) == (votes / N >= percentile).astype(int).tolist()


def test_a_percentile_of_zero_restores_nothing():
    """One filter of forty is kept: the 95th percentile of the votes is 0, which all would reach."""
    votes = [10] + [0] * 39
    assert np.percentile(votes, 95) == 0
    assert decide("unanimity", votes, 0.9) == [1] + [0] * 39


def test_equal_votes_are_decided_by_norm_then_index():
    votes, norms = [5, 5, 5, 5, 9], [2.0, 1.0, 3.0, 1.0, 0.5]
    assert decide("topk", votes, 0.2, norms=norms) == [1, 1, 1, 0, 1]
    assert decide("topk", votes, 0.4, norms=norms) == [1, 0, 1, 0, 1]


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_empties_a_layer(rule):
    kept = decide(rule, [0, 1, 1, 0], 1.0, norms=[1.0, 1.0, 2.0, 3.0])
    assert kept == ([0, 1, 1, 0] if rule == "unanimity" else [0, 0, 1, 0])


@pytest.mark.parametrize(
    ("living", "share", "pruned"), [(5, 0.1, 0), (15, 0.1, 2), (25, 0.1, 2), (64, 0.1, 6), (1, 0.9, 0)]
)
def test_a_client_prunes_its_smallest_living_filters(living, share, pruned):
    rng = np.random.default_rng(living)
    norms, alive = rng.random(2 * living), rng.permutation(2 * living) < living
    kept = np.asarray(jax.jit(keep_largest)(norms.astype(np.float32), alive, share))
    smallest = [i for i in np.argsort(norms) if alive[i]][:pruned]
    np.testing.assert_array_equal(kept, alive & ~np.isin(np.arange(2 * living), smallest))


@pytest.fixture(scope="module")
def task():
    return cases.task()


@pytest.fixture(scope="module")
def model(task):
    """Pruned by neurons, which is the same code as by filters and compiles sooner."""
    return mlp(task, hidden=(10, 12), norm="batch")


def some_filters(model, seed=0):
    """Half of every layer that may be pruned."""
    rng = np.random.default_rng(seed)
    kernels = [k for k in prunable_kernels(model, dense=True) if k.kind == model.kernels[0].kind]
    return {k.name: rng.permutation(k.outputs) < k.outputs // 2 for k in kernels}


@pytest.fixture(scope="module")
def filters(model):
    return some_filters(model)


@cache
def search_of(model, optimizer, batch_size):
    algorithm = fm.mpfl_search(
        model, optimizer, epochs=2, batch_size=batch_size, prune_share=0.2, prune_dense=True
    )
    return algorithm, jax.jit(algorithm.train)


def ballot_of(model, task, filters, *, iteration=1, optimizer=SGD, key=1, batch_size=4):
    """Initial weights and ballot of a client that is sent a mask."""
    algorithm, train = search_of(model, optimizer, batch_size)
    state = algorithm.init(jax.random.key(0), task)
    server = state.server._replace(filters=jax.tree.map(jnp.asarray, filters), iteration=jnp.int32(iteration))
    round = Round(jax.random.key(key), jnp.int32(iteration))
    message = visitor.poison(algorithm.send(round, server, ()))
    _, ballot, _ = train(round, message, (), cases.data_of(task, 3))
    return server.initial, ballot


def expected_ballot(model, params, filters):
    norms = filter_norms(prunable_kernels(model, dense=True), params)
    return {name: keep_largest(norms[name], jnp.asarray(mask), 0.2) for name, mask in filters.items()}


FAST = optax.sgd(5.0)


def test_nothing_is_pruned_in_the_first_iteration(model, task, filters):
    whole = jax.tree.map(np.ones_like, filters)
    _, ballot = ballot_of(model, task, whole, iteration=0, optimizer=FAST)
    chex.assert_trees_all_equal(ballot, whole)


def test_a_client_ranks_the_masked_initial_weights_after_its_own_training(model, task, filters):
    """Rewinding: its training is that of a masked model that starts from the initial weights."""
    initial, ballot = ballot_of(model, task, filters, optimizer=FAST)
    training = fm.masked_fedavg(model, FAST, filters=filters, epochs=2, batch_size=4)
    state = training.init(jax.random.key(0), task)
    chex.assert_trees_all_equal(
        state.server.model.params,
        prune(initial, survivors(model.kernels, initial, filters, prune_bias=False)),
    )
    round = Round(jax.random.key(1), jnp.int32(0))
    client, profile = jax.tree.map(lambda a: a[3], (state.clients, state.profiles))
    message = training.send(round, state.server, profile)
    _, upload, _ = jax.jit(training.train)(round, message, client, cases.data_of(task, 3))
    trained = trees.add(state.server.model.params, upload.values)
    chex.assert_trees_all_equal(ballot, expected_ballot(model, trained, filters))
    assert any(
        (ballot[name] != mask).any() for name, mask in expected_ballot(model, initial, filters).items()
    )


def test_identical_clients_vote_identical_masks(model, task, filters):
    """Whole batches, so that the order of examples does not tell clients with the same data apart."""
    first, second = (ballot_of(model, task, filters, key=key, batch_size=20)[1] for key in (1, 2))
    chex.assert_trees_all_equal(first, second)
    for name, mask in first.items():
        votes = 2 * np.asarray(mask, np.int32)
        required = 1 - float(mask.mean())
        for rule in RULES:
            assert decide(rule, votes, required, voters=2, norms=filters[name]) == mask.astype(int).tolist()


SEARCHING = 3  # rounds
SPARSE_ENOUGH = {"iterations": 4, "max_sparsity": 0.35}
ENDS = {True: SPARSE_ENOUGH, False: {"iterations": SEARCHING}}


@cache
def both_phases(model, *, prune_bias):
    """MPFL, its simulation, the states before and after each round of all clients, and the rounds' facts.

    With ``prune_bias`` the search ends when the mask is sparse enough, without it after its iterations.
    """
    algorithm = fm.mpfl(
        model,
        SGD,
        batch_size=4,
        prune_share=0.2,
        search_epochs=1,
        prune_dense=True,
        prune_bias=prune_bias,
        **ENDS[prune_bias],
    )
    return algorithm, *rounds_of(algorithm, 5, cohort=9)


def rounds_of(algorithm, number, *, cohort, task=None):
    simulation = fm.make_simulation(algorithm, task or cases.task(), cohort=cohort, chunk=1, plan="scan")
    state, facts = simulation.init(), []
    states = [jax.device_get(state)]
    for index in range(number):
        state, (metrics,) = simulation.run(state, index, 1)
        states.append(jax.device_get(state))
        facts.append(metrics)
    return simulation, states, facts


def test_the_search_never_changes_the_initial_weights(model, task):
    algorithm, _, (before, *states), _ = both_phases(model, prune_bias=True)
    x = jnp.asarray(task.test_inputs[:8])
    for after in states[:SEARCHING]:
        chex.assert_trees_all_equal(after.server.first.initial, before.server.first.initial)
    initial, filters, _ = states[1].server.first
    assert [mask.sum() for mask in filters.values()] == [10 - 2, 12 - 2]
    mask = survivors(model.kernels, initial, filters, prune_bias=True)
    expected = model.apply(prune(initial, mask), x)
    np.testing.assert_allclose(algorithm.predict["global"](states[1].server, None, x), expected, rtol=1e-5)


ADAMW = optax.adamw(0.01, weight_decay=0.1)


@pytest.mark.parametrize(
    ("optimizer", "prune_bias"),
    [
        pytest.param(ADAMW, True, id="weight decay, biases too"),
        pytest.param(SGD, False, id="momentum", marks=pytest.mark.slow),
        pytest.param(ADAMW, False, id="weight decay", marks=pytest.mark.slow),
        pytest.param(SGD, True, id="momentum, biases too", marks=pytest.mark.slow),
    ],
)
def test_pruned_weights_never_move(model, task, filters, optimizer, prune_bias):
    # With biases of zero relu would be at its kink, and the pruned filters' biases would rest, too.
    init = lambda key: jax.tree.map(lambda a: a + 0.1 * (a.ndim == 1), model.init(key))
    algorithm = fm.masked_fedavg(
        model._replace(init=init),
        optimizer,
        filters=filters,
        prune_bias=prune_bias,
        batch_size=4,
        server_optimizer=optax.adamw(0.01, weight_decay=0.1, eps=1e-3),
    )
    simulation = fm.make_simulation(algorithm, task, cohort=4, chunk=2, poison=True, plan="scan")
    before = jax.device_get(simulation.init()).server.model.params
    state, _ = simulation.run(simulation.init(), 0, 2)
    after = jax.device_get(state.server.model.params)
    for kernel in model.kernels:
        kept = filters.get(kernel.name, np.ones(kernel.outputs, bool))
        old, new = trees.get(before, kernel.path), trees.get(after, kernel.path)
        assert not new[..., ~kept].any()
        assert (new != old).any(0)[kept].all()
        for path in filter(None, (kernel.bias, *kernel.norm_paths)):
            assert not (prune_bias and trees.get(after, path)[~kept].any())
        if kernel.norm and not prune_bias:
            shift = kernel.norm_paths[1]
            assert (trees.get(after, shift) != trees.get(before, shift))[~kept].all()


@pytest.mark.parametrize("prune_bias", [pytest.param(False, marks=pytest.mark.slow), True])
def test_bytes_of_both_phases(model, prune_bias):
    """The mask goes up in every iteration and down after it; then survivors alone, both ways."""
    _, simulation, states, facts = both_phases(model, prune_bias=prune_bias)
    state = states[-1]
    bytes_up = np.concatenate([metrics.bytes_up for metrics in facts])
    bytes_down = np.concatenate([metrics.bytes_down for metrics in facts])
    filters = state.server.second.filters
    assert [mask.sum() for mask in filters.values()] == [10 - 4, 12 - 5]
    total = trees.size(state.server.first.initial)
    # Weights, and with prune_bias three numbers more for each filter.
    lost = 4 * (6 + 3 * prune_bias) + 5 * (10 + 3 * prune_bias)
    mask_bits, dense = 10 + 12, 32 * (total - lost)

    def whole_bytes(*bits):
        return np.tile(-(-np.array(bits)[:, None] // 8), (1, 9))

    np.testing.assert_array_equal(bytes_up, whole_bytes(*[mask_bits] * SEARCHING, dense, dense))
    np.testing.assert_array_equal(bytes_down, whole_bytes(0, mask_bits, mask_bits, mask_bits + dense, dense))
    assert simulation.setup_bytes == 4 * total


@cache
def masked(model):
    """A simulation of the second phase alone, the states before and after its rounds, and their facts."""
    filters = some_filters(model)
    algorithm = fm.masked_fedavg(model, SGD, filters=filters, prune_bias=True, batch_size=4)
    return rounds_of(algorithm, 6, cohort=4)


def test_a_client_is_sent_the_mask_once(model):
    _, _, facts = masked(model)
    seen, least = set(), min(metrics.bytes_up.min() for metrics in facts)
    for metrics in facts:
        ids = metrics.ids[0].tolist()
        extra = [0 if client in seen else 3 for client in ids]  # 22 bits
        np.testing.assert_array_equal(metrics.bytes_down[0], least + extra)
        seen |= set(ids)
    assert len(seen) > 4


def test_the_search_ends_when_sparse_enough(model):
    _, _, states, facts = both_phases(model, prune_bias=True)
    state = states[-1]
    assert SPARSE_ENOUGH["iterations"] > SEARCHING
    assert int(state.server.first.iteration) == SEARCHING
    assert [bool(each.server.later) for each in states] == [False] * SEARCHING + [True] * 3
    densities = [metrics.mean("density")[0] for metrics in facts]
    np.testing.assert_allclose(densities, [1, 1, 1 - 4 / 22, 1 - 9 / 22, 1 - 9 / 22], atol=1e-6)


IMAGES = cases.task((8, 8, 1))
RATES = {"cnn": 0.05, "vgg": 1.0}  # eight layers without normalisation pass on little
NETS = {
    "cnn": lambda: cnn(IMAGES, norm="batch"),
    "vgg": lambda: vgg11(IMAGES, norm=None, channels=(6, 8, 8, 8, 8, 8, 8, 8), hidden=(12, 10)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETS)
def test_the_compacted_network_trains_to_the_same_parameters(kind):
    model = NETS[kind]()
    filters = some_filters(model)
    sgd = optax.sgd(RATES[kind], momentum=0.9)
    masked = fm.masked_fedavg(model, sgd, filters=filters, prune_bias=True, batch_size=4)
    _, states, _ = rounds_of(masked, 3, cohort=4, task=IMAGES)
    assert_compacted_trains_alike(model, filters, states[:4], sgd, IMAGES)


def test_the_compacted_model_trains_to_the_same_parameters(model, filters):
    _, states, _ = masked(model)
    assert_compacted_trains_alike(model, filters, states[:4], SGD, cases.task())


def assert_compacted_trains_alike(model, filters, states, optimizer, task):
    """Training the masked model and removing what it masks, and the reverse."""
    smaller, small_start = compact(model, states[0].server.model.params)
    widths = [kernel.outputs for kernel in smaller.kernels if kernel.name in filters]
    assert widths == [mask.sum() for mask in filters.values()]
    plain = fm.fedavg(smaller._replace(init=lambda key: small_start), optimizer, batch_size=4)
    rounds = len(states) - 1
    small = fm.make_simulation(plain, task, cohort=4, chunk=rounds, plan="scan")
    small_state, _ = small.run(small.init(), 0, rounds)
    _, extracted = compact(model, states[-1].server.model.params)
    chex.assert_trees_all_close(small_state.server.params, extracted, rtol=1e-5, atol=1e-5)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), small_state.server.params, small_start)
    assert np.median(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"consensus": "plurality"}, "consensus=plurality: must be one of topk, dynamic, reverse, majority"),
        ({"prune_share": 0.0}, "prune_share=0.0: must be a finite number above 0 and below 1"),
        ({"prune_share": 1.0, "consensus": "majority"}, "prune_share=1.0: must be"),
        ({"iterations": 11}, "iterations=11: must be at most 10 with prune_share=0.1"),
        ({"prune_share": 0.3, "iterations": 5}, "iterations=5: must be at most 4"),
        ({"max_sparsity": 1.5}, "max_sparsity=1.5: must be"),
        ({"search_epochs": 0}, "search_epochs=0: must be"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        fm.mpfl(NETS["cnn"](), SGD, **options)


def test_models_without_convolutions_are_refused(model):
    with pytest.raises(ValueError, match="'mlp': must have a convolution; set prune_dense"):
        fm.mpfl(model, SGD)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"conv9": np.ones(10, bool)}, "'conv9': must be one of "),
        ({"dense1": np.ones(11, bool)}, r"bool\[11\]: must be bool\[10\]"),
        ({"dense1": np.zeros(10, bool)}, "a layer needs one filter or more"),
    ],
)
def test_bad_masks_are_named(model, filters, message):
    with pytest.raises(UserError, match=message):
        fm.masked_fedavg(model, SGD, filters=filters)
