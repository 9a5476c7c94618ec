"""Clients' states in a file on the host: nothing is lost, nothing is kept that nobody needs."""

import json
import os
import shutil
from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from remembered import without_rounds

import fedjax_masks as fm
from fedjax_masks.analysis import canvas
from fedjax_masks.core.errors import UserError
from fedjax_masks.experiment.config import make_config
from fedjax_masks.experiment.experiment import run_experiment
from fedjax_masks.simulation import Storage, Store, make_simulation, state_storage
from fedjax_masks.simulation.data_storage import choose_data_storage
from fedjax_masks.simulation.states import packing_of

ROW = 5
CLIENTS = 6


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (9,), (3, 4)])
def test_a_packed_row_comes_back(dtype, shape):
    values = np.random.default_rng(0).normal(size=shape) * 100
    client = {"a": jnp.asarray(values > 0), "b": [jnp.asarray(values).astype(dtype), ()]}
    packing = packing_of(client)
    row = jax.jit(packing.pack)(client)
    assert (row.dtype, row.shape) == (jnp.uint8, (packing.num_bytes,))
    back = jax.jit(packing.unpack)(row)
    assert jax.tree.structure(back) == jax.tree.structure(client)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(client)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_bit_takes_a_bit():
    assert packing_of({"mask": jnp.ones((10, 13), bool), "scale": jnp.ones(2)}).num_bytes == 17 + 8


class Reference:
    """A store, and beside it dictionaries that remember every row and every checkpoint."""

    def __init__(self, checkpoints, path=None):
        self.store = Store(ROW, path, checkpoints=checkpoints)
        self.keep = checkpoints
        self.index = np.full(CLIENTS, -1, np.int32)
        self.rows, self.saved = {}, []

    def write(self, ids, fill):
        rows = np.add.outer(np.asarray(ids), np.arange(ROW)).astype(np.uint8) + np.uint8(fill)
        index = self.index.copy()
        index[ids] = self.store.write(rows, index[ids])
        self.index = index
        self.rows = {**self.rows, **dict(zip(ids, rows))}

    def save(self):
        self.store.mark()
        self.saved = [*self.saved, (self.index, self.rows)][-self.keep :]

    def go_back(self):
        if self.saved:
            self.index, self.rows = self.saved[-1]
            self.store.adopt(self.index)

    def check(self):
        for index, rows in [*self.saved, (self.index, self.rows)]:
            ids = np.array(sorted(rows), int)
            assert sorted(rows) == np.flatnonzero(index >= 0).tolist()
            np.testing.assert_array_equal(
                self.store.read(index[ids]), [rows[i] for i in ids] or np.empty((0, ROW))
            )


steps = st.lists(
    st.one_of(
        st.sets(st.integers(0, CLIENTS - 1), min_size=1).map(sorted), st.just("save"), st.just("go back")
    ),
    max_size=20,
)


@settings(deadline=None)
@given(steps=steps, checkpoints=st.integers(1, 3))
def test_every_kept_checkpoint_finds_its_rows(steps, checkpoints):
    reference = Reference(checkpoints)
    for number, step in enumerate(steps):
        if step == "save":
            reference.save()
        elif step == "go back":
            reference.go_back()
        else:
            reference.write(step, number)
        reference.check()


def test_the_file_holds_what_visited_clients_need(tmp_path):
    path = tmp_path / "rows"
    reference = Reference(1, path)
    for number in range(20):  # without checkpoints every row is written in its place
        reference.write([1, 3], number)
    assert path.stat().st_size == reference.store.file_bytes == 2 * (ROW + 4)
    for number in range(20):  # with them, once more for what changes between two
        reference.save()
        reference.write([3], number)
    assert path.stat().st_size == reference.store.file_bytes == 3 * (ROW + 4)


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_row_is_noticed(tmp_path, damage):
    path = tmp_path / "rows"
    reference = Reference(1, path)
    reference.write([0, 1, 2], 7)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(OSError, match=r"rows: the state in slot 2 is damaged"):
        reference.store.read(reference.index[[0, 1, 2]])


def fedmask():
    return cases.algorithm("fedmask-own"), cases.task()


def local():
    """Clients have states here, too, and less to compile."""
    return cases.algorithm("local"), cases.task()


def probed():
    """Local training whose models are evaluated a second time, as predictors of the opposite."""
    algorithm, task = local()
    predict = algorithm.predict["personal"]
    return algorithm._replace(predict={"personal": predict, "opposite": lambda *args: -predict(*args)}), task


@pytest.mark.parametrize(
    ("make", "plan"), [(probed, "scan"), pytest.param(fedmask, "blocks:2,mesh:2", marks=pytest.mark.slow)]
)
def test_evaluation_in_blocks_is_evaluation_at_once(make, plan):
    """On the host four clients at a time are evaluated."""
    found, algorithm_and_task = [], make()
    for where in ("device", "host"):
        simulation = make_simulation(
            *algorithm_and_task, cohort=2, chunk=2, plan=plan, storage=Storage(where, where)
        )
        state, _ = simulation.run(simulation.init(), 0, 2)
        found.append(simulation.evaluate(state)[0])
    device, host = found
    np.testing.assert_array_equal(host.ids, np.arange(9))
    np.testing.assert_array_equal(host.personal, device.personal)
    (name,) = device.probes
    np.testing.assert_array_equal(host.probes[name], device.probes[name])


def test_a_sample_of_clients_is_evaluated_as_all_are():
    algorithm, task = fedmask()
    options = {"cohort": 2, "chunk": 2, "plan": "scan"}
    with without_rounds():
        every, some = (make_simulation(algorithm, task, eval_clients=n, **options) for n in (None, 4))
    (everyone,), (sample,) = every.evaluate(every.init()), some.evaluate(some.init())
    assert len(set(sample.ids.tolist())) == 4
    np.testing.assert_array_equal(sample.personal, everyone.personal[sample.ids])
    with pytest.raises(ValueError, match="eval_clients=10: must be from 1 to 9"):
        make_simulation(algorithm, task, cohort=2, eval_clients=10)


@pytest.mark.parametrize(
    ("size", "clients", "devices", "where"),
    [
        (50, 9, 1, "device"),
        (51, 9, 1, "host"),
        (50, 9, 3, "mesh"),  # three copies would not fit
        (50, 8, 3, "host"),  # and eight clients do not divide
        (51, 9, 3, "host"),
    ],
)
def test_the_place_is_the_first_that_has_room(monkeypatch, size, clients, devices, where):
    monkeypatch.setattr("fedjax_masks.simulation.state_storage.available_bytes", lambda: 100)
    assert state_storage._first_fit(size, clients, devices) == where
    monkeypatch.setattr("fedjax_masks.simulation.state_storage.available_bytes", lambda: None)
    assert state_storage._first_fit(size, clients, devices) == "device"


@pytest.mark.parametrize(("cohort", "split"), [(5, True), pytest.param(4, False, marks=pytest.mark.slow)])
def test_each_device_may_have_its_part_of_the_states(cohort, split):
    """Nine clients on three devices; on four, all have all."""
    algorithm, task = local()
    plan = f"scan,mesh:{3 if split else 4}"
    found = []
    for where in ("device", "mesh"):
        simulation = make_simulation(
            algorithm, task, cohort=cohort, chunk=2, plan=plan, storage=Storage(where)
        )
        state, (metrics,) = simulation.run(simulation.init(), 0, 2)
        found.append((jax.device_get(state), metrics, simulation.evaluate(state)[0]))
        for leaf in jax.tree.leaves(state.clients):
            rows = leaf.addressable_shards[0].data.shape[0]
            assert rows == (3 if where == "mesh" and split else 9)
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_program_runs_as_many_rounds_as_the_rows_of_their_cohorts_have_room(monkeypatch):
    """EcoFed's server keeps activations of each client; one half of the free memory is for them."""
    algorithm, task = cases.algorithm("ecofed"), cases.task()

    def four_rounds(where):
        simulation = make_simulation(
            algorithm, task, cohort=2, chunk=4, plan="scan,mesh:1", storage=Storage(where)
        )
        state, (metrics,) = simulation.run(simulation.init(), 0, 4)
        return simulation, (state.server, metrics)

    _, expected = four_rounds("device")
    simulation, at_once = four_rounds("host")
    row_bytes = simulation.store.state_bytes
    asked = []
    monkeypatch.setattr(
        "fedjax_masks.simulation.state_storage.available_bytes", lambda: asked.append(0) or 6 * row_bytes
    )
    simulation, one_by_one = four_rounds("auto")  # three of nine rows have room, two are a cohort's
    assert asked
    assert simulation.state_place == "host"
    for found in (at_once, one_by_one):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


@pytest.mark.parametrize("where", ["device", "mesh", "host"])
def test_the_place_that_fits_is_taken(monkeypatch, where):
    algorithm, task = local()
    monkeypatch.setattr("fedjax_masks.simulation.state_storage._first_fit", lambda *sizes: where)
    with without_rounds():
        assert make_simulation(algorithm, task, cohort=2, plan="scan").state_place == where
        # Clients of FedAvg have no states.
        assert make_simulation(cases.algorithm("fedavg"), task, cohort=2, plan="scan").store is None


def test_clients_that_do_not_start_alike_are_refused_where_all_of_them_would_not_fit(monkeypatch):
    algorithm, task = local()

    def init(key, task):
        state = algorithm.init(key, task)
        keys = jax.random.split(key, task.num_clients)
        each = jax.vmap(lambda key: jax.random.normal(key, (10_000,)))(keys)
        return state._replace(clients=(state.clients, jnp.cumsum(each, 0)))

    uneven = algorithm._replace(
        init=init,
        train=lambda round, message, client, data: (
            lambda own, upload, info: ((own, client[1]), upload, info)
        )(*algorithm.train(round, message, client[0], data)),
    )
    options = {"cohort": 1, "chunk": 1, "plan": "scan", "storage": Storage("host")}
    with without_rounds():
        assert make_simulation(uneven, task, **options).store is not None
    monkeypatch.setattr("fedjax_masks.simulation.state_storage.available_bytes", lambda: 300_000)
    with pytest.raises(MemoryError, match="an algorithm whose clients start alike"):
        make_simulation(uneven, task, **options)


CONFIG = {
    "algorithm.name": "lgfedavg",  # the server and the clients have states
    "model.name": "mlp",
    "model.hidden": (8,),
    "plan": "scan",
    "data.clients": 12,
    "cohort": 3,
    "rounds": 6,
    "eval_every": 2,
    "training.epochs": 1,
    "storage.clients": "host",
    "checkpoint_share": 1,
    "keep_checkpoints": 1,
}


class Killed(Exception):
    pass


@pytest.fixture(autouse=True, scope="module")
def no_figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "save_figure", lambda *args: None)
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return run_experiment(make_config(CONFIG), out, quiet=True)


def without_time(records):
    return [{**record, "wall_seconds": None} for record in records]


@pytest.mark.parametrize(
    "where",
    [pytest.param("sync", marks=pytest.mark.slow), pytest.param("mark", marks=pytest.mark.slow), "write"],
)
def test_a_run_killed_around_its_rows_resumes_to_the_same_result(tmp_path, monkeypatch, uninterrupted, where):
    out, calls = tmp_path / "run", iter(range(10))
    original = getattr(Store, where)

    def dies(self, *args):
        result = original(self, *args)
        if next(calls) == 1:
            raise Killed
        return result

    monkeypatch.setattr(Store, where, dies)
    with pytest.raises(Killed):
        run_experiment(make_config(CONFIG), out, quiet=True)
    monkeypatch.setattr(Store, where, original)
    run = run_experiment(make_config(CONFIG), out, resume=True, quiet=True)
    assert without_time(run.records) == without_time(uninterrupted.records)
    np.testing.assert_array_equal(run.evaluation.personal, uninterrupted.evaluation.personal)
    assert json.loads((out / "config.json").read_text())["chosen_storage"] == "host"


def test_the_run_says_what_a_run_on_the_device_says(tmp_path, uninterrupted):
    on_device = run_experiment(
        make_config(CONFIG | {"storage.clients": "device"}), tmp_path / "run", quiet=True
    )
    assert without_time(on_device.records) == without_time(uninterrupted.records)
    assert on_device.summary["client_accuracy"] == uninterrupted.summary["client_accuracy"]


def test_rows_that_are_gone_are_named(tmp_path, uninterrupted):
    out = tmp_path / "run"
    shutil.copytree(uninterrupted.directory, out)
    (out / "summary.json").unlink()
    os.truncate(out / "clients.rows", 10)
    with pytest.raises(UserError, match=r"clients\.rows: the state in slot \d+ is damaged"):
        run_experiment(make_config(CONFIG), out, resume=True, quiet=True)


@pytest.mark.parametrize("plan", [pytest.param("scan", marks=pytest.mark.slow), "blocks:2,mesh:2"])
def test_data_that_come_chunk_by_chunk_are_the_same_data(plan):
    task, algorithm = cases.task(), cases.algorithm("fedavg")
    found = []
    for where in ("device", "host"):
        simulation = make_simulation(
            algorithm, task, cohort=2, chunk=2, plan=plan, storage=Storage(data=where)
        )
        state = simulation.init()
        for first, number in ((0, 2), (2, 1), (3, 2)):  # the second is not what was prepared
            state, (metrics,) = simulation.run(state, first, number)
        found.append((jax.device_get(state), metrics))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_data_that_outgrow_memory_stay_on_the_host(monkeypatch):
    task = cases.task()
    put = lambda tree: tree
    choose = lambda limit: choose_data_storage(task, "auto", max_clients=limit, put=put)
    assert choose(1).shapes.inputs.shape[0] == len(task.labels)
    monkeypatch.setattr("fedjax_masks.simulation.data_storage.available_bytes", lambda: 1000)
    assert choose(1).shapes.inputs.shape[0] == task.train.sizes.max()
    all_at_once = choose(9)  # takes more room on the device, not less
    assert all_at_once.shapes.inputs.shape[0] == len(task.labels)


def test_a_library_user_asks_for_the_host():
    algorithm, task = local()
    options = {"rounds": 2, "cohort": 3, "plan": "scan", "eval_clients": 5}
    on_host, on_device = (
        fm.simulate(algorithm, task, storage=Storage(where, where), **options) for where in ("host", "device")
    )
    assert on_host.summary["client_ids"] == on_device.summary["client_ids"]
    assert on_host.summary["client_accuracy"] == on_device.summary["client_accuracy"]
