"""Several processes on the loopback interface, two devices each, against one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from fedjax_masks.cli import main

RUN = [
    *("run", "--algorithm", "fedmask", "--dataset", "digits", "--model", "mlp", "--clients", "20"),
    *("--cohort", "6", "--epochs", "1", "--eval-every", "1", "--quiet", "--set", "checkpoint_share=1"),
]


def start(out, *options):
    """A run in a process of its own."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-m", "fedjax_masks.cli", *RUN, "--out", str(out), *map(str, options)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def start_together(out, number, *options, each=((), ())):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    both = ["--coordinator", coordinator, "--num-processes", number, "--process-id"]
    return [start(out, *both, index, *options, *each[index]) for index in range(number)]


def finish(processes):
    errors = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], errors


def said(error):
    """The lines that are ours, not those of the library that connects processes."""
    return [line for line in error.splitlines() if not line.startswith("[Gloo]")]


def records(out):
    file = out / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{key: value for key, value in line.items() if key != "wall_seconds"} for line in lines]


def assert_close(found, wanted):
    assert len(found) == len(wanted)
    for line, other in zip(found, wanted):
        assert line.pop("extra", {}).keys() == other.pop("extra", {}).keys()
        assert line == pytest.approx(other, abs=1e-5)


@pytest.mark.slow
def test_two_processes_are_one_and_a_lost_one_ends_the_other(tmp_path):
    alone, together, torn = (tmp_path / name for name in ("alone", "together", "torn"))
    assert finish([start(alone, "--rounds", 12)])[0] == [0]
    codes, errors = finish(start_together(together, 2, "--rounds", 12))
    assert codes == [0, 0], errors
    assert_close(records(together), records(alone))
    assert json.loads((together / "config.json").read_text())["chosen_plan"] == "scan,mesh:4"

    first, second = start_together(torn, 2, "--rounds", 12)
    while len(records(torn)) < 2 and first.poll() is None:
        time.sleep(0.02)
    second.kill()
    (code, _), (error, _) = finish([first, second])
    assert code != 0
    assert "error: a process of this run is lost" in error
    assert 2 <= len(records(torn)) < 12
    assert finish([start(torn, "--rounds", 12, "--resume")])[0] == [0]
    assert_close(records(torn), records(alone))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_signal_to_any_process_ends_all_with_a_checkpoint(tmp_path, victim):
    out = tmp_path / "run"
    processes = start_together(out, 2, "--rounds", 4000)
    while len(records(out)) < 2 and processes[0].poll() is None:
        time.sleep(0.02)
    processes[victim].send_signal(signal.SIGTERM)
    codes, errors = finish(processes)
    assert codes == [143, 143], errors
    done = len(records(out))
    assert all(f"SIGTERM: stopped after round {done}; --resume continues" in error for error in errors)
    assert (out / "checkpoints" / f"{done:08d}").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("each", "message"),
    [
        ((["--seed", 0], ["--seed", 1]), "seed="),
        (([], ["--partition", "shards:2"]), "data.partition="),
        (([], ["--set", "data.name=npz:nowhere"]), "data.name='npz:nowhere'"),
    ],
)
def test_processes_that_were_started_differently_end_in_one_line_each(tmp_path, each, message):
    codes, errors = finish(start_together(tmp_path / "run", 2, "--rounds", 4, each=each))
    assert codes == [2, 2], errors
    for error in errors:
        (line,) = said(error)
        assert line.startswith("error: ")
        assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_port_in_use_and_a_first_process_that_is_not_there_end_in_one_line(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        coordinator = f"127.0.0.1:{taken.getsockname()[1]}"
        options = ["--coordinator", coordinator, "--num-processes", "2", "--join-timeout", "1"]
        second = start(tmp_path / "run", *options, "--process-id", 1)
        # The first looks at its port before it connects, which a process does but once.
        first = main.main([*RUN, "--out", str(tmp_path / "run"), *options, "--process-id", "0"])
        (code,), (error,) = finish([second])
    errors = [capsys.readouterr().err, error]
    assert [first, code] == [2, 2]
    assert [len(said(error)) for error in errors] == [1, 1]
    assert "must have a port that is free" in errors[0]
    assert "must be reached by all processes within 1 seconds" in errors[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coordinator", "127.0.0.1:99999", "--num-processes", "2", "--process-id", "0"], "HOST:PORT"),
        (["--coordinator", "127.0.0.1:1"], "must go with --num-processes and --process-id"),
        (["--coordinator", "x", "--num-processes", "2", "--process-id", "0"], "must be HOST:PORT"),
        (["--coordinator", "x:1", "--num-processes", "2", "--process-id", "2"], "must be from 0 to 1"),
    ],
)
def test_processes_that_are_none(tmp_path, capsys, options, message):
    assert main.main([*RUN, "--out", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
