"""Resuming never deletes, and goes on only with what the run began with."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from remembered import compile_once

import fedjax_masks as fm
from fedjax_masks.analysis import canvas
from fedjax_masks.cli import main
from fedjax_masks.core.algorithm import State
from fedjax_masks.core.errors import UserError
from fedjax_masks.costs.devices import make_population
from fedjax_masks.data import synthetic_task
from fedjax_masks.experiment import build, checkpoint, experiment, lock, loop, run_directory
from fedjax_masks.experiment.config import make_config
from fedjax_masks.experiment.experiment import run_experiment
from fedjax_masks.simulation import make_simulation

STATE = State({"mean": jnp.zeros((3, 2)), "count": jnp.asarray(7, jnp.int32)}, (jnp.ones((4, 5)),))
VALUES = {
    "algorithm.name": "fedavg",
    "model.name": "mlp",
    "model.hidden": "4",
    "data.clients": "6",
    "cohort": "2",
    "rounds": "4",
    "eval_every": "1",
    "training.epochs": "1",
    "checkpoint_share": "1",
    "plan": "scan",
}


@pytest.fixture(scope="module", autouse=True)
def shared_programs():
    with compile_once():
        yield


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    monkeypatch.setattr(canvas, "save_figure", lambda *args: None)


def config_with(**values):
    return make_config(VALUES | values)


def tree(folder):
    """Every file below a folder with its content."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    run_experiment(config_with(), out, quiet=True)
    return out


@pytest.fixture
def out(whole, tmp_path):
    """A copy of a run that has checkpoints of rounds 2, 3 and 4, killed before its summary."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    return tmp_path / "run"


def without_time(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "wall_seconds"} for line in lines]


def seal(step):
    """Writes the checksums of a checkpoint's files anew."""
    sums = {name: zlib.crc32((step / name).read_bytes()) for name in ("arrays.npz", "checkpoint.json")}
    (step / "checksums.json").write_text(json.dumps(sums))


def refused(out, match, **values):
    """Resuming is refused in one line that matches, and changes nothing."""
    before = tree(out)
    with pytest.raises(UserError, match=match) as error:
        run_experiment(config_with(**values), out, resume=True, quiet=True)
    assert "\n" not in str(error.value)
    assert tree(out) == before


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({**STATE.server, "more": jnp.zeros(2)}, r"with server/more float32\[2\]; it holds no server/more"),
        ({"mean": STATE.server["mean"]}, "which has no server/count"),
        (
            {**STATE.server, "mean": jnp.zeros((2, 3))},
            r"server/mean float32\[2, 3\]; it holds server/mean float32\[3, 2\]",
        ),
        (
            {**STATE.server, "count": jnp.asarray(7.0)},
            r"server/count float32\[\]; it holds server/count int32\[\]",
        ),
        (
            {**STATE.server, "mean": np.zeros((3, 2), np.float64)},
            r"server/mean float64\[3, 2\]; it holds server/mean float32\[3, 2\]; set JAX_ENABLE_X64",
        ),
    ],
)
def test_a_state_that_has_been_edited_is_refused_by_its_first_difference(tmp_path, server, message):
    checkpoint.save(tmp_path, 70, STATE, {}, keep=3)
    before = tree(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        checkpoint.restore_latest(tmp_path, STATE._replace(server=server))
    assert "\n" not in str(error.value)
    assert tree(tmp_path) == before
    assert checkpoint.restore_latest(tmp_path, STATE) is not None  # the edit undone


@pytest.mark.parametrize(
    "name", ["a[q]", "back\\slash", "with space", "*", "é%20", "-dash", "a\nline", "#?&"]
)
def test_awkward_names_hold_checkpoints(tmp_path, name):
    checkpoint.save(tmp_path / name, 1, STATE, {}, keep=1)
    restored = checkpoint.restore_latest(tmp_path / name, STATE)
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored.state, STATE)


def test_typed_keys_survive(tmp_path):
    state = STATE._replace(server=jax.random.split(jax.random.key(3), 2))
    checkpoint.save(tmp_path, 1, state, {}, keep=1)
    restored = checkpoint.restore_latest(tmp_path, state)
    assert restored is not None
    assert jax.random.key_data(restored.state.server).tolist() == jax.random.key_data(state.server).tolist()


@pytest.mark.parametrize("victim", ["arrays.npz", "checkpoint.json", "checksums.json", "metrics.jsonl"])
def test_a_file_that_cannot_be_read_is_no_damage(out, monkeypatch, victim):
    """As where a network file system answers with EIO."""
    opened = io_open = open

    def failing(path, *args, **options):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).endswith(victim):
            raise OSError(5, "Input/output error")
        return opened(path, *args, **options)

    before = tree(out)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", failing)
        patch.setattr("io.open", failing)
        with pytest.raises(UserError, match="Input/output error") as error:
            run_experiment(config_with(), out, resume=True, quiet=True)
    assert "\n" not in str(error.value)
    assert tree(out) == before
    assert io_open is open


def test_a_damaged_checkpoint_is_renamed_and_all_damaged_ones_are_refused(out, whole):
    victim = out / "checkpoints" / "00000004" / "arrays.npz"
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run_experiment(config_with(), out, resume=True, quiet=True)
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["00000002", "00000003", "00000004", "00000004.damaged"]
    assert without_time(out) == without_time(whole)

    for path in out.glob("checkpoints/*/arrays.npz"):
        path.write_bytes(b"")
    refused(out, "must hold an undamaged one; all 3 are damaged")


def test_foreign_files_are_no_damage_and_stay(out, whole):
    """Network file systems and people put files beside ours."""
    checkpoints = out / "checkpoints"
    (checkpoints / "00000004" / ".nfs0001").write_text("")
    for name in ("mine.partial", "best.deleted", "²"):
        (checkpoints / name).mkdir()
    (checkpoints / "00000009").write_text("")
    before = {path.name for path in checkpoints.iterdir()}
    run_experiment(config_with(), out, resume=True, quiet=True)
    assert {path.name for path in checkpoints.iterdir()} == before
    assert without_time(out) == without_time(whole)
    checkpoint.save(checkpoints, 10, STATE, {}, keep=9)
    assert {path.name for path in checkpoints.iterdir()} == {*before, "00000010"}


@pytest.mark.parametrize("name", ["checkpoints", "metrics.jsonl", "log.txt", "summary.json"])
@pytest.mark.parametrize("kind", ["another", "dangling"])
def test_what_is_not_of_its_kind_is_refused_at_once(out, name, kind):
    """As where a file system is not mounted."""
    path = out / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "dangling":
        path.symlink_to("nowhere")
    elif name == "checkpoints":
        path.write_text("")
    else:
        path.mkdir()
    refused(out, rf"out=.*{name}.*: must be a (file|directory)")


def test_a_run_that_is_moved_away_is_not_continued_where_it_was(tmp_path, monkeypatch):
    out, save = tmp_path / "run", checkpoint.save

    def moving(*args, **options):
        if out.exists():
            out.rename(tmp_path / "moved")
        save(*args, **options)

    monkeypatch.setattr(checkpoint, "save", moving)
    with pytest.raises(UserError, match="out="):
        run_experiment(config_with(), out, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


@pytest.mark.parametrize("kind", ["dangling", "link", "pipe", "directory"])
def test_a_foreign_lock_file_is_refused_and_stays(tmp_path, kind):
    out, target = tmp_path / "run", tmp_path / "mine"
    out.mkdir()
    target.write_text("precious")
    path = out / lock.NAME
    {
        "dangling": lambda: path.symlink_to("nowhere"),
        "link": lambda: path.symlink_to(target),
        "pipe": lambda: os.mkfifo(path),
        "directory": path.mkdir,
    }[kind]()
    with pytest.raises(UserError, match=r"must have no \.lock but that of a run"):
        run_experiment(config_with(), out, quiet=True)
    assert [entry.name for entry in out.iterdir()] == [lock.NAME]
    assert target.read_text() == "precious"


def test_runs_of_one_program_go_back_together(tmp_path):
    """Where one run's newest checkpoint is damaged, the others must go on from the same round."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in VALUES.items()]
    file, out = tmp_path / "sweep.toml", tmp_path / "out"
    file.write_text("\n".join([*lines, "[grid]", "seed = [0, 1]"]))
    assert main.main(["sweep", str(file), "--out", str(out), "--quiet"]) == 0
    names = ["fedavg,seed=0", "fedavg,seed=1"]
    before = [without_time(out / name) for name in names]
    for name in names:
        (out / name / "summary.json").unlink()
    (out / names[0] / "checkpoints" / "00000004" / "arrays.npz").write_bytes(b"")
    assert main.main(["sweep", str(file), "--out", str(out), "--quiet", "--resume"]) == 0
    assert [without_time(out / name) for name in names] == before
    kept = [sorted(path.name for path in (out / name / "checkpoints").iterdir()) for name in names]
    assert kept == [
        ["00000002", "00000003", "00000004", "00000004.damaged"],
        ["00000002", "00000003", "00000004", "00000004.newer"],
    ]


def test_a_sweep_is_continued_in_its_own_directory_only(tmp_path, whole, capsys):
    file, out = tmp_path / "sweep.toml", tmp_path / "out"
    lines = [f"{key} = {json.dumps(value)}" for key, value in VALUES.items()]

    def sweep(directory, seeds):
        file.write_text("\n".join([*lines, "[grid]", f"seed = {seeds}"]))
        code = main.main(["sweep", str(file), "--out", str(directory), "--quiet", "--resume"])
        return code, capsys.readouterr().err

    before = tree(whole)
    code, said = sweep(whole, [0])
    assert (code, "it holds a single run" in said, tree(whole)) == (2, True, before)
    assert sweep(out, [0]) == (0, "")
    assert sweep(out, [1])[0] == 2
    summary = out / "fedavg,seed=0" / "summary.json"
    for text in ("{", "[1]", '{"global_accuracy": "x"}'):
        summary.write_text(text)
        code, said = sweep(out, [0])
        assert (code, said.count("\n"), "summary.json" in said) == (2, 1, True)


def test_a_checkpoint_of_another_format_is_refused(out):
    for step in checkpoint.steps(out / "checkpoints"):
        description = step / "checkpoint.json"
        description.write_text(json.dumps({**json.loads(description.read_text()), "format": 1}))
        seal(step)
    refused(out, "must be a checkpoint of format 2")


@pytest.mark.parametrize("meta", [{}, {"totals": {"cycles": 1}, "lengths": {}}, {"totals": 3, "lengths": {}}])
def test_a_description_that_says_something_else_is_refused(out, meta):
    step = checkpoint.steps(out / "checkpoints")[-1]
    description = step / "checkpoint.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "meta": meta}))
    seal(step)
    refused(out, "must have a checkpoint of this version")


@pytest.mark.parametrize(
    ("key", "value"), [("chosen_plan", 7), ("chosen_plan", None), ("chosen_storage", []), ("fingerprints", 1)]
)
def test_what_the_program_has_noted_must_be_what_it_notes(out, key, value):
    path = out / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    refused(out, f"{key}=.*: must be")


def test_a_run_without_checkpoints_loses_no_record(out, whole):
    shutil.rmtree(out / "checkpoints")
    before = (out / "metrics.jsonl").read_bytes()
    run_experiment(config_with(), out, resume=True, quiet=True)
    assert without_time(out) == without_time(whole)
    assert (out / "metrics.jsonl.before").read_bytes() == before
    shutil.rmtree(out / "checkpoints")
    refused(out, "must have checkpoints to resume")


def test_other_data_of_the_same_shapes_are_refused(tmp_path):
    rng, file, out = np.random.default_rng(0), tmp_path / "data.npz", tmp_path / "run"
    arrays = {"x": rng.normal(size=(60, 4)).astype(np.float32), "y": np.arange(60) % 2}
    np.savez(file, **arrays)
    values = {"data.name": f"npz:{file}", "data.clients": "3", "cohort": "2"}
    run_experiment(config_with(**values), out, quiet=True)
    np.savez(file, **{**arrays, "x": -arrays["x"]})
    refused(out, r"data\.name=npz:.*must be unchanged since the run began", **values)
    np.savez(file, **arrays)
    run_experiment(config_with(**values), out, resume=True, quiet=True)


def test_other_devices_and_other_parameters_are_refused(tmp_path):
    trace, weights, out = tmp_path / "trace.csv", tmp_path / "weights.npz", tmp_path / "run"
    values = {"devices": f"trace:{trace}", "pretraining.source": f"npz:{weights}"}
    params = fm.models.mlp(synthetic_task((8, 8, 1), 10, [4]), hidden=(4,)).init(jax.random.key(5))
    stage = {f"dense1.{name}": np.asarray(leaf) for name, leaf in params["dense1"].items()}

    def write(rate, factor):
        columns = make_population("rpi4@wifi", 1).fleet._fields
        trace.write_text("\n".join([",".join(columns), *[",".join([rate, *["1"] * (len(columns) - 1)])] * 6]))
        np.savez(weights, **{name: factor * leaf for name, leaf in stage.items()})

    write("1e9", 1)
    run_experiment(config_with(**values), out, quiet=True)
    write("2e9", 1)
    refused(out, r"devices=trace:.*must be unchanged", **values)
    write("1e9", 2)
    refused(out, r"pretraining\.source=npz:.*must be unchanged", **values)


def test_other_random_numbers_of_the_seed_are_refused(out):
    with jax.default_prng_impl("rbg"):
        refused(out, r"seed=0: must give the random numbers with which the run began")


def test_a_run_that_began_before_a_fingerprint_existed_goes_on():
    run_directory.check_fingerprints({"seed": 3, "fingerprints": {"data.name": "a"}}, {"seed": "b"})
    with pytest.raises(UserError, match="seed=3: must give the random numbers"):
        run_directory.check_fingerprints({"seed": 3, "fingerprints": {"seed": "a"}}, {"seed": "b"})


def test_every_example_and_its_owner_are_part_of_the_fingerprint(whole):
    task = build.load(config_with())
    wanted = json.loads((whole / "config.json").read_text())["fingerprints"]
    assert build.fingerprints(config_with(), task) == wanted
    for name in ("inputs", "labels", "test_inputs", "test_labels"):
        array = np.array(getattr(task, name))
        array[-1] += 1
        changed = dataclasses.replace(task, **{name: array})
        assert build.fingerprints(config_with(), changed) != wanted
    swapped = task.train._replace(rows=task.train.rows[::-1])
    assert build.fingerprints(config_with(), dataclasses.replace(task, train=swapped)) != wanted


def test_a_resume_in_64_bit_mode_goes_on(out, whole, monkeypatch, capsys):
    """States are of 32 bits in either mode; an own algorithm's may not be, which is refused by name."""
    monkeypatch.setattr(experiment, "make_simulation", make_simulation)  # compiled in this mode
    with jax.enable_x64(True):
        code = main.main(["run", "--resume", "--quiet", "--out", str(out)])
    assert (code, capsys.readouterr().err) == (0, "")
    assert [path.name for path in checkpoint.steps(out / "checkpoints")] == [
        "00000002",
        "00000003",
        "00000004",
    ]
    assert without_time(out) == without_time(whole)


def test_a_directory_belongs_to_one_process(tmp_path):
    out = tmp_path / "deep" / "run"
    with lock.exclusive(out):
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* does now"):
            run_experiment(config_with(), out, quiet=True)
        with pytest.raises(UserError, match="must be a directory that no other process writes to"):
            run_experiment(config_with(), out, resume=True, quiet=True)
    assert not list(tmp_path.iterdir())


def test_a_lock_that_a_kill_has_left_behind_blocks_nobody(tmp_path, whole):
    out = tmp_path / "run"
    script = (
        "import os, sys, signal; from pathlib import Path\n"
        "from fedjax_masks.experiment.lock import exclusive\n"
        "with exclusive(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(out)], check=False)
    assert [path.name for path in out.iterdir()] == [lock.NAME]
    run_experiment(config_with(), out, quiet=True)
    assert without_time(out) == without_time(whole)
    assert not (out / lock.NAME).exists()


def test_of_many_that_want_a_directory_one_at_a_time_has_it(tmp_path):
    """A lock file and new directories are removed, which must neither let two others in nor fail them."""
    inside, most, refusals = [], [], []

    def enter():
        for _ in range(200):
            try:
                with lock.exclusive(tmp_path / "runs" / "run"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except UserError:
                refusals.append(1)

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) + len(refusals) == 800


@pytest.mark.parametrize("error", [FileNotFoundError, FileExistsError])
def test_a_directory_that_is_removed_while_it_is_created_is_created_again(tmp_path, monkeypatch, error):
    mkdir, failures = Path.mkdir, [error(), error()]

    def mkdir_that_loses_races(path, *args, **kwargs):
        if failures:
            raise failures.pop()
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir_that_loses_races)
    with lock.exclusive(tmp_path / "run"):
        assert (tmp_path / "run" / lock.NAME).exists()
    assert not failures
    assert not list(tmp_path.iterdir())


def test_a_file_where_a_directory_should_be_is_an_error(tmp_path):
    (tmp_path / "run").write_text("a user's")
    with pytest.raises(FileExistsError), lock.exclusive(tmp_path / "run"):
        pass
    assert (tmp_path / "run").read_text() == "a user's"


def test_a_sweep_belongs_to_one_process(tmp_path, capsys):
    file = tmp_path / "sweep.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in VALUES.items()]
    file.write_text("\n".join([*lines, "[grid]", "seed = [0]"]))
    with lock.exclusive(tmp_path / "out"):
        assert main.main(["sweep", str(file), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert "must be a directory that no other process writes to" in capsys.readouterr().err


def test_what_others_put_into_a_failing_runs_directory_stays(tmp_path, monkeypatch):
    out = tmp_path / "run"

    def fail(config):
        (out / "notes.txt").write_text("mine")
        raise ValueError("no such data")

    monkeypatch.setattr(build, "build", fail)
    with pytest.raises(UserError, match="no such data"):
        run_experiment(config_with(), out, quiet=True)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_rounds_are_not_lost_between_calls(monkeypatch):
    """However many rounds a call of the engine runs, each is run once."""
    task = synthetic_task((6,), 3, sizes=[12] * 8)
    algorithm = fm.fedavg(fm.models.mlp(task, hidden=(4,)), optax.sgd(0.1))
    options = {"rounds": 7, "cohort": 3, "plan": "scan", "eval_every": 7}
    wanted = fm.simulate(algorithm, task, **options)
    chunks = []
    monkeypatch.setattr(loop, "_PATIENCE", 1e-9)
    found = fm.simulate(
        algorithm, task, **options, on_chunk=[lambda chunk: chunks.append(len(chunk.metrics.ids))]
    )
    assert chunks == [1] * 7
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found.state), jax.device_get(wanted.state))
    assert found.records[-1]["bytes_up_total"] == wanted.records[-1]["bytes_up_total"]
