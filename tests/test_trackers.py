"""Every backend that a user names has each round once, and the run's true state: real packages, offline."""

import contextlib
import json
import resource
import signal
import subprocess
import sys

import pytest
from remembered import compile_once

from fedjax_masks.analysis import canvas
from fedjax_masks.cli import main
from fedjax_masks.core.errors import UserError
from fedjax_masks.experiment import backends, execution, frames, trackers
from fedjax_masks.experiment import build as assembly
from fedjax_masks.experiment.config import make_config
from fedjax_masks.experiment.experiment import run_experiment
from fedjax_masks.experiment.sweep import run_sweep

SMALL = {
    "algorithm.name": "fedavg",
    "model.name": "mlp",
    "model.hidden": (4,),
    "data.clients": 4,
    "data.examples_per_client": 20,
    "training.epochs": 1,
    "cohort": 2,
    "rounds": 2,
    "eval_every": 1,
    "checkpoint_share": 1.0,
}
SWEEP = """
rounds = 2
cohort = 2
eval_every = 1
algorithm = "fedavg"
data = { clients = 4, examples_per_client = 20 }
model = { name = "mlp", hidden = [4] }
training.epochs = 1
log = "mlflow+tensorboard+wandb"
[grid]
seed = [0, 1]
"""
ALL = ("mlflow", "tensorboard", "wandb")
# Logs four rounds and is killed: "after" all backends have taken the last one, or "before" any has.
KILLED = """
import os, signal, sys
from pathlib import Path
from fedjax_masks.experiment import trackers

out, moment = Path(sys.argv[1]), sys.argv[2]
with trackers.tracking(("mlflow", "tensorboard", "wandb"), out, config={}) as tracker:
    for round in range(1, 5):
        if (round, moment) == (4, "before"):
            trackers._each = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        tracker.log({"round": round, "train_loss": 1 / round, "extra": {"flips": round}})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def record(round):
    return {"round": round, "train_loss": 1 / round, "density": None, "extra": {"flips": round}}


def wanted(last):
    """The whole histories of rounds 1 to ``last``."""
    rounds = range(1, last + 1)
    return {
        "train_loss": [(round, pytest.approx(1 / round)) for round in rounds],
        "extra/flips": [(round, round) for round in rounds],
    }


class Killed(BaseException):
    """Stands for the process's sudden end."""


@pytest.fixture(autouse=True, scope="module")
def shared_programs():
    with compile_once(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "save_figure", lambda *args: None)
        yield


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """W&B writes into the run directory, MLflow into a folder."""
    wandb, mlflow = pytest.importorskip("wandb"), pytest.importorskip("mlflow")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")  # pytest's own capture would be wrapped
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'store'}")
    wandb.teardown()  # it keeps the variables of its first use
    yield mlflow
    wandb.teardown()
    mlflow.set_tracking_uri(None)


def read_tensorboard(out):
    """``{tag: [(step, value)]}`` of event files, whose frames the protocol describes."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted((out / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def wandb_records(out):
    from wandb.proto.wandb_internal_pb2 import Record

    name = (out / "wandb.id").read_text()
    paths = sorted((out / "wandb").glob("offline-run-*/*.wandb"))
    assert {path.name for path in paths} == {f"run-{name}.wandb"}
    for path in paths:
        yield from map(Record.FromString, frames.leveldb_frames(path))


def read_wandb(out):
    """``{name: [(step, value)]}`` of all that W&B has written for a run."""
    found = {}
    for entry in wandb_records(out):
        for item in entry.history.item:
            key = item.key or "/".join(item.nested_key)
            if not key.startswith("_"):
                found.setdefault(key, []).append((entry.history.step.num, json.loads(item.value_json)))
    return found


def wandb_ends(out):
    """Exit codes, and how often the run was marked as one that will be resumed."""
    entries = list(wandb_records(out))
    codes = [entry.exit.exit_code for entry in entries if entry.HasField("exit")]
    return codes, sum(entry.HasField("preempting") for entry in entries)


def read_mlflow(mlflow, out):
    client, name = mlflow.MlflowClient(), (out / "mlflow.id").read_text()
    run = client.get_run(name)
    found = {key: client.get_metric_history(name, key) for key in run.data.metrics}
    return {key: [(entry.step, entry.value) for entry in history] for key, history in found.items()}


def mlflow_state(mlflow, out):
    return mlflow.MlflowClient().get_run((out / "mlflow.id").read_text()).info.status


def histories(mlflow, out):
    return [read_mlflow(mlflow, out), read_tensorboard(out), read_wandb(out)]


def test_tensorboard_holds_the_numbers_of_the_records(tmp_path):
    pytest.importorskip("tensorboardX")
    run = run_experiment(make_config({**SMALL, "log": "tensorboard"}), tmp_path / "run", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == run.records
    assert len(lines) == 2
    for name, history in read_tensorboard(tmp_path / "run").items():
        numbers = [(line["round"], backends.scalars(line)[name]) for line in lines]
        assert history == [(round, pytest.approx(value, rel=1e-6)) for round, value in numbers]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_seeds_of_one_program_are_runs_of_their_own(offline, tmp_path):
    (tmp_path / "sweep.toml").write_text(SWEEP)
    jobs = run_sweep(tmp_path / "sweep.toml", tmp_path / "out", quiet=True)
    outs = [tmp_path / "out" / job.name for job in jobs]
    for name in ("wandb.id", "mlflow.id"):
        assert len({(out / name).read_text() for out in outs}) == 2
    losses = set()
    for job, out in zip(jobs, outs):
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        numbers = {key: [] for key in backends.scalars(lines[0])}
        for line in lines:
            for key, value in backends.scalars(line).items():
                numbers[key].append((line["round"], pytest.approx(value, rel=1e-6)))
        for history in histories(offline, out):
            assert history == numbers
        losses.add(read_wandb(out)["train_loss"][-1])
        (start,) = [entry.run for entry in wandb_records(out) if entry.HasField("run")]
        assert start.display_name == job.name
        seeds = [pair.value_json for pair in start.config.update if pair.key == "seed"]
        assert seeds == [str(job.config.seed)]
        assert wandb_ends(out) == ([0], 0)
        assert mlflow_state(offline, out) == "FINISHED"
    assert len(losses) == 2


@pytest.mark.slow
@pytest.mark.parametrize("moment", [pytest.param("before", marks=pytest.mark.slow), "after"])
@pytest.mark.filterwarnings("default")
def test_a_killed_run_that_goes_on_logs_no_round_twice_and_leaves_none_out(offline, tmp_path, moment):
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(out), moment]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    lines = (out / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    # W&B writes every 15 seconds: a killed process had no time to.
    assert read_wandb(out) == {}
    assert mlflow_state(offline, out) == "RUNNING"
    with trackers.tracking(ALL, out, config={}) as tracker:
        (out / "metrics.jsonl").write_bytes(b"".join(lines[:2]))  # as far as the last checkpoint
        for round in (3, 4, 5):
            tracker.log(record(round))
    for history in histories(offline, out):
        assert history == wanted(5)
    # Killed twice: the file is shorter than what the backends have.
    with trackers.tracking(ALL, out, config={}) as tracker:
        for round in (5, 6):
            tracker.log(record(round))
    for history in histories(offline, out):
        assert history == wanted(6)
    assert mlflow_state(offline, out) == "FINISHED"


@pytest.mark.filterwarnings("default")
def test_a_record_that_a_backend_has_in_part_is_completed(offline, tmp_path):
    with trackers.tracking(["mlflow"], tmp_path, config={}) as tracker:
        tracker.log(record(1))
        tracker.log({"round": 2, "train_loss": 0.5})
    (tmp_path / "metrics.jsonl").unlink()
    with trackers.tracking(["mlflow"], tmp_path, config={}) as tracker:
        tracker.log(record(2))
    assert read_mlflow(offline, tmp_path) == wanted(2)


@pytest.mark.filterwarnings("default")
def test_what_wandb_wrote_offline_is_read_over_blocks(offline, tmp_path):
    with trackers.tracking(["wandb"], tmp_path, config={}) as tracker:
        for round in range(1, 301):
            tracker.log({"round": round, "name" * 20: round})
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert path.stat().st_size > 3 * 32768
    assert read_wandb(tmp_path) == {"name" * 20: [(round, round) for round in range(1, 301)]}
    path.write_bytes(path.read_bytes()[:-20_000])  # cut off in the middle of a record
    rounds = [round for round, _ in read_wandb(tmp_path)["name" * 20]]
    assert rounds == list(range(1, len(rounds) + 1))
    assert backends._wandb_offline(tmp_path, (tmp_path / "wandb.id").read_text()) == len(rounds) > 200


@pytest.mark.parametrize(
    ("error", "code", "state"),
    [
        (None, 0, "FINISHED"),
        (ZeroDivisionError(), 1, "FAILED"),
        (SystemExit(143), 143, "KILLED"),
        (KeyboardInterrupt(), 130, "KILLED"),
    ],
    ids=["finished", "failed", "sigterm", "sigint"],
)
@pytest.mark.filterwarnings("default")
def test_a_run_ends_at_its_backends_as_it_ended(offline, tmp_path, error, code, state):
    names, seen = ("mlflow", "wandb"), []
    with contextlib.suppress(BaseException), trackers.tracking(names, tmp_path, config={}) as tracker:
        tracker.log(record(1))
        if error is not None:
            raise error
    interrupted = int(code > 128)
    assert (wandb_ends(tmp_path), mlflow_state(offline, tmp_path)) == (([code], interrupted), state)
    known = [(tmp_path / f"{name}.id").read_text() for name in names]
    with trackers.tracking(names, tmp_path, config={}):
        seen.append(mlflow_state(offline, tmp_path))
    assert (seen, mlflow_state(offline, tmp_path)) == (["RUNNING"], "FINISHED")
    assert wandb_ends(tmp_path) == ([code, 0], interrupted)
    assert [(tmp_path / f"{name}.id").read_text() for name in names] == known


@pytest.mark.filterwarnings("default")
def test_backends_are_open_before_the_data_are_loaded_and_a_refused_run_leaves_nothing(
    offline, tmp_path, monkeypatch
):
    config, states = make_config({**SMALL, "log": "+".join(ALL)}), []

    def refuse(config):
        (out,) = (path for path in tmp_path.iterdir() if path.name.startswith("run"))
        states.append(mlflow_state(offline, out))
        raise ValueError("no such data")

    monkeypatch.setattr(assembly, "build", refuse)
    with pytest.raises(UserError, match="no such data"):
        run_experiment(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="no such data"):
        run_experiment(config, tmp_path / "run", quiet=True)
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "run" / "tensorboard").mkdir()  # of a process that was killed, or a person's
    with pytest.raises(UserError, match="no such data"):
        run_experiment(config, tmp_path / "run", resume=True, quiet=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tensorboard"]
    found = offline.MlflowClient().search_runs([offline.get_experiment_by_name("fedjax_masks").experiment_id])
    assert [run.info.status for run in found] == ["FAILED"] * 3
    assert states == ["RUNNING"] * 3


@pytest.mark.filterwarnings("default")
def test_a_run_killed_while_it_compiles_goes_on_with_its_trackers(offline, tmp_path, monkeypatch):
    config, out = make_config({**SMALL, "log": "+".join(ALL)}), tmp_path / "run"

    def die(config):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(assembly, "build", die)
        with pytest.raises(Killed):
            run_experiment(config, out, quiet=True)
    known = (out / "wandb.id").read_text()
    run_experiment(config, out, resume=True, quiet=True)
    assert (out / "wandb.id").read_text() == known
    assert [step for step, _ in read_wandb(out)["train_loss"]] == [1, 2]
    assert wandb_ends(out) == ([1, 0], 0)


@pytest.mark.filterwarnings("default")
def test_a_run_that_breaks_off_is_failed_and_has_the_complete_configuration(offline, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def fail(out, run):
        raise ZeroDivisionError

    monkeypatch.setattr(execution, "_write_results", fail)
    with pytest.raises(ZeroDivisionError):
        run_experiment(make_config({**SMALL, "log": "+".join(ALL)}), out, quiet=True)
    assert (wandb_ends(out), mlflow_state(offline, out)) == (([1], 0), "FAILED")
    keys = {pair.key for entry in wandb_records(out) for pair in entry.config.update}
    assert {"chosen_plan", "versions"} <= keys


@pytest.mark.filterwarnings("default")
def test_a_backend_that_fails_during_the_run_is_counted_and_the_run_goes_on(offline, tmp_path, caplog):
    with trackers.tracking(["mlflow", "tensorboard"], tmp_path, config={}) as tracker:
        tracker.log(record(1))
        (tmp_path / "store").rename(tmp_path / "gone")
        for round in range(2, 8):
            tracker.log(record(round))
    first, last = [entry.getMessage() for entry in caplog.records if entry.name == "fedjax_masks"]
    assert first.startswith("log='mlflow': failed, and the run goes on: ")
    assert "\n" not in first
    assert last == "log='mlflow': failed 7 times; metrics.jsonl has every record"  # with its end
    assert read_tensorboard(tmp_path) == wanted(7)
    (tmp_path / "gone").rename(tmp_path / "store")
    with trackers.tracking(["mlflow", "tensorboard"], tmp_path, config={}):
        pass
    assert read_mlflow(offline, tmp_path) == wanted(7)


def test_tensorboard_says_that_the_disk_is_full(tmp_path):
    pytest.importorskip("tensorboardX")
    tracker = backends.tensorboard(tmp_path, {})
    tracker.log(record(1))
    (path,) = (tmp_path / "tensorboard").iterdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            tracker.log(record(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    tracker.log(record(3))
    tracker.close(0)
    assert read_tensorboard(tmp_path) == wanted(3)


def refused(command, out, capsys, *words):
    """A command is refused with one line, and nothing is written."""
    assert main.main([*command, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert (error.count("\n"), error[:12]) == (1, "error: log='"), error
    assert all(word in error for word in words), error
    assert not out.exists()


@pytest.mark.parametrize("command", ["run", "sweep"])
@pytest.mark.filterwarnings("default")
def test_a_missing_key_is_one_line_before_anything_is_loaded(offline, tmp_path, monkeypatch, capsys, command):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(assembly, "load", None)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    words = {
        "run": ["--algorithm", "fedavg", "--log", "tensorboard+wandb"],
        "sweep": [tmp_path / "sweep.toml"],
    }
    refused(
        [command, *map(str, words[command])],
        tmp_path / "out",
        capsys,
        "log='wandb'",
        "must be reachable (no API key is configured)",
        "set WANDB_API_KEY, or WANDB_MODE=offline",
    )


@pytest.mark.filterwarnings("default")
def test_a_server_that_is_not_there_is_one_line(offline, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(assembly, "load", None)
    command = ["run", "--algorithm", "fedavg", "--log", "tensorboard+mlflow"]
    refused(command, tmp_path / "out", capsys, "log='mlflow'", "MLFLOW_TRACKING_URI", "127.0.0.1")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_run_killed_behind_its_last_checkpoint_resumes_to_whole_histories(offline, tmp_path):
    out, options = tmp_path / "run", ["--rounds", "5", "--eval-every", "1", "--quiet"]
    words = ["run", "--algorithm", "fedavg", "--model", "mlp", "--clients", "4", "--cohort", "2", *options]
    words += ["--epochs", "1", "--log", "+".join(ALL), "--set", "checkpoint_share=1", "--out", str(out)]
    kill = """
import os, signal, sys
from fedjax_masks.cli import main
from fedjax_masks.experiment import checkpoint
save = checkpoint.save
checkpoint.save = lambda *args, **more: save(*args, **more) if args[1] < 3 else None
from fedjax_masks.experiment import trackers
each = trackers._each
def dying(opened, method, argument):
    each(opened, method, argument)
    if method == "log" and argument["round"] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
trackers._each = dying
main.main(sys.argv[1:])
"""
    assert subprocess.run([sys.executable, "-c", kill, *words]).returncode == -signal.SIGKILL
    assert max(path.name for path in (out / "checkpoints").iterdir()) == "00000002"
    assert main.main([*words, "--resume"]) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for history in histories(offline, out):
        assert {tuple(step for step, _ in points) for points in history.values()} == {(1, 2, 3, 4, 5)}
        losses = [(line["round"], pytest.approx(line["train_loss"], rel=1e-6)) for line in lines]
        assert history["train_loss"] == losses
    assert (wandb_ends(out)[0], mlflow_state(offline, out)) == ([0], "FINISHED")


def test_a_missing_package_is_one_line_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    out = tmp_path / "run"
    assert main.main(["run", "--algorithm", "fedavg", "--log", "wandb", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: log='wandb'")
    assert "fedjax_masks[wandb]" in error
    assert not out.exists()


def test_an_unknown_backend_is_refused():
    with pytest.raises(UserError, match=r"log='tensorbord': must be one of .*; did you mean 'tensorboard'"):
        make_config({**SMALL, "log": "tensorbord"})
