import json
from typing import get_args

import pytest

from fedjax_masks.algorithms.registry import REGISTRY
from fedjax_masks.claims import all_claims, claim
from fedjax_masks.cli import main

MISSED = {
    "communication of Top-k with its indices, up (figure 10)",
    "less communication than Per-FedAvg, recognition of activities (abstract)",
    "less computation (abstract; figure: 2.42x to 3.02x, and 1.23x)",
    "less time than SplitFed, up to (abstract)",
    "split training of ResNet12 on a Raspberry Pi 4, ten rounds (log)",
    "EcoFed-type training of ResNet12 on a Raspberry Pi 4, ten rounds (log)",
    "an upload of the most even masks, 2NN",
}
"""What is counted and is not what was published; every row says why."""


@pytest.fixture(scope="module")
def claims():
    return all_claims()


def test_what_is_counted_agrees_to_the_last_digit(claims):
    counted = [row for row in claims if row.label == "exact" and row.ours is not None]
    assert counted
    assert {row.claim for row in counted if row.verdict != "met"} == MISSED


def test_every_row_says_what_it_is_and_where_it_comes_from(claims):
    for row in claims:
        assert row.label in get_args(claim.Label)
        assert row.verdict in get_args(claim.Verdict)
        assert row.source
        assert row.command
        assert (row.ours is None) == (row.verdict == "not reproducible here")
        assert bool(row.note) == (row.verdict != "met")
    assert len({(row.system, row.claim) for row in claims}) == len(claims)


def test_every_algorithm_has_a_row(claims):
    # The three protocols that EcoFed is measured against are in its rows.
    assert set(REGISTRY) - {"splitfed", "lgl", "fedgkt"} == {row.system for row in claims}


def test_a_count_that_is_off_by_one_is_missed():
    missed = claim.counted("x", "a count", 17, 18, "bytes", why="of a header")
    assert (missed.verdict, missed.note) == ("missed", "off by +1.0 bytes: of a header")
    met = claim.counted("x", "a share", 0.03, 0.0312, "", digits=2, why="of a header")
    assert (met.verdict, met.note) == ("met", "")


@pytest.mark.parametrize(("ours", "note"), [([10, 20.4], ""), ([10, 21], "off by up to 1.0 %")])
def test_of_a_list_every_figure_counts(ours, note):
    row = claim.listed("x", "shares", [10, 20], ours, "%")
    assert (row.verdict == "met", row.note) == (not note, note)


@pytest.mark.parametrize(("ours", "note"), [(1.0, ""), (0.5, ""), (1.25, "by 0.25 bits: of a header")])
def test_a_bound_may_be_reached(ours, note):
    row = claim.bounded("x", "bits", "1 bit", ours, "bits", high=1, why="of a header")
    assert (row.verdict == "met", row.note) == (not note, note)


def test_results_come_with_their_commit_and_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "_RESULTS", tmp_path)
    read = lambda: claim.from_results(
        *("x", "faster", "2x", "measured", "a.jsonl"),
        lambda lines: (f"{lines[0]['r']}x", lines[0]["r"] >= 2),
        why="the cache is small",
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


def test_the_command_prints_json_and_a_table(claims, monkeypatch, capsys):
    monkeypatch.setattr("fedjax_masks.claims.all_claims", lambda: claims)
    assert main.main(["claims", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    keys = ["system", "claim", "paper", "ours", "class", "verdict", "command", "source", "note"]
    assert [list(row) for row in rows] == [keys] * len(claims)
    assert main.main(["claims"]) == 0
    printed = capsys.readouterr().out
    assert "16,786,136" in printed
    assert "off by -2.435 x" in printed
