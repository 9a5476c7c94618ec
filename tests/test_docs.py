"""What the documentation shows works: Python is run, commands are parsed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import optax
import pytest

import fedjax_masks as fm
from fedjax_masks.algorithms.registry import REGISTRY
from fedjax_masks.cli import main
from fedjax_masks.experiment import config
from fedjax_masks.experiment.grid import read_sweep

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
COMMANDS = [*PAGES, ROOT / "README.md"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The calls of the command line in a page, without what a shell would do around them."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = [line for part in text.splitlines() for line in part.split("&&")]
    return [
        words[1:]
        for line in lines
        if (words := shlex.split(line, comments=True)) and words[0] == "fedjax-masks"
    ]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.stem)
def test_python_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names, registry = {"__name__": page.stem}, dict(REGISTRY)
    monkeypatch.setattr("fedjax_masks.algorithms.registry.REGISTRY", registry)
    for block in blocks(page, "python"):
        exec(compile(block, str(page.relative_to(ROOT)), "exec"), names)


@pytest.mark.parametrize("page", [p for p in COMMANDS if commands(p)], ids=lambda p: p.stem)
def test_commands_are_accepted(page):
    for words in commands(page):
        arguments = main._parser().parse_args(words)
        if arguments.command is main._run:
            config.make_config(main._values(arguments, main._FLAGS))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "toml")], ids=lambda p: p.stem)
def test_sweeps_are_accepted(page, tmp_path):
    for block in blocks(page, "toml"):
        (tmp_path / "sweep.toml").write_text(block, "utf-8")
        assert len(read_sweep(tmp_path / "sweep.toml")) > 1


def test_every_key_that_a_run_writes_is_explained():
    task = fm.load_task("digits", clients=4, partition="iid", examples_per_client=10)
    run = fm.simulate(fm.fedavg(fm.models.mlp(task, hidden=(4,)), optax.sgd(0.1)), task, rounds=1, cohort=2)
    written = {*run.records[-1], *run.summary, "checkpoints_failed", "epsilon", "delta"}
    text = (DOCS / "reference" / "run-directory.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert explained == written


@pytest.mark.slow
def test_a_file_with_an_algorithm_of_ones_own_has_the_command_line(tmp_path):
    algorithm, *_, name = [
        block
        for block in blocks(DOCS / "how-to" / "own-algorithm.md", "python")
        if "def shared_masks" in block or "REGISTRY" in block
    ]
    file = tmp_path / "shared_masks.py"
    file.write_text('"""Shared masks: one for all."""\n' + algorithm + name, "utf-8")

    def call(*words):
        command = [sys.executable, str(file), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    assert re.search("shared-masks +Shared masks: one for all", call("list", "algorithms"))
    few = ["--clients", "4", "--cohort", "2", "--rounds", "2", "--model", "mlp", "--out", "run", "--quiet"]
    call("run", "--algorithm", "shared-masks", "--set", "algorithm.lr=30", *few)
    assert "shared-masks" in call("report", "run", "--out", "own.html")


def test_the_page_of_benchmarks_is_made_of_the_committed_results():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_benchmarks.py"], capture_output=True, text=True, check=True
    )
    assert done.stdout == (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
