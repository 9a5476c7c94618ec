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


@pytest.fixture
def shell(installed, tmp_path):
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))

    def call(*words, code=0):
        command = [sys.executable, "-m", "fedjax_masks.cli", *words]
        environment = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    return call


def entries(text):
    """The names and texts of a list."""
    return dict(line.split(maxsplit=1) for line in text.splitlines()[1:])


def test_an_algorithm_of_another_package_is_listed_with_its_keys(shell):
    algorithms = entries(shell("list", "algorithms"))
    line = "Damped FedAvg: every client sends a part of its update."
    assert algorithms["damped"] == algorithms["damped-slow"] == line
    assert algorithms["fedavg"].startswith("FedAvg: ")
    assert "must be importable as damped_fedavg_broken:anything" in algorithms["broken"]
    keys = entries(shell("list", "keys", "--algorithm", "damped"))
    factor = "Factor of every update; a finite number above 0 and at most 1; default 0.5"
    assert keys["algorithm.factor"] == factor
    assert keys["algorithm.mode"].endswith("one of scale, none; default scale")
    assert "default 0.03" in keys["algorithm.lr"]
    assert "algorithm.training" not in keys
    keys = entries(shell("list", "keys"))
    assert keys["algorithm.factor"] == f"{factor} (damped, damped-slow)"
    assert "0.01 (damped-slow, mpfl)" in keys["algorithm.lr"]
    assert "2 (damped-slow)" in keys["training.epochs"]


def test_its_options_are_checked_and_its_faults_are_one_line(shell):
    message = shell("run", "--algorithm", "damped", "--set", "algorithm.factor=2", "--out", "run", code=2)
    assert message == "error: algorithm.factor=2: must be a finite number above 0 and at most 1\n"
    message = shell("run", "--algorithm", "damped", "--set", "algorithm.factr=1", "--out", "run", code=2)
    assert "the nearest is algorithm.factor" in message
    message = shell("run", "--algorithm", "broken", "--out", "run", code=2)
    assert message.startswith("error: algorithm.name=broken: must be importable as damped_fedavg_broken:")
    assert "RuntimeError: no license" in message
    assert message.count("\n") == 1


def test_it_runs(shell, tmp_path):
    assert "damped" in shell("run", "--algorithm", "damped", "--epochs", "1", *TINY, "--out", "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["round"] == 2


@pytest.mark.slow
def test_it_is_swept_and_reported_beside_others(shell, tmp_path):
    (tmp_path / "sweep.toml").write_text(SWEEP)
    assert "factor=0.5" in shell("sweep", "sweep.toml", "--out", "sweep")
    with open(tmp_path / "sweep" / "runs.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    accuracies = [row["global_accuracy"] for row in rows]
    assert [row["algorithm.name"] for row in rows] == ["damped", "damped", "fedavg"]
    assert accuracies[0] != accuracies[1] == accuracies[2]  # undamped, it is FedAvg
    assert "damped" in shell("report", "sweep", "--out", "page.html")
    assert "damped" in (tmp_path / "page.html").read_text("utf-8")
