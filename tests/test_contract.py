"""What holds for every algorithm: invariances, honest payloads, determinism."""

import inspect
from dataclasses import replace
from functools import cache, lru_cache

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_masks as fm
from fedjax_masks.algorithms.registry import REGISTRY
from fedjax_masks.communication import serialization, size, visitor
from fedjax_masks.core import target, trees
from fedjax_masks.data import synthetic_task
from fedjax_masks.simulation import Storage, arrays, make_simulation
from fedjax_masks.simulation.lanes import lay_out
from fedjax_masks.simulation.memory import peak_bytes
from fedjax_masks.simulation.plan import Plan
from fedjax_masks.simulation.states import client_states, with_client_states

ROUNDS = 3
SEED = 0  # of nine clients, two are in no cohort of the first three rounds
BROKEN = 6  # in the first two of these rounds
PLANS = ("vmap", "blocks:3", "scan,mesh:8")  # and a fourth one, together with other laws, in the fast suite


def fast_for(*fast, among=tuple(cases.CASES)):
    """All cases; the fast tests try these."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[] if name in fast else pytest.mark.slow) for name in among]
    )


# Cases of one algorithm that differ in what surrounds its training.
VARIANTS = (
    "fedavg-wired",
    "fedavg-robust",
    "fedavg-private",
    "fedskel-cycle",
    "masked-fedavg-median",
    "fedmask-own",
    "adp-salient",
    "adp-warm",
)
every_case = fast_for(*set(cases.CASES) - set(VARIANTS))

# Between them they have every kind of state, message, merge and branch.
OWN_STATES = (
    *("fedavg", "scaffold", "heterofl", "fedskel", "mpfl", "fedpm", "lotteryfl", "feddst"),
    *("ecofed", "fedgkt", "adp", "fedmask"),
)
FROZEN = ("fedmask", "fedmask-entropy", "fedmask-own")
# Ranking and rounding to a grid turn one ulp into a step: plans agree on these in float64 only.
SMOOTH = [name for name in cases.CASES if "wired" not in name]


@cache
def task_of(kind):
    """The task of a kind of model, with one client whose data are broken."""
    task = cases.task_for(kind)
    start, size = task.train.offsets[BROKEN], task.train.sizes[BROKEN]
    inputs = task.inputs.copy()
    inputs[task.train.rows[start : start + size]] = np.nan
    return replace(task, inputs=inputs)


def own_task(name):
    return task_of(cases.kind_of(name))


def widened(algorithm):
    """The algorithm with a state of float64."""

    def wide(leaf):
        return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return algorithm._replace(init=lambda key, task: jax.tree.map(wide, algorithm.init(key, task)))


def make(algorithm, task, plan="scan", **options):
    return make_simulation(
        algorithm, task, cohort=cases.COHORT, seeds=(SEED,), chunk=ROUNDS, plan=plan, **options
    )


def run(simulation):
    state, (metrics,) = simulation.run(simulation.init(), 0, ROUNDS)
    return jax.device_get(state), metrics


# Tests run case by case (conftest.py): these hold the programs of about one case.
@lru_cache(maxsize=4)
def compiled(name, *, kind=None, plan="scan", x64=False, poison=False):
    """A simulation that all laws share: compiling takes longer than all else here."""
    kind = kind or cases.kind_of(name)
    algorithm, task = cases.algorithm(name, kind), task_of(kind)
    if x64:
        algorithm, task = widened(algorithm), replace(task, inputs=task.inputs.astype(np.float64))
    return make(algorithm, task, plan, poison=poison)


@lru_cache(maxsize=8)
def simulate(name, **options):
    with jax.enable_x64(options.get("x64", False)):
        return run(compiled(name, **options))


def pad(monkeypatch):
    """Gives every client room for more examples than the largest client has."""
    capacity = arrays.capacity
    monkeypatch.setattr(arrays, "capacity", lambda task: capacity(task) + 13)


def assert_close(actual, expected, tolerance, flips):
    """Floats agree within a tolerance; of all bits, at most a share ``flips`` differs."""
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected)))
    for a, b in pairs:
        if a.dtype != bool:
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    differing = [np.ravel(a != b) for a, b in pairs if a.dtype == bool]
    assert not differing or np.mean(np.concatenate(differing)) <= flips


@fast_for(*OWN_STATES)
def test_neither_plan_nor_padding_nor_unsent_values_decide(name, monkeypatch):
    """One program for three laws, which the slow tests try one by one: compiling takes long."""
    pad(monkeypatch)
    algorithm, plan = cases.algorithm(name), "blocks:3,mesh:2" if name in SMOOTH else "scan"
    state, metrics = run(make(algorithm, own_task(name), plan, poison=True))
    expected_state, expected = simulate(name)
    assert_close(state, expected_state, 1e-5, 1e-3)
    np.testing.assert_array_equal(metrics.bytes_up, expected.bytes_up)
    np.testing.assert_array_equal(metrics.bytes_down, expected.bytes_down)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("plan", PLANS)
def test_plans_agree(name, plan):
    assert_close(simulate(name, plan=plan)[0], simulate(name)[0], 1e-5, 1e-3)


@fast_for("fedavg", "fedskel", among=SMOOTH)
def test_an_accelerators_program_agrees(name):
    """All clients at once, with the choices of an accelerator, on a CPU."""
    with target.making_for(target.Target("gpu")):
        simulation = make(cases.algorithm(name), own_task(name), "auto,mesh:1")
        assert simulation.plan.block == cases.COHORT
        state, metrics = run(simulation)
    expected_state, expected = simulate(name)
    assert_close(state, expected_state, 1e-5, 1e-3)
    np.testing.assert_array_equal(metrics.bytes_up, expected.bytes_up)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "fedmask", "fedskel", "mpfl", "adp"])
def test_an_accelerators_program_agrees_on_convolutions(name):
    with jax.enable_x64(True), target.making_for(target.Target("gpu")):
        algorithm, task = cases.algorithm(name, "small-cnn"), task_of("small-cnn")
        wide = replace(task, inputs=task.inputs.astype(np.float64))
        state, _ = run(make(widened(algorithm), wide, "auto,mesh:1"))
    assert_close(state, simulate(name, kind="small-cnn", x64=True)[0], 1e-8, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "fedmask", "fedskel", "mpfl"])
def test_plans_agree_on_convolutions(name):
    # In float32 one ulp can flip a bit of a mask, and kept scores then take another path. Scores learn by
    # steps of 100, which amplify what rounding leaves in float64.
    one_by_one, mesh = (simulate(name, kind="cnn", plan=p, x64=True)[0] for p in ("scan", "blocks:3,mesh:2"))
    assert_close(mesh, one_by_one, 1e-8, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "fedavg-wired", "fedmask", "fedskel", "adp", "adp-salient"])
@pytest.mark.parametrize("plan", ["blocks:3", "scan,mesh:8"])
def test_plans_agree_in_float64(name, plan):
    assert_close(simulate(name, plan=plan, x64=True)[0], simulate(name, x64=True)[0], 1e-12, 0.0)


@fast_for("ecofed")
def test_x64_changes_neither_types_nor_costs(name):
    plan = "blocks:3"  # sums over a block are where jax would widen integers
    state, metrics = simulate(name, plan=plan)
    with jax.enable_x64(True):
        wide, costs = run(make(cases.algorithm(name), own_task(name), plan))
    chex.assert_trees_all_equal_shapes_and_dtypes(wide, state)
    for field in ("bytes_up", "bytes_down"):
        np.testing.assert_array_equal(getattr(costs, field), getattr(metrics, field))
    for field in ("steps", "flops", "examples"):
        np.testing.assert_array_equal(costs.train.get(field), metrics.train.get(field))


@every_case
def test_same_seed_same_bits(name):
    chex.assert_trees_all_equal(run(compiled(name)), simulate(name))


@pytest.mark.slow
@every_case
def test_same_seed_same_bits_in_another_program(name):
    chex.assert_trees_all_equal(run(make(cases.algorithm(name), own_task(name))), simulate(name))


@pytest.mark.slow
@every_case
def test_nothing_is_read_that_was_not_sent(name):
    # Another program, so XLA may round otherwise; what leaks is a NaN or another bit.
    assert_close(simulate(name, poison=True)[0], simulate(name)[0], 1e-6, 0.0)


@every_case
def test_absent_clients_are_untouched(name):
    state, metrics = simulate(name)
    before = jax.device_get(compiled(name).init())
    absent = np.setdiff1d(np.arange(cases.NUM_CLIENTS), metrics.ids)
    assert absent.size
    rows = lambda clients: jax.tree.map(lambda a: a[absent], clients)
    chex.assert_trees_all_equal(rows(client_states(state)), rows(client_states(before)))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, before)


@fast_for("scaffold", "ecofed")
def test_it_does_not_matter_where_states_lie(name):
    """Packed in a file between chunks, of which one has a round; the last state of every client."""
    algorithm, task = cases.algorithm(name), own_task(name)
    simulation = make(algorithm, task, storage=Storage("host"))
    assert (simulation.store is None) == (not jax.tree.leaves(client_states(simulate(name)[0])))
    state, _ = simulation.run(simulation.init(), 0, 1)
    state, _ = simulation.run(state, 1, ROUNDS - 1)
    own = simulation.clients(state, np.arange(cases.NUM_CLIENTS))
    assert_close(with_client_states(state, own), simulate(name)[0], 1e-5, 1e-3)


@pytest.mark.slow
@every_case
def test_one_of_a_million_clients_costs_its_own_state(name):
    """Before its first round; all of them would take gigabytes."""
    algorithm, task = cases.algorithm(name), own_task(name)
    million = task.train._replace(offsets=np.zeros(10**6, np.int32), sizes=np.full(10**6, 3, np.int32))
    task = replace(task, train=million, test=million)

    def first(key):
        own = client_states(algorithm.init(key, task))
        return jax.tree.map(lambda a: a.at[jnp.arange(5)].get(mode="clip"), own)

    assert peak_bytes(jax.jit(first).lower(jax.random.key(0)).compile()) < 10e6


@every_case
def test_the_servers_memory_does_not_grow_with_the_number_of_clients(name):
    algorithm, task = cases.algorithm(name), own_task(name)
    times = 100
    many = task.train._replace(
        offsets=np.tile(task.train.offsets, times), sizes=np.tile(task.train.sizes, times)
    )
    more = replace(task, train=many, test=many)
    few, lots = (
        jax.eval_shape(lambda key, t=t: algorithm.init(key, t), jax.random.key(0)) for t in (task, more)
    )
    assert trees.num_bytes(lots.server) == trees.num_bytes(few.server)
    for rows in (lots.clients, lots.profiles):
        assert {leaf.shape[0] for leaf in jax.tree.leaves(rows)} <= {times * cases.NUM_CLIENTS}


@every_case
def test_order_of_the_cohort_is_irrelevant(name):
    """A round's program gets nothing of the cohort but its layout."""
    schedule, plan = cases.algorithm(name).schedule, Plan(block=2)
    there, back = (
        lay_out(np.array(ids), own_task(name).train, plan, schedule)[0]
        for ids in ([0, 3, 4, 8], [8, 4, 3, 0])
    )
    chex.assert_trees_all_equal(there, back)


@pytest.mark.slow
@every_case
def test_padding_changes_nothing(name, monkeypatch):
    pad(monkeypatch)
    state, metrics = run(make(cases.algorithm(name), own_task(name)))
    expected_state, expected = simulate(name)
    chex.assert_trees_all_equal(state, expected_state)
    np.testing.assert_array_equal(metrics.bytes_up, expected.bytes_up)
    for field in set(expected.train) - {"slots"}:  # slots count padding
        np.testing.assert_array_equal(metrics.train[field], expected.train[field])


@fast_for("fedavg", "lotteryfl", among=SMOOTH)
def test_constant_sizes_change_nothing(name, monkeypatch):
    """Where all clients have equally many examples, their number is a constant of the program."""
    # Each client's first five of ten examples: minibatches of four and of one.
    task = own_task(name)
    few = task.train._replace(sizes=np.full(cases.NUM_CLIENTS, 5, np.int32), offsets=5 * np.arange(9) % 40)
    task = replace(task, train=few._replace(offsets=few.offsets.astype(np.int32)))
    assert arrays.equal_size(task) == 5
    state, metrics = run(make(cases.algorithm(name), task, "blocks:3"))
    monkeypatch.setattr(arrays, "equal_size", lambda task: None)
    expected_state, expected = run(make(cases.algorithm(name), task, "blocks:3"))
    assert_close(state, expected_state, 1e-5, 1e-3)
    for field in expected.train:
        np.testing.assert_allclose(metrics.train[field], expected.train[field], rtol=1e-5, atol=1e-6)


@every_case
def test_counted_bits_are_the_bytes_really_written(name):
    algorithm, state = cases.algorithm(name), jax.device_get(compiled(name).init())
    client, profile = (jax.tree.map(lambda a: a[3], part) for part in state[1:])
    data = cases.data_of(own_task(name), 3)
    round = fm.Round(jax.random.key(1), jnp.int32(0))
    payloads = []
    for _ in range(2):  # a second visit may know more than the first
        message = algorithm.send(round, state.server, profile)
        client, upload, _ = jax.jit(algorithm.train)(round, message, client, data)
        payloads += [message, upload]
    for sent in payloads:
        data_bytes = serialization.encode(sent)
        assert len(data_bytes) == -(-size.bits(sent) // 8)
        received = serialization.decode(data_bytes, visitor.poison(sent))
        chex.assert_trees_all_equal(serialization.encode(received), data_bytes)


@cache
def trained(make_algorithm):
    """Logits after some rounds, and all bytes up."""
    task = own_task("fedavg")
    algorithm = make_algorithm(cases.KINDS["mlp"][1](task))
    simulation = make(algorithm, task)
    state, metrics = run(simulation)
    predict, client = algorithm.predict.get("global"), None
    if predict is None:
        predict, client = algorithm.predict["personal"], jax.tree.map(lambda a: a[0], state.clients)
    return np.asarray(predict(state.server, client, task.test_inputs[:50])), metrics.bytes_up


@fast_for("fedprox", "topk", "heterofl", "lotteryfl", among=cases.FEDAVG_LIMITS)
def test_in_a_limit_it_is_fedavg(name):
    logits, sent = trained(cases.FEDAVG_LIMITS[name])
    expected, bytes_up = trained(cases.fedavg_twice)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(sent, bytes_up)


def assert_learned(simulation, state, first, last):
    assert simulation.evaluate(state)[0].personal.mean() > 2 * (1 / 3)
    loss = lambda metrics: metrics.mean("loss") if "loss" in metrics.train else metrics.server["loss"]
    assert loss(last)[-1] < loss(first)[0]


@fast_for(*set(cases.CASES) - set(VARIANTS), among=[name for name in cases.CASES if name not in FROZEN])
def test_learns(name):
    simulation, (state, first) = compiled(name), simulate(name)
    for start in range(ROUNDS, 10 * ROUNDS, ROUNDS):
        state, (last,) = simulation.run(state, start, ROUNDS)
    assert_learned(simulation, state, first, last)


@fast_for(*FROZEN[:2], among=FROZEN)
def test_masks_of_frozen_weights_learn(name):
    """They need more examples than the clients of the other tests have."""
    task = synthetic_task((6,), 3, [40] * 4, noise=0.3, test_per_client=50)
    algorithm = cases.CASES[name](fm.models.mlp(task, hidden=(32,)))
    simulation = make_simulation(algorithm, task, cohort=4, chunk=20, plan="scan")
    state, (metrics,) = simulation.run(simulation.init(), 0, 20)
    assert_learned(simulation, state, metrics, metrics)


@every_case
def test_a_broken_client_is_left_out(name):
    state, metrics = simulate(name)
    before = jax.device_get(compiled(name).init())
    took_part = metrics.train["examples"] > 0
    assert took_part[metrics.ids == BROKEN].any()
    np.testing.assert_array_equal(metrics.dropped, (metrics.ids == BROKEN) & took_part)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    row = lambda clients: jax.tree.map(lambda a: a[BROKEN], clients)
    chex.assert_trees_all_equal(row(state.clients), row(before.clients))


def test_factories_take_options_by_keyword_only():
    for entry in REGISTRY.values():
        kinds = [p.kind for p in inspect.signature(entry.factory).parameters.values()]
        assert kinds[:2] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 2
        assert set(kinds[2:]) <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
        assert kinds[-1] is inspect.Parameter.VAR_KEYWORD  # the fields of the trainer
