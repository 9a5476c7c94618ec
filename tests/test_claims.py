import json
from typing import get_args

import pytest

from fedjax_masks import cli
from fedjax_masks.claims import all_claims, claim

pytestmark = pytest.mark.xdist_group("claims")  # all rows are computed once


@pytest.fixture(scope="module")
def claims():
    return all_claims()


def test_what_is_counted_agrees_to_the_last_digit(claims):
    counted = [row for row in claims if row.label == "exact"]
    assert counted
    assert {row.verdict for row in counted} == {"met"}
    assert {row.source for row in counted} == {claim.LIVE}


def test_every_row_says_what_it_is_and_where_it_comes_from(claims):
    for row in claims:
        assert row.label in get_args(claim.Label)
        assert row.verdict in get_args(claim.Verdict)
        assert row.source
        assert (row.ours is None) == (row.verdict == "not reproducible here")
        assert row.ours is None or row.command


def test_a_count_that_is_off_by_one_is_missed():
    assert claim.counted("x", "a count", 17, 18, "bytes").verdict == "missed"
    assert claim.counted("x", "a share", 0.03, 0.0312, "", digits=2).verdict == "met"


def test_results_come_with_their_commit_and_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "_RESULTS", tmp_path)
    read = lambda: claim.from_results(
        "x", "faster", "2x", "measured", "a.jsonl", lambda lines: (f"{lines[0]['r']}x", lines[0]["r"] >= 2)
    )
    assert read().verdict == "not reproducible here"
    made = {"commit": "abc1234", "machine": "a laptop", "command": "time it"}
    (tmp_path / "provenance.json").write_text(json.dumps({"a.jsonl": made}))
    for ratio, verdict in ((2.5, "met"), (1.5, "missed")):
        (tmp_path / "a.jsonl").write_text(json.dumps({"r": ratio}) + "\n")
        row = read()
        assert (row.ours, row.verdict, row.command) == (f"{ratio}x", verdict, "time it")
        assert "abc1234" in row.source
        assert "a laptop" in row.source


def test_the_command_prints_json_and_a_table(claims, monkeypatch, capsys):
    monkeypatch.setattr("fedjax_masks.claims.all_claims", lambda: claims)
    assert cli.main(["claims", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    keys = ["system", "claim", "paper", "ours", "class", "verdict", "command", "source"]
    assert [list(row) for row in rows] == [keys] * len(claims)
    assert cli.main(["claims"]) == 0
    assert "16,786,136" in capsys.readouterr().out
