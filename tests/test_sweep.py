import contextlib
import csv
import inspect
import io
import json
import re

import jax
import numpy as np
import optax
import pytest
from handwritten import COHORT, make_run

import fedjax_masks as fm
from fedjax_masks.analysis import canvas
from fedjax_masks.analysis.loading import load_runs
from fedjax_masks.analysis.table import comparison_table
from fedjax_masks.cli import main
from fedjax_masks.core.errors import UserError
from fedjax_masks.data import synthetic_task
from fedjax_masks.experiment import checkpoint, execution, grid, sweep, sweep_table
from fedjax_masks.experiment.grid import read_sweep
from fedjax_masks.experiment.groups import group_jobs
from fedjax_masks.experiment.sweep import run_sweep
from fedjax_masks.experiment.sweep_table import seed_statistics, write_table
from fedjax_masks.simulation import can_trace, make_simulation

BASE = """
rounds = 3
cohort = 2
eval_every = 2
checkpoint_share = 1.0
plan = "scan"
data = { clients = 6, partition = "shards:2", examples_per_client = 20 }
model = { name = "mlp", hidden = [4] }
training.epochs = 1
"""
SMALL = BASE + 'algorithm = "fedavg"\n[grid]\nseed = [0, 1]\nalgorithm.lr = [0.1, 0.03]\n'
DIAGONAL = (
    BASE
    + 'algorithm = "fedavg"\n'
    + "".join(
        f"[[runs]]\ngrid.seed = [{seed}]\ngrid.algorithm.lr = [{lr}]\n" for seed, lr in ((0, 0.1), (1, 0.03))
    )
)
"""Two runs of it that differ in all."""

# Names that would lie outside the sweep, hide, or be none.
UNSAFE = ["a/b", "/a", ".", "..", ".a", "", " "]
RESERVED = ["runs.csv", "sweep.json", "sweep.json.partial"]


class Killed(BaseException):
    """Stands for the process's sudden end."""


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "sweep.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="module", autouse=True)
def compile_once():
    """Equal groups of runs share their program, as a killed sweep and the one that goes on."""
    made = {}

    def remembered(make, task, **options):
        config = inspect.getclosurevars(make).nonlocals["config"]
        key = f"{config} {sorted(options.items())}"
        if key not in made:
            made[key] = make_simulation(make, task, **options)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "make_simulation", remembered)
        yield


@pytest.fixture(scope="module", autouse=True)
def empty_figures():
    def touch(draw, path):
        path.parent.mkdir(exist_ok=True)
        path.touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "save_figure", touch)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.toml").write_text(SMALL)
    return run_sweep(folder / "sweep.toml", folder / "out", quiet=True), folder / "out"


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    """Two of the runs in programs of their own, as together they found no room; and what was said of it."""

    def refuse(*args, **options):
        raise MemoryError("too much")

    folder, said = tmp_path_factory.mktemp("one-by-one"), io.StringIO()
    (folder / "sweep.toml").write_text(DIAGONAL)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(sweep, "make_simulation", refuse)
        jobs = run_sweep(folder / "sweep.toml", folder / "out")
    return jobs, folder / "out", said.getvalue()


def read(out, name):
    return json.loads((out / name).read_text())


def without_time(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "wall_seconds"} for line in lines]


def assert_close(left, right):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.fixture(scope="module")
def task():
    return synthetic_task((6,), 3, sizes=[12, 7, 20, 12, 5])


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["scan", "vmap", "blocks:2", "scan,mesh:1"])
@pytest.mark.parametrize("personal", [False, True])
def test_runs_in_step_give_what_they_give_alone(task, plan, personal):
    factory = fm.local if personal else fm.fedavg
    model = fm.models.mlp(task, hidden=(4,))
    make = lambda options: factory(model, optax.sgd(options["lr"]))
    rates, seeds = [0.1, 0.01, 0.3], [0, 5, 2**32 - 1]
    batch = make_simulation(make, task, values={"lr": rates}, seeds=seeds, cohort=3, chunk=4, plan=plan)
    state, metrics = batch.run(batch.init(), 0, 3)
    evaluations = batch.evaluate(state)
    assert batch.stats().num_compilations == 1
    for run, (rate, seed) in enumerate(zip(rates, seeds)):
        one = make_simulation(make({"lr": rate}), task, cohort=3, seeds=(seed,), chunk=4, plan=plan)
        alone, (own,) = one.run(one.init(), 0, 3)
        assert_close(batch.take(state, run), alone)
        assert_close(metrics[run], own)
        assert_close(evaluations[run].personal, one.evaluate(alone)[0].personal)
        assert (evaluations[run].global_accuracy is None) == personal


def test_runs_go_on_from_given_states(task):
    make = lambda options: fm.fedavg(fm.models.mlp(task, hidden=(4,)), optax.sgd(options["lr"]))
    batch = make_simulation(
        make, task, values={"lr": [0.1, 0.2, 0.3]}, seeds=[0, 0, 1], cohort=3, plan="scan"
    )
    half, _ = batch.run(batch.init(), 0, 2)
    states = [batch.take(half, run) for run in range(3)]
    whole, _ = batch.run(batch.init(), 0, 5)
    again, _ = batch.run(batch.stack(states), 2, 3)
    for run in range(3):
        assert_close(batch.take(again, run), batch.take(whole, run))


def test_only_options_that_the_algorithm_does_not_look_at_are_traced(task):
    model = fm.models.mlp(task, hidden=(4,))

    def make(options):
        if options.get("momentum", 0.0) > 0.5:
            raise AssertionError("traced values cannot be compared")
        return fm.fedavg(model, optax.sgd(options.get("lr", 0.1)))

    assert can_trace(make, task, ["lr"], cohort=2)
    assert not can_trace(make, task, ["momentum"], cohort=2)
    assert not can_trace(make, task, ["lr", "momentum"], cohort=2)


def test_a_grid_is_multiplied_out_and_tables_are_merged_over_it(file):
    tables = '[[runs]]\nname = "low"\nalgorithm.lr = 0.01\n[[runs]]\nalgorithm.name = "local"\n'
    jobs = read_sweep(file(SMALL + tables))
    lr = [job.config.algorithm.options["lr"] for job in jobs]
    assert lr == [0.01, 0.01, 0.1, 0.03, 0.1, 0.03]
    assert [job.config.seed for job in jobs] == [0, 1, 0, 0, 1, 1]
    assert [job.config.algorithm.name for job in jobs] == ["fedavg"] * 2 + ["local"] * 4
    assert [job.name for job in jobs][:3] == ["low,seed=0", "low,seed=1", "local,lr=0.1,seed=0"]
    assert jobs[2].setting == jobs[4].setting == "local,lr=0.1"
    assert all(job.config.model.options["hidden"] == (4,) for job in jobs)


@pytest.mark.parametrize(
    ("grid", "names", "setting"),
    [
        ("data.seed = [0, 1]", ["fedavg,data.seed=0", "fedavg,data.seed=1"], "fedavg"),
        (
            "seed = [0]\nalgorithm.lr = [0.1]\ndata.seed = [0, 1]",
            ["fedavg,lr=0.1,seed=0,data.seed=0", "fedavg,lr=0.1,seed=0,data.seed=1"],
            "fedavg,lr=0.1",
        ),
        (
            "algorithm.lr = [0.1]\nserver_optimizer.lr = [1.0]\nattack.seed = [3]",
            ["fedavg,algorithm.lr=0.1,server_optimizer.lr=1.0,attack.seed=3"],
            "fedavg,algorithm.lr=0.1,server_optimizer.lr=1.0",
        ),
    ],
)
def test_runs_over_any_seed_are_one_setting(file, grid, names, setting):
    server = 'server_optimizer.name = "sgd"'
    jobs = read_sweep(file(f'{BASE}algorithm.name = "fedavg"\n{server}\n[grid]\n{grid}\n'))
    assert [job.name for job in jobs] == names
    assert {job.setting for job in jobs} == {setting}


def test_means_are_over_partition_seeds_too(file, tmp_path):
    jobs = read_sweep(file(f'{BASE}algorithm.name = "fedavg"\n[grid]\nseed = [0, 1]\ndata.seed = [0, 1]\n'))
    for number, job in enumerate(jobs):
        best = {"best_personal_accuracy_mean_seen": number / 10}
        make_run(tmp_path / "out" / job.name, summary=best)
    write_table(jobs, tmp_path / "out")
    found = read(tmp_path / "out", "sweep.json")["settings"]
    assert found["fedavg"]["seeds"] == 4
    assert found["fedavg"]["best_personal_accuracy_mean_seen"]["mean"] == pytest.approx(0.15)
    rows = list(csv.DictReader((tmp_path / "out" / "runs.csv").read_text().splitlines()))
    assert [(row["seed"], row["data.seed"]) for row in rows] == [(a, b) for a in "01" for b in "01"]
    assert rows[3]["best_personal_accuracy_mean_seen"] == "0.3"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[grid]\nalgorithm.lrr = [1.0]", ["algorithm.lrr", "algorithm.lr"]),
        ("[grid]\nseed = []", ["grid.seed=[]", "one or more"]),
        ("[grid]\nseed = 3", ["grid.seed=3", "a list"]),
        ('[grid]\nseed = [0, "many"]', ["seed=many", "an integer"]),
        ("[grid]\nalgorithm.lr = [0.1, -1.0]", ["algorithm.lr=-1.0", "above 0"]),
        ('[grid]\nalgorithm = ["fedavg", "fedmsk"]', ["fedmsk", "'fedmask'"]),
        ("[grid]\nseed = [1, 1]", ["fedavg,seed=1", "different names"]),
        ("[[runs]]\n[[runs]]", ["'fedavg'", "different names"]),
        *((f'[[runs]]\nname = "{name}"', [f"runs.name={name!r}", "letters"]) for name in UNSAFE),
        *((f'[[runs]]\nname = "{name}"', [f"runs.name={name!r}", "of a file"]) for name in RESERVED),
        (f'[[runs]]\nname = "{"a" * 256}"', ["runs.name=aaaa", "at most 255 bytes, has 256"]),
        (f'[[runs]]\nname = "{"ü" * 128}"', ["runs.name=üüüü", "at most 255 bytes, has 256"]),
        (f"[grid]\nmodel.hidden = [{list(range(100, 180))}]", ["runs.name=fedavg,hidden=", "255 bytes"]),
        ("[[runs]]\nrouns = 2", ["rouns", "rounds"]),
        ('grid = "seed"', ["grid='seed'", "[grid] table"]),
        ("runs = 3", ["runs", "[[runs]] tables"]),
        ('[[runs]]\n[[runs]]\nname = "b"\ndata.partition = "shard:2"', ["shard:2", "shards"]),
        ('[[runs]]\n[[runs]]\nname = "b"\nplan = "fast"', ["plan='fast'", "vmap"]),
        (
            '[[runs]]\n[[runs]]\nname = "b"\nalgorithm = { optimizer = "adam", momentum = 0.5 }',
            ["momentum=0.5"],
        ),
    ],
)
def test_a_wrong_file_is_one_line_before_anything_runs(file, tmp_path, capsys, text, words):
    path = file(f'{BASE}algorithm.name = "fedavg"\n{text}\n')
    assert main.main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    out, error = capsys.readouterr()
    assert (out, error[:7], error.count("\n")) == ("", "error: ", 1)
    assert all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shape", "runs"),
    [([[10_001]], 10_001), ([[5000], [5001]], 10_001), ([[10_000, 10_000], [1]], 10**8 + 1)],
)
def test_a_grid_of_too_many_runs_is_refused_before_it_is_multiplied_out(file, monkeypatch, shape, runs):
    monkeypatch.setattr(grid, "make_config", None)
    tables = ""
    for sizes in shape:
        axes = zip(("seed", "data.seed"), sizes)
        tables += "[[runs]]\n" + "".join(f"grid.{key} = {list(range(size))}\n" for key, size in axes)
    with pytest.raises(UserError, match=f"grid={runs} runs: must be at most 10000; shorten"):
        read_sweep(file(BASE + tables))


def test_runs_are_accepted_up_to_the_limit(file, monkeypatch):
    monkeypatch.setattr(grid, "MAX_RUNS", 6)
    tables = '[grid]\nseed = [0, 1, 2]\n[[runs]]\nname = "a"\n[[runs]]\nname = "b"\n'
    text = f'{BASE}algorithm.name = "fedavg"\n{tables}'
    assert len(read_sweep(file(text))) == 6
    with pytest.raises(UserError, match="grid=9 runs: must be at most 6"):
        read_sweep(file(text + "grid.algorithm.lr = [0.1, 0.2]\n"))


def test_groups_share_a_program_and_say_what_keeps_them_apart(file):
    text = BASE + (
        '[grid]\nseed = [0, 1]\n[[runs]]\nalgorithm.name = "fedprox"\ngrid.algorithm.lr = [0.2, 0.1]\n'
        '[[runs]]\nname = "heavy"\nalgorithm.name = "fedavg"\ngrid.algorithm.momentum = [0.5, 0.9]\n'
        '[[runs]]\nname = "timed"\nalgorithm.name = "fedavg"\ndevices = "rpi4@wifi"\n'
    )
    groups = group_jobs(read_sweep(file(text)))
    assert [len(group.jobs) for group in groups] == [4, 2, 2, 1, 1]
    assert groups[0].traced_keys == ["algorithm.lr"]
    assert "4 runs in one program, over seed and algorithm.lr" in str(groups[0])
    assert "algorithm.momentum: fedavg needs to know the value" in str(groups[1])


def test_every_run_is_what_it_is_alone(finished, one_by_one):
    (jobs, out), (alone_jobs, separate, _) = finished, one_by_one
    assert [job.name for job in jobs[:2]] == ["fedavg,lr=0.1,seed=0", "fedavg,lr=0.03,seed=0"]
    assert [job.name for job in alone_jobs] == [jobs[0].name, jobs[3].name]
    for job in alone_jobs:
        alone = separate / job.name
        ours, theirs = without_time(out / job.name), without_time(alone)
        assert [line["round"] for line in ours] == [2, 3]
        for one, other in zip(ours, theirs, strict=True):
            assert one.keys() == other.keys()
            assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
            assert one["global_accuracy"] == pytest.approx(other["global_accuracy"], abs=1e-5)
            assert one["bytes_up_total"] == other["bytes_up_total"]
        assert {path.name for path in (out / job.name).iterdir()} == {path.name for path in alone.iterdir()}
        assert read(out / job.name, "summary.json").keys() == read(alone, "summary.json").keys()
        assert read(out / job.name, "config.json").keys() == read(alone, "config.json").keys()
        assert read(out / job.name, "summary.json")["num_compilations"] == 1
    losses = {without_time(out / job.name)[-1]["train_loss"] for job in jobs}
    assert len(losses) == len(jobs)


def test_the_table_has_a_row_for_each_run_and_figures_over_seeds(finished):
    jobs, out = finished
    rows = list(csv.DictReader((out / "runs.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == [job.name for job in jobs]
    accuracies = [float(row["global_accuracy"]) for row in rows if row["setting"] == "fedavg,lr=0.03"]
    found = read(out, "sweep.json")
    figure = found["settings"]["fedavg,lr=0.03"]["global_accuracy"]
    assert figure["mean"] == pytest.approx(sum(accuracies) / 2)
    # Student's t with one degree of freedom: 12.706; the deviation of two is half their distance.
    assert figure["half_width"] == pytest.approx(12.706 * abs(accuracies[0] - accuracies[1]) / 2, rel=1e-4)
    assert all(found["runs"].values())


def test_flops_are_means_over_rounds_as_on_the_page(file, tmp_path):
    jobs = read_sweep(file(f'{BASE}algorithm.name = "ecofed"\n[grid]\nseed = [0, 1]\n'))
    for job, flops in zip(jobs, (3e9, 5e9)):
        # A run's figure is the mean over rounds and clients, not the last round's.
        last = {"round": 20, "client_flops": flops / COHORT, "client_flops_total": 20 * flops}
        make_run(tmp_path / "out" / job.name, seed=job.config.seed, spent={"client_flops_total": flops})
        (tmp_path / "out" / job.name / "summary.json").write_text(json.dumps(last))
    write_table(jobs, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "runs.csv").read_text().splitlines()))
    assert [float(row["client_flops"]) for row in rows] == [3e9 / COHORT, 5e9 / COHORT]
    table = comparison_table(load_runs([tmp_path / "out"]))
    assert [row["client_gflops"] for row in table] == [3 / COHORT, 5 / COHORT]
    (setting,) = read(tmp_path / "out", "sweep.json")["settings"].values()
    assert setting["client_flops"]["mean"] == 4e9 / COHORT


def test_figures_that_do_not_apply_are_left_out():
    rows = [dict.fromkeys(sweep_table._FIGURES) | {"round": 3}] * 2
    found = seed_statistics(rows)
    assert (found["seeds"], found["global_accuracy"]) == (2, None)
    assert found["round"] == {"mean": 3, "half_width": 0}


def test_a_killed_sweep_resumes_together_and_skips_what_has_finished(file, tmp_path, monkeypatch, finished):
    _, whole = finished
    path, out = file(SMALL), tmp_path / "out"
    write, made = execution._write_results, []

    def dying(directory, run):
        write(directory, run)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(execution, "_write_results", dying)
        with pytest.raises(Killed):
            run_sweep(path, out, quiet=True)
    with pytest.raises(UserError, match="--resume"):
        run_sweep(path, out, quiet=True)
    before = {file: file.stat().st_mtime_ns for file in (out / "fedavg,lr=0.1,seed=0").rglob("*")}

    def counted(*args, **options):
        made.append(len(options["seeds"]))
        return make_simulation(*args, **options)

    monkeypatch.setattr(sweep, "make_simulation", counted)
    jobs = run_sweep(path, out, resume=True, quiet=True)
    assert made == [3]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert all(without_time(out / job.name) == without_time(whole / job.name) for job in jobs)
    run_sweep(path, out, resume=True, quiet=True)
    assert made == [3]


@pytest.mark.parametrize(
    "moment", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(6, marks=pytest.mark.slow)]
)
def test_a_sweep_killed_between_checkpoints_resumes_to_the_same_result(
    file, tmp_path, monkeypatch, finished, moment
):
    _, whole = finished
    path, out = file(SMALL), tmp_path / "out"
    save, calls = checkpoint.save, []

    def dying(*args, **options):
        calls.append(args)
        if len(calls) == moment:
            raise Killed
        save(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", dying)
        with pytest.raises(Killed):
            run_sweep(path, out, quiet=True)
    for job in run_sweep(path, out, resume=True, quiet=True):
        ours, theirs = without_time(out / job.name), without_time(whole / job.name)
        assert [line["round"] for line in ours] == [2, 3]
        assert ours[-1]["train_loss"] == pytest.approx(theirs[-1]["train_loss"], abs=1e-5)


def test_what_does_not_fit_into_memory_together_runs_one_after_the_other(finished, one_by_one):
    (_, whole), (jobs, separate, said) = finished, one_by_one
    assert "one run after the other; too much" in said
    for job in jobs:
        loss = without_time(whole / job.name)[-1]["train_loss"]
        assert without_time(separate / job.name)[-1]["train_loss"] == pytest.approx(loss, abs=1e-5)


def test_the_command_prints_the_plan_and_the_table(file, tmp_path, capsys):
    text = SMALL.replace("[0.1, 0.03]", "[0.1]")
    assert main.main(["sweep", str(file(text)), "--out", str(tmp_path / "out")]) == 0
    out, error = capsys.readouterr()
    assert "plan: fedavg,lr=0.1: 2 runs in one program, over seed" in error
    assert "±" in out
    assert "fedavg,lr=0.1" in out
    (tmp_path / "file").write_text("")
    assert main.main(["sweep", str(file(text)), "--out", str(tmp_path / "file")]) == 2


def test_the_table_keeps_numbers_whole_on_a_narrow_terminal(finished, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "70")
    sweep_table.print_sweep(finished[1])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.startswith(" fedavg")]
    assert len(rows) == 2
    for row in rows:  # accuracies with an interval each, bytes up and down, seeds
        assert [word == "±" for word in row[-9:]] == [False, True, False] * 2 + [False] * 3
        assert row[-1] == "2"
    assert len(re.findall(r"seen \d+( ± \d+)? of 6; all: ", " ".join(" ".join(lines).split()))) == 2
