import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from remembered import compile_once

import fedjax_masks as fm
from fedjax_masks.analysis import canvas
from fedjax_masks.core.algorithm import State
from fedjax_masks.core.errors import UserError
from fedjax_masks.data import synthetic_task
from fedjax_masks.experiment import (
    build,
    checkpoint,
    disk,
    execution,
    experiment,
    loop,
    participation,
    signals,
)
from fedjax_masks.experiment.config import make_config
from fedjax_masks.experiment.experiment import run_experiment
from fedjax_masks.experiment.loop import notes
from fedjax_masks.simulation import RoundMetrics

KEYS = [
    "round",
    "train_loss",
    "global_accuracy",
    "personal_accuracy_mean",
    "personal_accuracy_p10",
    "personal_accuracy_p90",
    "personal_accuracy_mean_seen",
    "personal_accuracy_p10_seen",
    "personal_accuracy_p90_seen",
    "clients_seen",
    "num_clients",
    "bytes_up",
    "bytes_down",
    "bytes_up_total",
    "bytes_down_total",
    "client_flops",
    "client_flops_total",
    "server_flops",
    "sim_seconds",
    "energy_joules",
    "density",
    "cohort_size",
    "clients_dropped",
    "diverged",
    "wall_seconds",
    "extra",
]

SETTING = {
    "algorithm.name": "local",
    "model.name": "mlp",
    "model.hidden": (8,),
    "data.partition": "shards:2",
    "data.clients": 12,
    "cohort": 4,
    "rounds": 7,
    "training.epochs": 1,
    "eval_every": 2,
    "plan": "scan",
    "checkpoint_share": 1.0,
    "keep_checkpoints": 2,
}


class Killed(BaseException):
    """Stands for the process's sudden end: no handler of the package catches it."""


def without_time(records):
    """Records for comparison: the time that passed cannot repeat itself."""
    assert all(record["wall_seconds"] > 0 for record in records)
    return [{key: value for key, value in record.items() if key != "wall_seconds"} for record in records]


def read_lines(out):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def assert_same_state(left, right):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(left), jax.device_get(right))


def config_with(**values):
    return make_config(SETTING | values)


@pytest.fixture(scope="module", autouse=True)
def shared_programs():
    with compile_once():
        yield


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Nothing is drawn but the figure of the fixture ``uninterrupted``, which is made before this one."""
    monkeypatch.setattr(canvas, "save_figure", lambda *args: None)


@pytest.fixture(scope="module")
def task():
    return synthetic_task((6,), 3, sizes=[12] * 8)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return run_experiment(config_with(), tmp_path_factory.mktemp("runs") / "whole", quiet=True)


@pytest.fixture(scope="module")
def fedavg(task):
    return fm.fedavg(fm.models.mlp(task, hidden=(4,)), optax.sgd(0.1))


@pytest.fixture(scope="module")
def local(task):
    return fm.local(fm.models.mlp(task, hidden=(4,)), optax.sgd(0.1))


def simulate(algorithm, task, **options):
    return fm.simulate(algorithm, task, **{"rounds": 5, "cohort": 3, "plan": "scan", **options})


def test_records_add_up(fedavg, task):
    chunks = []

    def note(chunk):
        chunks.append(chunk._replace(state=None))

    run = simulate(fedavg, task, eval_every=2, on_chunk=[note])
    assert [record["round"] for record in run.records] == [2, 4, 5]
    assert all(list(record) == KEYS for record in run.records)
    up = np.concatenate([chunk.metrics.bytes_up for chunk in chunks])
    assert up.shape == (5, 3)
    parameters = 6 * 4 + 4 + 4 * 3 + 3
    assert (up == 4 * parameters).all()
    assert [record["bytes_up"] for record in run.records] == [12 * parameters] * 3
    assert [record["bytes_up_total"] for record in run.records] == [12 * parameters * n for n in (2, 4, 5)]
    steps = 2  # 12 examples in batches of 10
    forward_and_backward = 2 * 10 * (2 * 6 * 4 + 3 * 4 * 3)
    assert run.records[-1]["client_flops"] == pytest.approx(steps * forward_and_backward)
    totals = [record["client_flops_total"] / run.records[-1]["client_flops"] for record in run.records]
    assert totals == pytest.approx([3 * 2, 3 * 4, 3 * 5])
    assert run.records[-1]["train_loss"] == pytest.approx(chunks[-1].metrics.train["loss"][-1].mean())


def test_the_spread_is_over_clients(local, task):
    run = simulate(local, task)
    accuracies = np.sort(run.evaluation.personal)
    last = run.records[-1]
    assert last["global_accuracy"] is None
    assert last["personal_accuracy_mean"] == pytest.approx(accuracies.mean())
    rank = 0.1 * (len(accuracies) - 1)
    low = accuracies[0] + rank * (accuracies[1] - accuracies[0])
    assert last["personal_accuracy_p10"] == pytest.approx(low)
    assert run.summary["best_personal_accuracy_mean"] == max(r["personal_accuracy_mean"] for r in run.records)
    assert run.summary["client_accuracy"] == run.evaluation.personal.tolist()


@pytest.mark.parametrize("eval_clients", [None, 5])
def test_the_clients_that_trained_have_a_mean_of_their_own(local, task, eval_clients):
    """Means over those of any cohort so far, on the evaluated clients; they are counted among all."""
    cohorts = []
    run = simulate(
        local,
        task,
        rounds=2,
        eval_every=1,
        eval_clients=eval_clients,
        on_chunk=[lambda chunk: cohorts.append(chunk.metrics.ids)],
    )
    evaluated = run.evaluation.ids
    for number, record in enumerate(run.records, 1):
        seen = np.unique(cohorts[:number])
        assert (record["clients_seen"], record["num_clients"]) == (len(seen), 8)
    trained = np.isin(evaluated, seen)
    assert 0 < trained.sum() < len(evaluated)
    own = run.evaluation.personal[trained]
    assert record["personal_accuracy_mean_seen"] == pytest.approx(own.mean())
    assert record["personal_accuracy_p10_seen"] == pytest.approx(np.percentile(own, 10))
    assert record["personal_accuracy_p90_seen"] == pytest.approx(np.percentile(own, 90))
    assert record["personal_accuracy_mean"] == pytest.approx(run.evaluation.personal.mean())
    assert run.summary["client_seen"] == trained.tolist()
    best = max(record["personal_accuracy_mean_seen"] for record in run.records)
    assert run.summary["best_personal_accuracy_mean_seen"] == best


@given(st.lists(st.lists(st.integers(0, 300), max_size=6), max_size=5))
def test_a_set_of_clients_survives_as_text(chunks):
    seen, expected = participation.EMPTY, set()
    for ids in chunks:
        seen = json.loads(json.dumps(participation.add(seen, np.array(ids, np.int32))))
        expected |= set(ids)
    assert participation.count(seen) == len(expected)
    every = np.arange(400)
    assert every[participation.members(seen, every)].tolist() == sorted(expected)
    assert participation.add(participation.EMPTY, np.array(sorted(expected), np.int32)) == seen


def test_figures_of_a_round_are_means_over_rounds_in_the_summary(task):
    """FedSkel sends and computes everything in every fourth round only."""
    run = simulate(
        fm.fedskel(fm.models.mlp(task, hidden=(4,)), optax.sgd(0.1), prune_dense=True), task, eval_every=1
    )
    for key in ("bytes_up", "bytes_down", "client_flops", "clients_dropped"):
        rounds = [record[key] for record in run.records]
        assert run.summary[key] == pytest.approx(np.mean(rounds))
    assert len({record["bytes_up"] for record in run.records}) > 1
    assert run.records[-1]["client_flops_total"] == pytest.approx(5 * 3 * run.summary["client_flops"])
    assert run.summary["server_flops"] is None


def test_evaluating_more_often_changes_nothing(fedavg, task):
    often, seldom = (simulate(fedavg, task, eval_every=every) for every in (2, 5))
    assert_same_state(often.state, seldom.state)
    assert without_time(often.records)[-1] == without_time(seldom.records)[-1]


def test_a_run_of_which_nothing_stays_finite_has_diverged_and_says_so_once_a_chunk(fedavg, task, caplog):
    broken = dataclasses.replace(task, inputs=np.full_like(np.array(task.inputs, np.float32), np.nan))
    run = simulate(fedavg, broken, rounds=3, eval_every=3)
    assert run.summary["diverged"]
    assert run.summary["personal_accuracy_mean_seen"] is None
    (message,) = caplog.messages
    assert message.startswith(
        "rounds 1-3: 9 of 9 updates left out of the merge: not finite, or huge; clients "
    )


def test_a_client_without_a_finite_update_is_left_out_counted_and_named(fedavg, task, caplog):
    inputs = np.array(task.inputs, np.float32)
    start = task.train.offsets[3]
    inputs[task.train.rows[start : start + task.train.sizes[3]]] = np.nan
    run = simulate(fedavg, dataclasses.replace(task, inputs=inputs), cohort=8, rounds=2)
    assert run.records[-1]["clients_dropped"] == 1
    left_out = "1 of 8 updates left out of the merge: not finite, or huge; client 3"
    assert caplog.messages == [f"round {n}: {left_out}" for n in (1, 2)]
    assert (run.records[-1]["clients_seen"], run.records[-1]["diverged"]) == (7, False)
    assert run.summary["client_seen"] == [client != 3 for client in range(8)]
    assert np.isfinite(run.records[-1]["train_loss"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(run.state)))


@pytest.mark.parametrize(("flips", "first", "reported"), [(0.0, 0, True), (0.1, 0, False), (0.0, 5, False)])
def test_masks_that_never_flip_are_reported_once(flips, first, reported):
    shape = (2, 3)
    metrics = RoundMetrics(
        ids=np.zeros(shape, np.int32),
        weight=np.ones(shape, np.float32),
        dropped=np.zeros(shape, bool),
        trained=np.ones(shape, bool),
        bytes_up=np.zeros(shape, np.int64),
        bytes_down=np.zeros(shape, np.int64),
        train={"flip_fraction": np.full(shape, flips, np.float32)},
        server={},
    )
    assert any("no bit of any mask flipped" in note for note in notes(metrics, first)) == reported


@pytest.mark.parametrize("options", [{"rounds": 0}, {"rounds": -3}, {"eval_every": 0}, {"cohort": 9}])
def test_arguments_out_of_range_are_refused(fedavg, task, options):
    with pytest.raises(ValueError, match=next(f"{key}={value}" for key, value in options.items())):
        simulate(fedavg, task, **options)


def test_a_run_directory_is_complete(uninterrupted):
    out = uninterrupted.directory
    config = json.loads((out / "config.json").read_text())
    assert (config["seed"], config["plan"], config["chosen_plan"]) == (0, "scan", "scan")
    assert config["versions"]["jax"] == jax.__version__
    assert config["platform"]["backend"] == "cpu"
    assert config["platform"]["xla_flags"] == os.environ["XLA_FLAGS"]
    assert config["algorithm"]["lr"] == 0.03
    lines = read_lines(out)
    assert [line["round"] for line in lines] == [2, 4, 6, 7]
    assert [list(line) for line in lines] == [KEYS] * 4
    summary = json.loads((out / "summary.json").read_text())
    assert summary["wall_seconds"] == lines[-1]["wall_seconds"]
    assert summary["num_compilations"] == 1
    for key in ("compile_seconds", "rounds_per_second", "padding_efficiency", "memory_bytes"):
        assert summary[key] > 0
    assert summary["setup_bytes"] == 0
    assert [path.name for path in checkpoint.steps(out / "checkpoints")] == ["00000006", "00000007"]
    assert (out / "figures" / "accuracy.png").read_bytes()[1:4] == b"PNG"


def test_the_directory_says_what_memory_says(uninterrupted):
    algorithm, task = build.build(config_with())
    run = fm.simulate(algorithm, task, rounds=7, cohort=4, eval_every=2, plan="scan")
    assert without_time(run.records) == without_time(read_lines(uninterrupted.directory))
    assert_same_state(run.state, uninterrupted.state)


def kill_at_save(monkeypatch, number, where):
    """Ends the process at a moment of the ``number``-th checkpoint."""
    calls = {"save": 0}
    save, rename, write = checkpoint.save, Path.rename, disk.write_atomically

    def counted(*args, **options):
        calls["save"] += 1
        if calls["save"] == number and where == "before":
            raise Killed
        save(*args, **options)
        if calls["save"] == number and where == "after":
            raise Killed

    def at(function, moment):
        def dying(path, *args):
            if calls["save"] == number and where == moment:
                raise Killed
            return function(path, *args)

        return dying

    monkeypatch.setattr(checkpoint, "save", counted)
    monkeypatch.setattr(Path, "rename", at(rename, "rename"))
    monkeypatch.setattr(disk, "write_atomically", at(write, "checksums"))


@pytest.mark.parametrize(
    ("number", "where"),
    [
        (1, "rename"),
        (2, "after"),
        (3, "checksums"),
        *(
            pytest.param(*moment, marks=pytest.mark.slow)
            for moment in ((1, "before"), (4, "before"), (4, "after"))
        ),
    ],
)
def test_a_killed_run_resumes_to_the_same_result(tmp_path, monkeypatch, uninterrupted, number, where):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_at_save(patch, number, where)
        with pytest.raises(Killed):
            run_experiment(config_with(), out, quiet=True)
    run = run_experiment(config_with(), out, resume=True, quiet=True)
    assert without_time(read_lines(out)) == without_time(read_lines(uninterrupted.directory))
    assert_same_state(run.state, uninterrupted.state)
    assert (out / "summary.json").exists()


def test_a_run_killed_while_writing_a_line_resumes(tmp_path, monkeypatch, uninterrupted):
    out = tmp_path / "run"
    append, written = disk.append, []

    def half(path, text):
        written.append(text)
        append(path, text[:20] if len(written) == 3 else text)
        if len(written) == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(disk, "append", half)
        with pytest.raises(Killed):
            run_experiment(config_with(), out, quiet=True)
    run_experiment(config_with(), out, resume=True, quiet=True)
    assert without_time(read_lines(out)) == without_time(read_lines(uninterrupted.directory))


def test_a_run_killed_before_its_first_file_resumes(tmp_path, uninterrupted):
    (tmp_path / "config.json.partial").write_text("{")
    run = run_experiment(config_with(), tmp_path, resume=True, quiet=True)
    assert without_time(run.records) == without_time(uninterrupted.records)


def test_what_a_killed_process_left_half_done_is_cleared_away_by_the_next_checkpoint(tmp_path):
    for name in ("00000005.partial", "00000004.deleted", "00000002.damaged"):
        (tmp_path / name / "arrays").mkdir(parents=True)
    state = State((), jnp.ones(3), ())
    assert checkpoint.restore_latest(tmp_path, state) is None
    assert len(list(tmp_path.iterdir())) == 3
    checkpoint.save(tmp_path, 6, state, {}, keep=1)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["00000002.damaged", "00000006"]


@pytest.mark.parametrize(
    ("number", "share"),
    [
        ("SIGTERM", 1.0),
        pytest.param("SIGTERM", 0.0, marks=pytest.mark.slow),
        ("SIGINT", 0.0),
    ],
)
def test_a_signal_saves_a_checkpoint_and_ends_the_run(
    tmp_path, monkeypatch, caplog, uninterrupted, number, share
):
    out, sent = tmp_path / "run", getattr(signal, number)
    config, append, before = config_with(checkpoint_share=share), disk.append, []

    def send(path, text):
        append(path, text)
        if not before:
            before.append(signal.getsignal(sent))
            signal.raise_signal(sent)

    handler = signal.getsignal(sent)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "append", send)
        with pytest.raises((SystemExit, KeyboardInterrupt)) as end:
            run_experiment(config, out, quiet=True)
    assert isinstance(end.value, KeyboardInterrupt) or end.value.code == 128 + signal.SIGTERM
    assert isinstance(end.value, KeyboardInterrupt) == (number == "SIGINT")
    assert signal.getsignal(sent) is handler is not before[0]
    assert f"{number}: stopped after round 4; --resume continues" in caplog.text
    assert checkpoint.steps(out / "checkpoints")[-1].name == "00000004"
    run = run_experiment(config, out, resume=True, quiet=True)
    assert without_time(read_lines(out)) == without_time(read_lines(uninterrupted.directory))
    assert_same_state(run.state, uninterrupted.state)


@pytest.mark.parametrize(
    "ended", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_run_between_any_two_rounds(tmp_path, monkeypatch, uninterrupted, ended):
    """Rounds that take longer than the patience are run one by one, and each of them may be the last."""
    out, asked, preparing = tmp_path / "run", [], 2  # times that it is asked before the first round

    @contextlib.contextmanager
    def watch():
        yield lambda: asked.append(1) or (signal.SIGTERM if len(asked) == ended + preparing else 0)

    with monkeypatch.context() as patch:
        patch.setattr(signals, "watch", watch)
        patch.setattr(loop, "_PATIENCE", 1e-9)
        with pytest.raises(SystemExit):
            run_experiment(config_with(checkpoint_share=0.0), out, quiet=True)
    assert [int(path.name) for path in checkpoint.steps(out / "checkpoints")] == [ended]
    run = run_experiment(config_with(checkpoint_share=0.0), out, resume=True, quiet=True)
    assert without_time(read_lines(out)) == without_time(read_lines(uninterrupted.directory))
    assert_same_state(run.state, uninterrupted.state)


@pytest.mark.parametrize(
    ("first", "second"), [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGTERM"), ("SIGINT", "SIGINT")]
)
def test_a_second_signal_is_not_noted(first, second):
    came = []
    numbers = dict.fromkeys(getattr(signal, name) for name in (first, second))
    before = {number: signal.signal(number, lambda *_: came.append(1)) for number in numbers}
    try:
        # Whoever has not ended by itself is ended where the block ends.
        with pytest.raises((SystemExit, KeyboardInterrupt)), signals.watch() as asked:  # noqa: PT012
            assert not asked()
            signal.raise_signal(getattr(signal, first))
            assert (asked(), came) == (getattr(signal, first), [])
            signal.raise_signal(getattr(signal, second))
            assert came == [1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_second_signal_ends_a_process_that_is_busy_at_once():
    """Python's own handlers wait for a call like this one, which stands for a compiled program."""
    script = (
        "import hashlib, signal; from fedjax_masks.experiment.signals import second_signal_ends\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        "with second_signal_ends():\n"
        "    print('busy', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"busy\n"
    process.send_signal(signal.SIGINT)
    assert b"SIGINT: ending soon; a second signal ends at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize("step", ["build", "make_simulation"])
def test_sigterm_before_the_first_round_leaves_nothing(tmp_path, monkeypatch, step):
    """What is open is closed, though a library swallows what a handler raises."""
    before = signal.getsignal(signal.SIGTERM)
    module = build if step == "build" else experiment
    prepare = getattr(module, step)

    def swallowing(*args, **options):
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        return prepare(*args, **options)

    monkeypatch.setattr(module, step, swallowing)
    with pytest.raises(SystemExit) as end:
        run_experiment(config_with(log="tensorboard"), tmp_path / "run", quiet=True)
    assert end.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert not list(tmp_path.iterdir())


def test_a_signal_in_the_last_round_ends_the_process_and_not_the_run(tmp_path, monkeypatch, uninterrupted):
    """Else a sweep would go on with all its other runs."""
    out, save = tmp_path / "run", canvas.save_figure

    def late(*args):
        signal.raise_signal(signal.SIGTERM)
        save(*args)

    monkeypatch.setattr(canvas, "save_figure", late)
    with pytest.raises(SystemExit) as end:
        run_experiment(config_with(), out, quiet=True)
    assert end.value.code == 128 + signal.SIGTERM
    assert without_time(read_lines(out)) == without_time(read_lines(uninterrupted.directory))
    assert (out / "summary.json").exists()


def test_a_run_of_another_thread_leaves_signals_alone():
    seen = []

    def note():
        with signals.watch() as asked:
            seen.append((asked(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=note)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGTERM))]


@contextlib.contextmanager
def full_disk(left):
    """No file can grow beyond so many bytes: writing fails half-way, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_checkpoint_that_finds_no_room_is_counted_and_the_run_goes_on(
    tmp_path, monkeypatch, caplog, uninterrupted
):
    out, save, calls = tmp_path / "run", checkpoint.save, []

    def crowded(*args, **options):
        calls.append(args)
        with full_disk(50) if len(calls) in (2, 3) else contextlib.nullcontext():
            save(*args, **options)

    monkeypatch.setattr(checkpoint, "save", crowded)
    run = run_experiment(config_with(keep_checkpoints=9), out, quiet=True)
    assert json.loads((out / "summary.json").read_text())["checkpoints_failed"] == 2
    assert uninterrupted.summary["checkpoints_failed"] == 0
    (message,) = caplog.messages
    assert "checkpoint 00000004" in message
    assert "goes on" in message
    assert "\n" not in message
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["00000002", "00000007"]
    assert_same_state(run.state, uninterrupted.state)


def test_a_run_whose_last_checkpoint_finds_no_room_has_not_ended(tmp_path, monkeypatch, uninterrupted):
    out, save = tmp_path / "run", checkpoint.save

    def crowded(directory, round, *args, **options):
        with full_disk(50) if round == 7 else contextlib.nullcontext():
            save(directory, round, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", crowded)
        with pytest.raises(UserError, match=r"checkpoint 00000007: .*--resume continues"):
            run_experiment(config_with(), out, quiet=True)
    assert not (out / "summary.json").exists()
    run = run_experiment(config_with(), out, resume=True, quiet=True)
    assert without_time(read_lines(out)) == without_time(read_lines(uninterrupted.directory))
    assert_same_state(run.state, uninterrupted.state)


def test_a_record_that_finds_no_room_ends_the_run_which_resumes(tmp_path, monkeypatch, uninterrupted):
    out, append, calls = tmp_path / "run", disk.append, []

    def crowded(path, text):
        calls.append(text)
        left = 30 + (path.stat().st_size if path.exists() else 0)
        with full_disk(left) if len(calls) == 3 else contextlib.nullcontext():
            append(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "append", crowded)
        with pytest.raises(UserError, match=r"out=.*free space") as error:
            run_experiment(config_with(), out, quiet=True)
    assert "\n" not in str(error.value)
    assert len((out / "metrics.jsonl").read_bytes().splitlines()) == 3  # the last one is cut off
    run = run_experiment(config_with(), out, resume=True, quiet=True)
    assert without_time(read_lines(out)) == without_time(read_lines(uninterrupted.directory))
    assert_same_state(run.state, uninterrupted.state)


def test_a_disk_that_is_full_from_the_start_is_refused_and_left_as_it_was(tmp_path):
    run_experiment(config_with(), tmp_path / "warm", quiet=True)  # or compiled programs would find no room
    with full_disk(0), pytest.raises(UserError, match=r"out=.*free space"):
        run_experiment(config_with(), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_directory_that_cannot_be_written_is_refused_before_anything_is_built(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="out="):
        run_experiment(config_with(), tmp_path / "file" / "run", quiet=True)
    # The superuser may write everywhere, so the system's answer stands for a read-only disk.
    monkeypatch.setattr(build, "build", None)
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and path == tmp_path))
    with pytest.raises(UserError, match=r"out=.*must be writable; .* is read-only"):
        run_experiment(config_with(), tmp_path / "deep" / "run", quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
@pytest.mark.parametrize(
    "text", ["{", "[]\n", "[" * 100_000, '{"a": 1}\n'], ids=["cut", "list", "deep", "other"]
)
def test_a_damaged_file_is_named(tmp_path, uninterrupted, name, text):
    out = tmp_path / "run"
    shutil.copytree(uninterrupted.directory, out)
    (out / name).write_text(text.ljust((out / name).stat().st_size))
    with pytest.raises(UserError) as error:
        run_experiment(config_with(), out, resume=True, quiet=True)
    assert "\n" not in str(error.value)
    assert name == "config.json" or name in str(error.value)


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing"])
def test_a_damaged_checkpoint_falls_back_and_says_so(tmp_path, caplog, uninterrupted, damage):
    out = tmp_path / "run"
    shutil.copytree(uninterrupted.directory, out)
    newest = checkpoint.steps(out / "checkpoints")[-1]
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        victim.write_bytes(content[:middle] if damage == "truncate" else flipped)
    caplog.clear()
    run = run_experiment(config_with(), out, resume=True, quiet=True)
    assert f"checkpoint {newest.name} is damaged" in caplog.text
    assert "falling back to the one before" in caplog.text
    assert without_time(read_lines(out)) == without_time(read_lines(uninterrupted.directory))
    assert_same_state(run.state, uninterrupted.state)


def test_a_finished_run_resumes_to_itself(tmp_path, uninterrupted):
    out = tmp_path / "run"
    shutil.copytree(uninterrupted.directory, out)
    names = ("metrics.jsonl", "summary.json")  # speeds in it are of those who ran the rounds
    before = [(out / name).read_bytes() for name in names]
    run = run_experiment(config_with(), out, resume=True, quiet=True)
    assert [(out / name).read_bytes() for name in names] == before
    assert_same_state(run.state, uninterrupted.state)
    assert run.summary["last_personal_accuracy_mean"] == run.records[-1]["personal_accuracy_mean"]


@pytest.mark.parametrize(
    ("key", "value"), [("seed", 1), ("algorithm.lr", 0.2), ("rounds", 9), ("model.hidden", (9,))]
)
def test_a_changed_configuration_is_not_resumed(uninterrupted, key, value):
    before = sorted(uninterrupted.directory.rglob("*"))
    with pytest.raises(UserError, match=key):
        run_experiment(config_with(**{key: value}), uninterrupted.directory, resume=True, quiet=True)
    assert sorted(uninterrupted.directory.rglob("*")) == before


def test_a_directory_in_use_is_refused(uninterrupted, tmp_path):
    with pytest.raises(UserError, match="--resume"):
        run_experiment(config_with(), uninterrupted.directory, quiet=True)
    (tmp_path / "thesis.tex").write_text("precious")
    for resume in (False, True):
        with pytest.raises(UserError, match="out="):
            run_experiment(config_with(), tmp_path, resume=resume, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_failing_before_the_first_round_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("no memory")

    monkeypatch.setattr(execution, "run_rounds", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        run_experiment(config_with(), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_gives_back_every_bit(tmp_path):
    state = State(
        server={"half": jnp.arange(3, dtype=jnp.bfloat16), "count": jnp.asarray(7, jnp.int32), "none": None},
        clients=(jnp.zeros((0, 4)), jnp.asarray([[True], [False]]), jnp.asarray([jnp.nan, -0.0, 1e-40])),
    )
    checkpoint.save(tmp_path, 3, state, {"total": 2**53 + 1}, keep=1)
    like = jax.tree.map(jnp.ones_like, state)
    restored = checkpoint.restore_latest(tmp_path, like)
    assert restored is not None
    assert restored.meta == {"total": 2**53 + 1}
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    for left, right in zip(jax.tree.leaves(restored.state), jax.tree.leaves(state), strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


def test_checkpoints_keep_to_their_share_of_the_time(tmp_path):
    run_experiment(config_with(checkpoint_share=0.0), tmp_path / "run", quiet=True)
    assert [path.name for path in checkpoint.steps(tmp_path / "run" / "checkpoints")] == ["00000007"]


def traces(out):
    """What a run has left on disk so far."""
    metrics = out / "metrics.jsonl"
    names = [path.name for path in (out / "checkpoints").glob("*")]
    return out.exists(), sorted(names), metrics.exists() and metrics.stat().st_size


@pytest.mark.slow
def test_a_process_killed_at_random_moments_resumes_to_the_same_result(tmp_path, uninterrupted):
    out = tmp_path / "run"
    script = (
        "import json, sys; from fedjax_masks.experiment.config import make_config\n"
        "from fedjax_masks.core.trees import flat; "
        "from fedjax_masks.experiment.experiment import run_experiment; "
        f"run_experiment(make_config({SETTING!r}), sys.argv[1], resume=True, quiet=True)"
    )
    random = np.random.default_rng(0)
    for changes in (1, *random.integers(2, 12, size=3), None):
        process = subprocess.Popen([sys.executable, "-c", script, str(out)], env=dict(os.environ))
        seen = traces(out)
        while changes and process.poll() is None:
            time.sleep(0.002)
            if traces(out) != seen:
                seen, changes = traces(out), changes - 1
        if changes is not None:
            process.kill()
        assert process.wait(timeout=300) in (0, -signal.SIGKILL)
    assert without_time(read_lines(out)) == without_time(read_lines(uninterrupted.directory))
    restored = checkpoint.restore_latest(out / "checkpoints", uninterrupted.state)
    assert restored is not None
    assert_same_state(restored.state, uninterrupted.state)
