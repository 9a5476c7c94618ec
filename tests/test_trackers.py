"""Records reach every backend that a user names, each round once."""

import json
import sys
import types

import pytest

from fedjax_masks import cli, trackers
from fedjax_masks.config import make_config
from fedjax_masks.errors import UserError
from fedjax_masks.experiment import run_experiment

SMALL = {
    "algorithm.name": "fedavg",
    "model.name": "mlp",
    "model.hidden": (4,),
    "data.clients": 4,
    "cohort": 2,
    "rounds": 2,
    "eval_every": 1,
}
RECORDS = [
    {"round": 1, "train_loss": 2.0, "density": None, "extra": {"flips": 0.5}},
    {"round": 2, "train_loss": 1.0, "density": None, "extra": {"flips": 0.25}},
]


def read_events(folder):
    """``{tag: {step: value}}`` of TensorBoard's event files, whose frames the protocol describes."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_tensorboard_holds_the_numbers_of_the_records(tmp_path):
    pytest.importorskip("tensorboardX")
    run = run_experiment(make_config({**SMALL, "log": "tensorboard"}), tmp_path / "run", quiet=True)
    events = read_events(tmp_path / "run" / "tensorboard")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == run.records
    for line in lines:
        for name, value in trackers.scalars(line).items():
            assert events[name][line["round"]] == pytest.approx(value, rel=1e-6)


def fake_wandb(calls):
    """The part of the package's interface that is used, keeping what it is told."""

    def init(*, dir, name, config, id, resume):
        calls.append(("init", name, config, id, resume))
        run = types.SimpleNamespace(id=id or "fresh")
        run.log = lambda values, step: calls.append(("log", step, values))
        run.finish = lambda: calls.append(("finish",))
        return run

    module = types.ModuleType("wandb")
    module.init = init
    return module


def test_wandb_gets_each_record_and_a_resumed_run_goes_on_with_the_same(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls))
    for done, record in enumerate(RECORDS):
        with trackers.tracking(["wandb"], tmp_path, config={"rounds": 2}, done=done) as log:
            log(record)
    assert [call[3] for call in calls if call[0] == "init"] == [None, "fresh"]
    assert [call[1:] for call in calls if call[0] == "log"] == [
        (record["round"], trackers.scalars(record)) for record in RECORDS
    ]
    assert calls[-1] == ("finish",)


@pytest.mark.filterwarnings("default")
def test_mlflow_gets_each_record_and_a_resumed_run_goes_on_with_the_same(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database needs more than the client
    mlflow.set_tracking_uri(f"file:{tmp_path / 'store'}")
    out = tmp_path / "run"
    out.mkdir()
    for done, record in enumerate(RECORDS):
        with trackers.tracking(["mlflow"], out, config={"rounds": 2}, done=done) as log:
            log(record)
    history = mlflow.MlflowClient().get_metric_history((out / "mlflow.id").read_text(), "extra/flips")
    assert [(entry.step, entry.value) for entry in history] == [(1, 0.5), (2, 0.25)]


def test_backends_are_closed_when_a_run_fails(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls))
    with pytest.raises(RuntimeError), trackers.tracking(["wandb"], tmp_path, config={}, done=0):
        raise RuntimeError
    assert calls[-1] == ("finish",)


def test_a_missing_package_is_one_line_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    out = tmp_path / "run"
    assert cli.main(["run", "--algorithm", "fedavg", "--log", "wandb", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: log='wandb'")
    assert "fedjax_masks[wandb]" in error
    assert not out.exists()


def test_an_unknown_backend_is_refused():
    with pytest.raises(UserError, match="log='tensorbord': unknown; did you mean 'tensorboard'"):
        make_config({**SMALL, "log": "tensorbord"})
