"""An algorithm of another package, installed as its users install it."""

import csv
import json
import os
import subprocess
import sys

import pytest

ALGORITHM = '''"""Damped FedAvg: every client sends a part of its update."""

from typing import Literal

import fedjax_masks as fm
from fedjax_masks.algorithms.registry import Entry
from fedjax_masks.core import trees
from fedjax_masks.core.options import PositiveShare

Mode = Literal["scale", "none"]


def damped(model, trainer, *, factor: PositiveShare = 0.5, mode: Mode = "scale", **training):
    """FedAvg with damped updates.

    Args:
      model: The model that all clients train.
      trainer: Local training, or its optimizer.
      factor: Factor of every update. It costs nothing on the wire.
      mode: Whether updates are damped at all.
      **training: Fields of the trainer.
    """
    base = fm.fedavg(model, trainer, **training)

    def train(round, message, client, data):
        client, update, info = base.train(round, message, client, data)
        return client, trees.scale(update, factor if mode == "scale" else 1.0), info

    return base._replace(train=train)


SLOW = Entry(damped, lr=0.01, epochs=2)
'''
ENTRY_POINTS = """[fedjax_masks.algorithms]
damped = damped_fedavg:damped
damped-slow = damped_fedavg:SLOW
broken = damped_fedavg_broken:anything
"""
SWEEP = """
rounds = 2
cohort = 2
data.clients = 4
model = { name = "mlp", hidden = [4] }
[[runs]]
algorithm.name = "damped"
grid.algorithm.factor = [0.5, 1.0]
[[runs]]
algorithm.name = "fedavg"
"""
TINY = ["--model", "mlp", "--set", "model.hidden=4", "--clients", "4", "--cohort", "2", "--rounds", "2"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with an installed package: its file, and the description of its distribution."""
    folder = tmp_path_factory.mktemp("site-packages")
    (folder / "damped_fedavg.py").write_text(ALGORITHM)
    (folder / "damped_fedavg_broken.py").write_text("raise RuntimeError('no\\nlicense')\n")
    about = folder / "damped_fedavg-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: damped-fedavg\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


COMMANDS = """
import contextlib, io, json, sys
from fedjax_masks.cli.main import main
found = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(words)
    found.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def shell(installed, folder):
    """Runs commands in one process, and returns of each the exit code and what it prints."""
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))

    def call(*commands):
        command = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
        environment = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


RUN = ["run", "--out", "run", "--algorithm"]


@pytest.fixture(scope="module")
def said(shell):
    commands = {
        "algorithms": ["list", "algorithms"],
        "keys": ["list", "keys", "--algorithm", "damped"],
        "all keys": ["list", "keys"],
        "out of range": [*RUN, "damped", "--set", "algorithm.factor=2"],
        "misspelt": [*RUN, "damped", "--set", "algorithm.factr=1"],
        "broken": [*RUN, "broken"],
    }
    return dict(zip(commands, shell(*commands.values()), strict=True))


def text_of(result):
    code, output, errors = result
    assert code == 0, errors
    return output


def error_of(result):
    code, _, errors = result
    assert code == 2
    return errors


def entries(text):
    """The names and texts of a list."""
    return dict(line.split(maxsplit=1) for line in text.splitlines()[1:])


def test_an_algorithm_of_another_package_is_listed_with_its_keys(said):
    algorithms, keys, all_keys = (entries(text_of(said[name])) for name in ("algorithms", "keys", "all keys"))
    line = "Damped FedAvg: every client sends a part of its update."
    assert algorithms["damped"] == algorithms["damped-slow"] == line
    assert algorithms["fedavg"].startswith("FedAvg: ")
    assert "must be importable as damped_fedavg_broken:anything" in algorithms["broken"]
    factor = "Factor of every update; a finite number above 0 and at most 1; default 0.5"
    assert keys["algorithm.factor"] == factor
    assert keys["algorithm.mode"].endswith("one of scale, none; default scale")
    assert "default 0.03" in keys["algorithm.lr"]
    assert "algorithm.training" not in keys
    assert all_keys["algorithm.factor"] == f"{factor} (damped, damped-slow)"
    assert "0.01 (damped-slow)" in all_keys["algorithm.lr"]
    assert "2 (damped-slow)" in all_keys["training.epochs"]


def test_its_options_are_checked_and_its_faults_are_one_line(said):
    message = "error: algorithm.factor=2: must be a finite number above 0 and at most 1\n"
    assert error_of(said["out of range"]) == message
    assert "the nearest is algorithm.factor" in error_of(said["misspelt"])
    broken = error_of(said["broken"])
    assert broken.startswith("error: algorithm.name=broken: must be importable as damped_fedavg_broken:")
    assert "RuntimeError: no license" in broken
    assert broken.count("\n") == 1


@pytest.mark.slow
def test_it_runs(shell, folder):
    (found,) = shell([*RUN, "damped", "--epochs", "1", *TINY])
    assert "damped" in text_of(found)
    assert json.loads((folder / "run" / "summary.json").read_text())["round"] == 2


@pytest.mark.slow
def test_it_is_swept_and_reported_beside_others(shell, folder):
    (folder / "sweep.toml").write_text(SWEEP)
    swept, reported = shell(
        ["sweep", "sweep.toml", "--out", "sweep"], ["report", "sweep", "--out", "page.html"]
    )
    assert "factor=0.5" in text_of(swept)
    with open(folder / "sweep" / "runs.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    accuracies = [row["global_accuracy"] for row in rows]
    assert [row["algorithm.name"] for row in rows] == ["damped", "damped", "fedavg"]
    assert accuracies[0] != accuracies[1] == accuracies[2]  # undamped, it is FedAvg
    assert "damped" in text_of(reported)
    assert "damped" in (folder / "page.html").read_text("utf-8")
