"""The script that measures an accelerator."""

import json
import sys

import accelerator
import pytest


def run(monkeypatch, out, checks):
    monkeypatch.setattr(accelerator, "checks", lambda out, small: iter(checks))
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--out", str(out)])
    accelerator.main()


def lines(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text("utf-8").splitlines()]


def test_a_check_that_fails_is_a_line_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    checks = [("first", lambda: {"x": 1}), ("second", lambda: 1 / 0), ("third", accelerator.device)]
    with pytest.raises(SystemExit, match="1 checks failed"):
        run(monkeypatch, tmp_path, checks)
    first, second, third = lines(tmp_path)
    assert (first["check"], first["x"]) == ("first", 1)
    assert "ZeroDivisionError" in second["error"]
    assert third["platform"] == "cpu"
    assert "second: failed: ZeroDivisionError" in capsys.readouterr().out


def test_all_checks_have_names_of_their_own(tmp_path):
    for small in (False, True):
        names = [name for name, _ in accelerator.checks(tmp_path, small=small)]
        assert len(set(names)) == len(names)


@pytest.mark.slow
def test_a_program_of_the_cpu_equals_itself(monkeypatch, tmp_path):
    run(monkeypatch, tmp_path, [("fedavg", lambda: accelerator.beside_cpu("fedavg"))])
    (line,) = lines(tmp_path)
    assert line["largest_difference"] < 1e-5
