"""Devices and links: seconds and joules of a round, and clients that are late, lost or away."""

import math
from dataclasses import replace

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.core.errors import UserError
from fedjax_masks.costs.clock import round_cost, round_seconds
from fedjax_masks.costs.devices import DEVICES, LINKS, Fleet, Population, make_population, read_trace
from fedjax_masks.experiment.loop import notes
from fedjax_masks.simulation import make_simulation

SGD = optax.sgd(0.1)
HEADER = ",".join(Fleet._fields)


@pytest.fixture(scope="module")
def algorithm():
    return fm.fedavg(fm.models.mlp(cases.task(), hidden=(8,)), SGD, batch_size=4)


def fleet(**rates):
    """Nine clients alike, except for the given rates."""
    base = Fleet(*[np.ones(9)] * 6, np.zeros(9))._replace(**rates)
    return Fleet(*(np.broadcast_to(np.float32(values), 9) for values in base))


def simulate(algorithm, population, rounds=3, plan="scan", cohort=9):
    simulation = make_simulation(
        algorithm, cases.task(), cohort=cohort, chunk=rounds, plan=plan, population=population
    )
    state, (metrics,) = simulation.run(simulation.init(), 0, rounds)
    return jax.device_get(state), metrics


def test_time_and_energy_of_a_round_against_the_formula():
    client = Fleet(2e9, 4e9, 5.0, 2.0, 8e6, 16e6, 0.1)
    cost = round_cost(client, 8e6, 32e6, flops=6e9, traffic=2e9, messages=4)
    assert cost.seconds == pytest.approx(6 / 2 + 2 / 4 + 1 + 2 + 4 * 0.1 / 2)
    assert cost.joules == pytest.approx(3.5 * 5 + 3 * 2)


@pytest.fixture(scope="module")
def with_clock(algorithm):
    """In units that give a byte, a FLOP and a round trip different sizes."""
    rates = fleet(flops=1e6, memory=1e30, up=8e3, down=8e4, latency=np.full(9, 1e-3))
    return simulate(algorithm, Population(rates))


def test_the_clock_counts_the_bytes_and_flops_of_the_metrics(with_clock):
    _, metrics = with_clock
    train = metrics.train
    want = train["flops"] / 1e6 + metrics.bytes_up / 1e3 + metrics.bytes_down / 1e4 + 1e-3
    np.testing.assert_allclose(train["client_seconds"], want, rtol=1e-5)
    np.testing.assert_allclose(metrics.server["seconds"], want.max(1), rtol=1e-5)
    np.testing.assert_allclose(metrics.server["joules"], (want - 1e-3).sum(1), rtol=1e-5)


def test_traffic_is_what_products_write_and_read_of_it(algorithm):
    """Two layers on batches of 4: 8 and 3 outputs; backwards their kernels, and the 8 hidden values."""
    population = Population(fleet(flops=1e30, memory=1.0, up=1e30, down=1e30))
    _, metrics = simulate(algorithm, population, rounds=1)
    per_step = 2 * 4 * (4 * (8 + 3) + 6 * 8 + 8 * 3 + 4 * 8)
    np.testing.assert_allclose(metrics.train["client_seconds"], metrics.train["steps"] * per_step, rtol=1e-6)


def test_every_message_has_an_overhead():
    """A byte takes a second up and half of one down; a batch takes a message each way."""
    split = fm.splitfed(fm.models.mlp(cases.task(), hidden=(8,)), SGD, batch_size=4)

    population = Population(fleet(flops=1e30, memory=1e30, up=8.0, down=16.0), overhead=1000.0)
    _, metrics = simulate(split, population, rounds=1)
    overhead = (metrics.train["steps"] + 1) * 1000 * (1 + 1 / 2)
    wanted = metrics.bytes_up + metrics.bytes_down / 2 + overhead
    np.testing.assert_allclose(metrics.train["client_seconds"], wanted, rtol=1e-5)


@pytest.fixture(scope="module")
def with_momentum():
    """Momentum of the server, which would go on by itself; its state after two rounds, and after four."""
    model = fm.models.mlp(cases.task(), hidden=(8,))
    algorithm = fm.fedavg(model, SGD, batch_size=4, server_optimizer=optax.sgd(1.0, momentum=0.9))
    simulation = make_simulation(algorithm, cases.task(), cohort=5, chunk=2, plan="scan")
    before = jax.device_get(simulation.run(simulation.init(), 0, 2)[0])
    moved, _ = simulation.run(jax.device_put(before), 2, 2)
    return algorithm, before, jax.device_get(moved)


@pytest.mark.parametrize(
    "population", ["available=1e-9", pytest.param("dropout=1", marks=pytest.mark.slow), "deadline=1e-9"]
)
def test_the_server_stays_to_the_bit_where_no_upload_arrives(with_momentum, population):
    algorithm, before, moved = with_momentum
    gone = make_population(f"rpi4@wifi,{population}", 9)
    simulation = make_simulation(algorithm, cases.task(), cohort=5, chunk=2, plan="scan", population=gone)
    after, (metrics,) = simulation.run(jax.device_put(before), 2, 2)
    assert metrics.dropped.all()
    chex.assert_trees_all_equal(jax.device_get(after.server), before.server)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(moved.server, before.server)


def test_time_alone_changes_nothing(algorithm, with_clock):
    state, timed = with_clock
    without, plain = simulate(algorithm, None)
    chex.assert_trees_all_equal(state, without)
    np.testing.assert_array_equal(timed.bytes_up, plain.bytes_up)
    assert not {"client_seconds", "seconds"} & {*plain.train, *plain.server}


ANYTHING = "rpi3+rpi4@3g,spread=1,deadline=0.0505,dropout=0.2,available=0.8"


@pytest.fixture(scope="module")
def one_by_one(algorithm):
    """Clients of which some are away, late or lost, one after another."""
    return simulate(algorithm, make_population(ANYTHING, 9))


@pytest.mark.parametrize(
    "plan", [*(pytest.param(plan, marks=pytest.mark.slow) for plan in ("vmap", "blocks:3")), "scan,mesh:8"]
)
def test_no_plan_changes_the_clients_that_are_late_or_lost(algorithm, one_by_one, plan):
    state, metrics = one_by_one
    again, other = simulate(algorithm, make_population(ANYTHING, 9), plan=plan)
    for name in ("away", "late", "lost"):
        assert 0 < metrics.train[name].sum() < metrics.train[name].size
        np.testing.assert_array_equal(metrics.train[name], other.train[name])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, again)


def test_a_straggler_is_left_out_of_the_merge_and_its_bytes_are_counted(algorithm):
    slow = 4
    rates = np.where(np.arange(9) == slow, 1.0, 1e9)
    population = Population(fleet(up=rates, down=1e9, flops=1e12, memory=1e12), deadline=1.0)
    state, metrics = simulate(algorithm, population, rounds=1)
    np.testing.assert_array_equal(metrics.ids[0][metrics.dropped[0]], [slow])
    np.testing.assert_array_equal(metrics.train["late"][0] > 0, metrics.ids[0] == slow)
    assert metrics.bytes_up.min() > 0
    assert metrics.server["seconds"] == [1.0]
    assert metrics.trained.all()  # the straggler, too
    # The same as without the straggler, up to the order of a sum.
    broken = cases.task().inputs.copy()
    rows = cases.task().train
    broken[rows.rows[rows.offsets[slow] : rows.offsets[slow] + rows.sizes[slow]]] = np.nan
    simulation = make_simulation(
        algorithm, replace(cases.task(), inputs=broken), cohort=9, chunk=1, plan="scan"
    )
    want, _ = simulation.run(simulation.init(), 0, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, jax.device_get(want))


@pytest.mark.parametrize(
    "chances", [pytest.param({}, marks=pytest.mark.slow), {"available": 0.5, "deadline": 9.0}]
)
def test_clients_that_are_away_or_lost_learn_nothing_and_only_the_lost_receive(chances):
    """Every client keeps a layer of its own, and shares the other."""
    population = Population(fleet(up=1e6, down=1e6, flops=1e9, memory=1e9), dropout=0.4, **chances)
    shared = fm.lgfedavg(fm.models.mlp(cases.task(), hidden=(8,)), SGD, batch_size=4)
    simulation = make_simulation(shared, cases.task(), cohort=9, chunk=1, plan="scan", population=population)
    start = jax.device_get(simulation.init())
    state, (metrics,) = simulation.run(jax.device_put(start), 0, 1)
    pairs = zip(*map(jax.tree.leaves, (jax.device_get(state).clients, start.clients)))
    changed = [np.any(a != b, axis=tuple(range(1, a.ndim))) for a, b in pairs]
    learned = np.any(changed, axis=0)[metrics.ids[0]]
    away, lost = (metrics.train[name][0] > 0 for name in ("away", "lost"))
    assert 0 < lost.sum() < 9
    assert (0 < away.sum() < 9) == bool(chances)
    assert not (away & lost).any()
    for column in (learned, metrics.trained[0], metrics.bytes_up[0] > 0, ~metrics.dropped[0]):
        np.testing.assert_array_equal(column, ~(away | lost))
    for column in (metrics.bytes_down, metrics.train["client_seconds"], metrics.train["client_joules"]):
        np.testing.assert_array_equal(column[0] == 0, away)
    assert notes(metrics, 0) == ()


@pytest.mark.parametrize(
    ("deadline", "lost", "want"),
    [
        (math.inf, [0, 0, 0], 5),
        (math.inf, [0, 0, 1], 3),
        (4.0, [0, 0, 0], 4),
        (9.0, [0, 0, 0], 5),
        (9.0, [1, 0, 0], 9),
    ],
)
def test_a_round_lasts_as_long_as_its_slowest_or_until_the_deadline(deadline, lost, want):
    server = DEVICES["server"]._replace(flops=10.0)
    population = Population(fleet(), server=server, deadline=deadline)
    seconds = np.array([[2.0, 3.0, 5.0]])
    assert round_seconds(population, seconds, np.array([lost], bool), np.array([20.0])) == [want + 2]


def test_a_mix_of_devices_is_drawn_in_proportion_and_by_seed():
    fleets = [make_population("rpi3:1+rpi4:3@3g+wifi", 8, seed=seed).fleet for seed in (0, 0, 1)]
    for found in fleets:
        assert sorted(found.flops.tolist()) == [np.float32(DEVICES["rpi3"].flops)] * 2 + [2.5e9] * 6
        assert sorted(found.up.tolist()) == [5e6] * 4 + [60e6] * 4
    np.testing.assert_array_equal(fleets[0], fleets[1])
    assert not np.array_equal(fleets[0], fleets[2])


def test_spread_is_log_normal_and_leaves_powers_and_latency_alone():
    found = make_population("rpi4@wifi,spread=0.5", 4000).fleet
    logs = np.log(found.flops / DEVICES["rpi4"].flops)
    assert abs(logs.std() - 0.5) < 0.03
    assert abs(logs.mean()) < 0.03
    assert set(found.latency.tolist()) == {np.float32(LINKS["wifi"].latency)}


def write_trace(path, rows, header=HEADER):
    path.write_text("\n".join([header, *rows]) + "\n", "utf-8")
    return f"trace:{path}"


def test_a_trace_is_read_row_by_row(tmp_path):
    spec = write_trace(tmp_path / "t.csv", ["1e9,2e9,3,1,5e6,6e6,0", "2e9,2e9,3,1,5e6,6e6,0.1"])
    population = make_population(f"{spec},deadline=7", 2)
    assert population.fleet.flops.tolist() == [1e9, 2e9]
    assert population.fleet.latency.tolist() == [0, np.float32(0.1)]
    assert population.deadline == 7


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rpi9@wifi", r"devices='rpi9': must be one of .*; did you mean 'rpi"),
        ("rpi4", r"devices='': must be one of "),
        ("rpi4@5g", r"devices='5g': must be one of 3g, 4g, wifi"),
        ("rpi4:0@wifi", r"devices.rpi4=0: must be a finite number above 0"),
        ("rpi4@wifi,deadline=0", r"devices.deadline=0: must be a finite number above 0"),
        ("rpi4@wifi,deadline=soon", r"devices.deadline=soon: must be a finite number"),
        ("rpi4@wifi,dropout=1.5", r"devices.dropout=1.5: must be a finite number at least 0 and at most 1"),
        ("rpi4@wifi,colour=3", r"devices='colour': must be one of "),
        ("trace:/nowhere.csv", r"devices=trace:/nowhere.csv: must be a CSV file: "),
    ],
)
def test_a_bad_population_is_refused_in_one_line(spec, message):
    with pytest.raises(UserError, match=message) as error:
        make_population(spec, 4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["1,1,1,1,0,1,0"], HEADER, r"row 1: up=0: must be a finite number above 0"),
        (["1,1,1,1,1,1,nan"], HEADER, r"row 1: latency=nan: must be a finite number at least 0"),
        (["1,1,1,1,1,1"], HEADER, r"row 1: latency=None: must be a finite number"),
        (["1,1"], "flops,memory", r"'compute_watts' is missing"),
        ([], HEADER, r"must have 1 rows, one per client, and has 0"),
    ],
)
def test_a_malformed_trace_is_refused_in_one_line(tmp_path, rows, header, message):
    with pytest.raises(UserError, match=message) as error:
        read_trace(write_trace(tmp_path / "t.csv", rows, header).removeprefix("trace:"), 1)
    assert "\n" not in str(error.value)


def recorded(algorithm, population, rounds=1, **options):
    """A run of all nine clients, and the metrics of each of its chunks."""
    seen = []
    run = fm.simulate(
        algorithm,
        cases.task(),
        rounds=rounds,
        cohort=9,
        plan="scan",
        population=population,
        on_chunk=[lambda chunk: seen.append(chunk.metrics)],
        **options,
    )
    return run.records, seen


@pytest.fixture(scope="module")
def recorded_some(algorithm):
    """Four rounds in two chunks, in which some clients are away or lost, and most others late."""
    rates = fleet(up=1e6, down=1e6, flops=1e9, memory=1e9)
    some = Population(rates, available=0.5, dropout=0.3, deadline=1e-3)
    return recorded(algorithm, some, rounds=4, eval_every=2)


@pytest.fixture(scope="module")
def recorded_all(algorithm):
    return recorded(algorithm, None)


def test_records_add_up_seconds_and_joules(recorded_some, recorded_all):
    records, seen = recorded_some
    for key, name in (("sim_seconds", "seconds"), ("energy_joules", "joules")):
        sums = np.cumsum([float(np.sum(metrics.server[name])) for metrics in seen])
        np.testing.assert_allclose([record[key] for record in records], sums)
        assert (np.diff(sums) > 0).all()
    (plain,), _ = recorded_all
    assert plain["sim_seconds"] is None


def test_absent_clients_compute_nothing(recorded_some, recorded_all):
    (plain,), (everyone,) = recorded_all
    assert plain["client_flops_total"] == pytest.approx(everyone.train["flops"].sum())
    records, seen = recorded_some
    of_rounds = []
    for metrics in seen:
        present = (metrics.train["away"] + metrics.train["lost"]) == 0
        assert 0 < present.sum() < present.size
        of_rounds.append(np.where(present, metrics.train["flops"], 0).sum(1))
    totals = [record["client_flops_total"] for record in records]
    np.testing.assert_allclose(totals, np.cumsum(np.sum(of_rounds, axis=1)))
    last = [9 * record["client_flops"] for record in records]
    np.testing.assert_allclose(last, [flops[-1] for flops in of_rounds])


def test_servers_that_train_take_time():
    task = cases.task()
    algorithm = fm.ecofed(fm.models.mlp(task, hidden=(8,)), SGD, batch_size=4)
    simulation = make_simulation(
        algorithm,
        task,
        cohort=9,
        chunk=2,
        plan="scan",
        population=Population(fleet(), DEVICES["server"]._replace(flops=100.0)),
    )
    _, (metrics,) = simulation.run(simulation.init(), 0, 2)
    steps = -(-task.train.sizes // 4)
    np.testing.assert_allclose(metrics.server["flops"][0], steps.sum() * 2 * 4 * 8 * 3 * 2)
    # In a round of replays nobody sends anything, and only the server works.
    np.testing.assert_allclose(metrics.server["seconds"][1], metrics.server["flops"][1] / 100, rtol=1e-6)
    assert metrics.server["seconds"][0] > metrics.server["flops"][0] / 100
    assert jnp.isfinite(metrics.server["joules"]).all()


def test_records_hold_the_shares_of_a_cohort_that_were_away_late_or_lost(algorithm, recorded_some):
    rates = fleet(up=1e6, down=1e6, flops=1e9, memory=1e9)
    nobody = Population(rates, available=1e-9, dropout=0.3, deadline=1e-3)
    for available, (records, seen) in ((0.5, recorded_some), (0, recorded(algorithm, nobody))):
        for record, metrics in zip(records, seen, strict=True):
            extra = record["extra"]
            for name in ("away", "late", "lost", "client_seconds", "client_joules"):
                assert extra[name] == pytest.approx(metrics.train[name][-1].sum() / 9)
            assert 0 < extra["away"] < 1 if available else extra["away"] == 1
            dropped = metrics.dropped[-1].sum() / 9
            assert extra["away"] + extra["late"] + extra["lost"] == pytest.approx(dropped)


def test_a_spread_beyond_all_floats_is_refused():
    with pytest.raises(UserError, match=r"spread=1000"):
        make_population("rpi4@wifi,spread=1000", 4)
