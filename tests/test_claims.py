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
from fedjax_masks.claims import claim, counts, outcomes, result_files, trends
from fedjax_masks.cli import main

ROOT = Path(__file__).parent.parent
MISSED = {
    "fedmask": {
        "transfer time of FedAvg's 2000 rounds (figure 2)",
        "upload of Top-k, a tenth of the update (figure 10)",
        "reduction of communication against Per-FedAvg, activity recognition (abstract)",
        "reduction of computation (abstract; figure: 2.42x to 3.02x, and 1.23x)",
    },
    "fedskel": {"communication saved (abstract)"},
    "adp": {"FLOPs of inference (abstract)"},
    "ecofed": {
        "largest reduction of communication against FedAvg (abstract)",
        "communication of split training on a Raspberry Pi 4 (log)",
        "communication of EcoFed-type training on a Raspberry Pi 4 (log)",
    },
    "baselines": {"largest upload of a coded mask (abstract)"},
}
"""Counted figures that differ from the published ones under some conditions; every row says why."""

WITHOUT_FIGURE = ("not run", "not reproducible here")
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
    differing = {row.claim for row in counted if row.verdict not in ("met", "consistent")}
    assert differing == MISSED.get(part, set())


@every_part
def test_every_row_says_what_it_is_and_where_it_comes_from(part):
    for row in rows_of(part):
        assert row.label in get_args(claim.Label)
        assert row.basis in get_args(claim.Basis)
        assert row.verdict in get_args(claim.Verdict)
        assert row.conditions
        assert row.source
        assert row.command
        assert (row.ours is None) == (row.verdict in WITHOUT_FIGURE)
        assert bool(row.note) == (row.verdict not in ("met", "consistent"))


@every_part
def test_figures_derived_here_are_checks_and_no_others_are(part):
    for row in rows_of(part):
        if row.ours is not None:
            words = ("consistent", "inconsistent") if row.basis == "derived here" else ("met", "missed")
            assert row.verdict in words


@every_part
def test_rows_of_one_claim_differ_in_their_conditions_alone(part):
    rows = rows_of(part)
    assert len({(row.system, row.claim, row.conditions) for row in rows}) == len(rows)
    claims_of_rows = {(row.system, row.claim): (row.paper, row.basis, row.label) for row in rows}
    for row in rows:
        # The figure of bounds and of orders is the same in each row.
        assert claims_of_rows[row.system, row.claim] == (row.paper, row.basis, row.label)


@pytest.mark.slow
def test_every_algorithm_has_a_row():
    rows = [row for part in PARTS for row in rows_of(part)]
    # The three protocols that EcoFed is measured against are in its rows.
    assert set(REGISTRY) - {"splitfed", "lgl", "fedgkt"} == {row.system for row in rows}


def row(verdict, conditions="A", basis="published", claim_text="faster", label="exact"):
    fields = ("x", claim_text, basis, "2x", conditions, "1x", label, verdict, "run", "a file")
    return claim.Claim(*fields)


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["met", "met"], "met"),
        (["met", "missed"], "met in part"),
        (["met", "not run"], "met in part"),
        (["missed", "not run"], "missed"),
        (["not reproducible here", "not run"], "not run"),
        (["not reproducible here"], "not reproducible here"),
        (["consistent", "inconsistent"], "consistent in part"),
    ],
)
def test_a_claim_is_met_if_all_its_rows_are(verdicts, whole):
    (outcome,) = outcomes.outcomes([row(verdict) for verdict in verdicts])
    assert outcome.verdict == whole


def test_an_outcome_names_the_conditions():
    (outcome,) = outcomes.outcomes([row("missed", "B"), row("met", "A"), row("met", "C")])
    assert outcome.details == "met under A | C; missed under B"


def test_the_summary_counts_checks_apart():
    rows = [
        *(row("met", "A"), row("missed", "B"), row("met", claim_text="smaller", label="trend")),
        *(row("not run", basis="authors' code", claim_text="a log"),),
        *(row("consistent", basis="derived here", claim_text="a formula"),),
    ]
    assert claims.summary(rows) == (
        "published: 1 of 2 met (exact 0 of 1, trend 1 of 1), 1 met in part; "
        "authors' code: 0 of 1 met (exact 0 of 1), 1 not run; "
        "consistency checks: 1 of 1 consistent (exact 1 of 1)"
    )


def test_a_count_that_is_off_by_one_is_missed():
    options = {"conditions": "LeNet", "basis": "published", "reason": "of a header"}
    missed = counts.exact_claim("x", "a count", 17, 18, "bytes", **options)
    assert (missed.verdict, missed.note) == ("missed", "off by +1.0 bytes: of a header")
    met = counts.exact_claim("x", "a share", 0.03, 0.0312, "", digits=2, **options)
    assert (met.verdict, met.note) == ("met", "")
    check = counts.exact_claim("x", "a count", 17, 17, "bytes", conditions="LeNet")
    assert check.verdict == "consistent"


@pytest.mark.parametrize(("ours", "note"), [([10, 20.4], ""), ([10, 21], "off by up to 1.0 %")])
def test_of_a_list_every_figure_counts(ours, note):
    row = counts.list_claim("x", "shares", [10, 20], ours, "%", conditions="LeNet")
    assert (row.verdict == "consistent", row.note) == (not note, note)


@pytest.mark.parametrize(
    ("ours", "note"), [(1.0, ""), (0.5, ""), (1.25, "outside the bound by 0.25 bits: of a header")]
)
def test_a_bound_may_be_reached(ours, note):
    options = {"conditions": "LeNet", "basis": "published", "reason": "of a header"}
    row = counts.bounded_claim("x", "bits", "1 bit", ours, "bits", high=1, **options)
    assert (row.verdict == "met", row.note) == (not note, note)


@pytest.fixture
def write_results(tmp_path, monkeypatch):
    """Writes a result file with its provenance into an empty folder of results."""
    monkeypatch.setattr(result_files, "_RESULTS", tmp_path)

    def write(lines):
        made = {"commit": "abc1234", "machine": "a laptop", "command": "time it"}
        (tmp_path / "provenance.json").write_text(json.dumps({"a.jsonl": made}))
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return write


def test_results_come_with_their_commit_and_machine(write_results):
    statement = claim.Statement("x", "faster", "2x", "measured", "published")
    read = lambda: result_files.result_claim(
        *(statement, "LeNet", "a.jsonl"),
        lambda lines: (f"{lines[0]['r']}x", lines[0]["r"] >= 2),
        reason="the cache is small",
        command="measure it",
    )
    absent = read()
    assert (absent.verdict, absent.command) == ("not run", "measure it")
    assert "a.jsonl" in absent.note
    for ratio, verdict, note in ((2.5, "met", ""), (1.5, "missed", "the cache is small")):
        write_results([{"r": ratio}])
        row = read()
        assert (row.ours, row.verdict, row.command, row.note) == (f"{ratio}x", verdict, "time it", note)
        assert "abc1234" in row.source
        assert "a laptop" in row.source


@pytest.mark.parametrize(
    ("gaps", "verdict", "note"),
    [
        ([1.0, 2.0, 1.5], "met", ""),
        ([0.1, 2.0, 0.9], "missed", "open, as the interval includes 0: few seeds"),
        ([-1.0, -2.0, -1.5], "missed", "refuted, as the whole interval is below 0: few seeds"),
        ([3.0], "missed", "open, as one seed has no interval: few seeds"),
    ],
)
def test_the_whole_interval_must_be_on_the_claimed_side(write_results, gaps, verdict, note):
    value = {"data": {"name": "digits"}, "model": {"name": "lenet"}, "rounds": 5}
    ours = [{"run": f"new,seed={seed}", "seed": seed, "a": gap, **value} for seed, gap in enumerate(gaps)]
    write_results([*ours, *({"run": f"old,seed={n}", "seed": n, "a": 0.0} for n in range(len(gaps)))])
    comparison = trends.Comparison("a.jsonl", "new", "old", lambda line: line["a"], reason="few seeds")
    statement = claim.Statement("x", "better", "higher", "trend", "published")
    (row,) = trends.trend_claims(statement, [comparison])
    assert (row.verdict, row.note) == (verdict, note)
    assert row.conditions.startswith("defaults; digits, lenet, 5 rounds, ")


def test_a_comparison_whose_file_is_to_come_is_not_run(write_results):
    comparison = trends.Comparison("b.jsonl", "new", "old", len, options="warm", command="sweep it")
    statement = claim.Statement("x", "better", "higher", "trend", "published")
    (row,) = trends.trend_claims(statement, [comparison])
    assert (row.verdict, row.conditions, row.command) == ("not run", "warm", "sweep it")


def test_the_command_prints_json_and_a_table(monkeypatch, capsys):
    counted = [SimpleNamespace(claims=partial(rows_of, part)) for part in FAST]
    monkeypatch.setattr(claims, "_SYSTEMS", counted)
    assert main.main(["claims", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    keys = ["system", "claim", "basis", "paper", "conditions", "ours", "class", "verdict"]
    keys += ["command", "source", "note"]
    assert [list(row) for row in rows] == [keys] * sum(len(rows_of(part)) for part in FAST)
    monkeypatch.setenv("COLUMNS", "200")
    assert main.main(["claims"]) == 0
    printed = capsys.readouterr().out
    assert "16,786,136" in printed
    assert printed.index("Published in the papers") < printed.index("Consistency checks")
    assert "outside the bound by 2.44 x" in printed
    assert printed.splitlines()[-1].startswith("published: ")


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
