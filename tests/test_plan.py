import sys
from types import SimpleNamespace

import cases
import jax
import numpy as np
import pytest

import fedjax_masks as fm
from fedjax_masks.core import target
from fedjax_masks.core.errors import UserError
from fedjax_masks.simulation import make_simulation, memory
from fedjax_masks.simulation.cohorts import draw_cohort, lay_out_rounds, select_cohorts
from fedjax_masks.simulation.memory import _group_bytes, _host_bytes, fit_plan
from fedjax_masks.simulation.plan import Plan, parse_plan


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("auto", "scan,mesh:8"),
        ("auto,mesh:2", "scan,mesh:2"),
        ("scan", "scan"),
        ("vmap", "blocks:10"),
        ("vmap,mesh:4", "blocks:3,mesh:4"),
        ("blocks:4", "blocks:4"),
        ("blocks:40,mesh:2", "blocks:10,mesh:2"),
    ],
)
def test_plans_are_read_as_written(text, want):
    assert jax.device_count() == 8
    assert str(parse_plan(text, cohort=10)) == want


@pytest.mark.parametrize("text", ["", "blocks", "blocks:0", "blocks:x", "rows", "scan,mesh:0", "auto,mesh:9"])
def test_other_plans_are_refused_by_name(text):
    with pytest.raises(ValueError, match="plan="):
        parse_plan(text, cohort=10)


def test_what_does_not_fit_gets_smaller_blocks_and_then_fewer_devices():
    tried = []

    def compile_for(plan):
        tried.append((plan.block, plan.devices))
        size = plan.block * 10
        return SimpleNamespace(
            memory_analysis=lambda: SimpleNamespace(
                argument_size_in_bytes=size,
                output_size_in_bytes=0,
                alias_size_in_bytes=0,
                temp_size_in_bytes=0,
            )
        )

    _, plan, need = fit_plan(compile_for, Plan(4, 2), available=15)
    assert tried == [(4, 2), (2, 2), (1, 2), (1, 1)]
    assert (plan.block, plan.devices, need) == (1, 1, 10)
    with pytest.raises(MemoryError, match="GB are free, and clients already run one at a time"):
        fit_plan(compile_for, Plan(1), available=5)


def test_a_compiler_that_refuses_a_program_for_want_of_memory_gets_smaller_ones():
    def compile_for(plan):
        if plan.block > limit:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 21.7G of 15.75G hbm")
        return SimpleNamespace(memory_analysis=lambda: None)

    limit = 2
    _, plan, _ = fit_plan(compile_for, Plan(8), available=None)
    assert plan.block == 2
    assert plan.reason == "blocks:4 needs more memory than the chip has, as its compiler says"
    limit = 0
    with pytest.raises(
        MemoryError, match="more memory than the chip has, as its compiler says, and clients already run one"
    ):
        fit_plan(compile_for, Plan(8))

    def fail(plan):
        raise jax.errors.JaxRuntimeError("INTERNAL: another fault")

    with pytest.raises(jax.errors.JaxRuntimeError, match="another fault"):
        fit_plan(fail, Plan(8))


@pytest.mark.parametrize(
    ("stats", "free"), [({"bytes_limit": 9, "bytes_in_use": 2}, 7), (None, None), ({}, None)]
)
def test_free_memory_of_an_accelerator(stats, free, monkeypatch):
    device = SimpleNamespace(platform="tpu", memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert memory.available_bytes() == free


def test_memory_of_a_chip_that_is_not_there():
    with target.making_for(target.Target("gpu", memory=5)):
        assert memory.available_bytes() == 5


@pytest.mark.parametrize(
    ("line", "folder", "limit", "usage", "cache"),
    [
        ("0::/job/step", "job", "max", "current", "inactive_file"),
        ("4:cpu,memory:/job", "memory/job", "limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_control_group_limits_memory(tmp_path, line, folder, limit, usage, cache):
    group = tmp_path / folder
    (group / "step").mkdir(parents=True)
    (group / f"memory.{limit}").write_text("1000\n")
    (group / f"memory.{usage}").write_text("300\n")
    (group / "memory.stat").write_text(f"anon 50\n{cache} 200\n")
    (group / "step" / f"memory.{limit}").write_text("max\n")
    (tmp_path / "own").write_text(f"{line}\n1:freezer:/job\n")
    assert list(_group_bytes(tmp_path / "own", tmp_path)) == [900]
    assert list(_group_bytes(tmp_path / "absent", tmp_path)) == []


def test_memory_has_no_limit_where_the_system_names_none(tmp_path, monkeypatch):
    monkeypatch.delattr("os.sysconf")  # as on Windows
    monkeypatch.setattr("fedjax_masks.simulation.memory.Path", lambda path: tmp_path / "absent")
    assert _host_bytes() == sys.maxsize


def test_cohorts_are_distinct_clients_drawn_by_seed_and_round():
    draws = {(seed, index): draw_cohort(seed, index, 50, 20) for seed in (0, 1) for index in range(4)}
    assert all(len(set(ids.tolist())) == 20 for ids in draws.values())
    assert len({tuple(ids) for ids in draws.values()}) == len(draws)
    np.testing.assert_array_equal(draws[0, 3], draw_cohort(0, 3, 50, 20))


def test_every_client_is_drawn_equally_often():
    counts = np.bincount(np.concatenate([draw_cohort(0, index, 20, 5) for index in range(2000)]))
    # 500 expected; a standard deviation is 19.4.
    assert np.abs(counts - 500).max() < 5 * 19.4


def test_an_algorithm_selects_its_cohorts():
    task, some = cases.task(), np.array([1, 2, 4, 6, 7, 8])
    select = lambda index, draw: draw(index) if index < 3 else draw(index, some)
    algorithm = cases.algorithm("fedavg")._replace(schedule=fm.Schedule(select))
    cohorts = select_cohorts(range(8), 0, 5, task.num_clients, algorithm)
    ids = lay_out_rounds(cohorts, task, algorithm, Plan(1)).ids
    for index in range(3):
        assert set(ids[index]) == set(draw_cohort(0, index, task.num_clients, 5))
    assert all(len(set(row)) == 5 and set(row) <= set(some) for row in ids[3:].tolist())
    assert len({frozenset(row) for row in ids[3:].tolist()}) > 1


def test_a_selection_that_goes_by_what_has_happened_is_refused():
    """It is asked for a round before the one before has ended, and would go by older losses."""
    losses, task = np.zeros(9), cases.task()

    def highest_losses(index, draw):
        return np.argsort(-losses, kind="stable")[:5]

    def note(chunk):
        losses[chunk.metrics.ids[-1]] = chunk.metrics.train["loss"][-1]

    algorithm = cases.algorithm("fedavg")._replace(schedule=fm.Schedule(highest_losses))
    with pytest.raises(
        UserError, match=r"select=.*highest_losses: must depend on its arguments alone.*round 1 "
    ):
        fm.simulate(algorithm, task, rounds=4, cohort=5, eval_every=1, on_chunk=[note])
    batch = make_simulation(
        lambda _: algorithm, task, values={}, seeds=[0, 1], cohort=5, chunk=1, plan="scan"
    )
    state, _ = batch.run(batch.init(), 0, 1)
    losses[:] = np.arange(9)
    with pytest.raises(UserError, match=r"must depend on its arguments alone.*round 1 "):
        batch.run(state, 1, 1)


def test_a_selection_that_throws_dice_is_refused_in_its_first_round():
    dice = np.random.default_rng(0)
    algorithm = cases.algorithm("fedavg")._replace(
        schedule=fm.Schedule(lambda index, draw: dice.permutation(9)[:5])
    )
    simulation = make_simulation(algorithm, cases.task(), cohort=5, chunk=2, plan="scan")
    with pytest.raises(UserError, match=r"select=.*: must depend on its arguments alone.*round 0 "):
        simulation.run(simulation.init(), 0, 2)


@pytest.mark.parametrize(
    "ids",
    [
        [1, 2, 3, 4],
        [1, 2, 3, 4, 4],
        [0, 1, 2, 3, 9],
        [-1, 0, 1, 2, 3],
        [[0, 1, 2, 3, 4]],
        [0.5, 1, 2, 3, 4],
        [[0], [1, 2], 3, 4, 5],
        "01234",
        None,
    ],
)
def test_a_selection_is_a_cohort_of_distinct_clients(ids):
    algorithm = cases.algorithm("fedavg")._replace(schedule=fm.Schedule(lambda index, draw: ids))
    with pytest.raises(
        UserError, match=r"^select=.*lambda.*: must return 5 distinct clients, the cohort, of 9.*in round 3"
    ):
        select_cohorts(range(3, 5), 0, 5, 9, algorithm)


@pytest.mark.parametrize(
    "draws",
    [(3, [1, 2]), (3, [1, 2, 3, 4, 4]), (3, [0.5, 1, 2, 3, 4]), (3, 9), (3, np.ones(9, bool)), (-1,), (1.5,)],
)
def test_a_draw_is_for_a_round_among_enough_clients(draws):
    algorithm = cases.algorithm("fedavg")._replace(schedule=fm.Schedule(lambda index, draw: draw(*draws)))
    with pytest.raises(
        UserError, match=r"^select=.*lambda.*: must draw (for a round|from 5 distinct clients)"
    ):
        select_cohorts(range(3, 5), 0, 5, 9, algorithm)
