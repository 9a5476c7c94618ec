import json
import os
import shutil
import subprocess
import sys
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from fedjax_masks import claims
from fedjax_masks.algorithms.registry import REGISTRY
from fedjax_masks.claims import claim, result_files
from fedjax_masks.cli import main

ROOT = Path(__file__).parent.parent
MISSED = {
    "fedmask": {
        "upload of Top-k, values with indices (figure 10)",
        "reduction of communication against Per-FedAvg, activity recognition (abstract)",
        "reduction of computation (abstract; figure: 2.42x to 3.02x, and 1.23x)",
    },
    "ecofed": {
        "largest reduction of time against SplitFed (abstract)",
        "communication of split training, ResNet12 on a Raspberry Pi 4, ten rounds (log)",
        "communication of EcoFed-type training, ResNet12 on a Raspberry Pi 4, ten rounds (log)",
    },
    "baselines": {"largest upload of a coded mask, half of it ones, 2NN"},
}
"""What is counted and is not what was published; every row says why."""

PARTS = {module.__name__.rpartition(".")[2]: module for module in claims._SYSTEMS}
FAST = ("fedmask",)  # the others take half a minute
every_part = pytest.mark.parametrize(
    "part", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in PARTS]
)


@cache
def rows_of(part):
    return PARTS[part].claims()


@every_part
def test_what_is_counted_agrees_to_the_last_digit(part):
    counted = [row for row in rows_of(part) if row.label == "exact" and row.ours is not None]
    assert counted
    assert {row.claim for row in counted if row.verdict != "met"} == MISSED.get(part, set())


@every_part
def test_every_row_says_what_it_is_and_where_it_comes_from(part):
    for row in rows_of(part):
        assert row.label in get_args(claim.Label)
        assert row.verdict in get_args(claim.Verdict)
        assert row.source
        assert row.command
        assert (row.ours is None) == (row.verdict == "not reproducible here")
        assert bool(row.note) == (row.verdict != "met")


@pytest.mark.slow
def test_every_algorithm_has_a_row_and_no_two_rows_are_of_one_claim():
    rows = [row for part in PARTS for row in rows_of(part)]
    # The three protocols that EcoFed is measured against are in its rows.
    assert set(REGISTRY) - {"splitfed", "lgl", "fedgkt"} == {row.system for row in rows}
    assert len({(row.system, row.claim) for row in rows}) == len(rows)


def test_a_count_that_is_off_by_one_is_missed():
    missed = claim.exact_claim("x", "a count", 17, 18, "bytes", reason="of a header")
    assert (missed.verdict, missed.note) == ("missed", "off by +1.0 bytes: of a header")
    met = claim.exact_claim("x", "a share", 0.03, 0.0312, "", digits=2, reason="of a header")
    assert (met.verdict, met.note) == ("met", "")


@pytest.mark.parametrize(("ours", "note"), [([10, 20.4], ""), ([10, 21], "off by up to 1.0 %")])
def test_of_a_list_every_figure_counts(ours, note):
    row = claim.list_claim("x", "shares", [10, 20], ours, "%")
    assert (row.verdict == "met", row.note) == (not note, note)


@pytest.mark.parametrize(
    ("ours", "note"), [(1.0, ""), (0.5, ""), (1.25, "outside the bound by 0.25 bits: of a header")]
)
def test_a_bound_may_be_reached(ours, note):
    row = claim.bounded_claim("x", "bits", "1 bit", ours, "bits", high=1, reason="of a header")
    assert (row.verdict == "met", row.note) == (not note, note)


def test_results_come_with_their_commit_and_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(result_files, "_RESULTS", tmp_path)
    read = lambda: result_files.result_claim(
        *("x", "faster", "2x", "measured", "a.jsonl"),
        lambda lines: (f"{lines[0]['r']}x", lines[0]["r"] >= 2),
        reason="the cache is small",
    )
    absent = read()
    assert absent.verdict == "not reproducible here"
    assert "a.jsonl" in absent.note
    made = {"commit": "abc1234", "machine": "a laptop", "command": "time it"}
    (tmp_path / "provenance.json").write_text(json.dumps({"a.jsonl": made}))
    for ratio, verdict, note in ((2.5, "met", ""), (1.5, "missed", "the cache is small")):
        (tmp_path / "a.jsonl").write_text(json.dumps({"r": ratio}) + "\n")
        row = read()
        assert (row.ours, row.verdict, row.command, row.note) == (f"{ratio}x", verdict, "time it", note)
        assert "abc1234" in row.source
        assert "a laptop" in row.source


def test_the_command_prints_json_and_a_table(monkeypatch, capsys):
    counted = [SimpleNamespace(claims=partial(rows_of, part)) for part in FAST]
    monkeypatch.setattr(claims, "_SYSTEMS", counted)
    assert main.main(["claims", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    keys = ["system", "claim", "paper", "ours", "class", "verdict", "command", "source", "note"]
    assert [list(row) for row in rows] == [keys] * sum(len(rows_of(part)) for part in FAST)
    assert main.main(["claims"]) == 0
    printed = capsys.readouterr().out
    assert "16,786,136" in printed
    assert "off by -2.435 x" in printed


@pytest.mark.slow
@pytest.mark.skipif(int(version("setuptools").split(".")[0]) < 77, reason="setuptools is too old to build")
def test_an_installed_wheel_has_the_figures_of_the_repository(tmp_path):
    # A build leaves files beside what it builds.
    source = tmp_path / "source"
    shutil.copytree(ROOT / "fedjax_masks", source / "fedjax_masks")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True, capture_output=True)
    options = {"env": {**os.environ, "PYTHONPATH": str(target)}, "cwd": tmp_path, "text": True}
    where = [sys.executable, "-c", "import fedjax_masks; print(fedjax_masks.__file__)"]
    assert Path(subprocess.check_output(where, **options).strip()).is_relative_to(target)
    command = [sys.executable, target / "bin" / "fedjax-masks", "claims", "--json"]
    printed = json.loads(subprocess.check_output(command, **options))
    assert printed == [row.as_json() for part in PARTS for row in rows_of(part)]
