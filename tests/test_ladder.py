"""Gaps by rung: pairing, intervals, statements, and the figure's file."""

import json

import ladder
import numpy as np
import pytest
from scipy import stats


def run(name, seed, accuracy, data="digits", size=10):
    return {
        "run": f"{name},seed={seed}",
        "seed": seed,
        "data": {"name": data},
        "accuracy": accuracy,
        "bytes_up_total": size,
        "bytes_down_total": size,
    }


OURS, RIVAL = [0.9, 0.8, 0.85], [0.8, 0.75, 0.77]
LINES = [
    *(run("ours", seed, value) for seed, value in enumerate(OURS)),
    *(run("local", seed, value) for seed, value in enumerate(RIVAL)),
    run("local", 7, 0.1),
    run("fedavg", 0, 0.5, size=40),
]


@pytest.fixture
def files(tmp_path):
    lines = {"one": LINES, "two": [line for line in LINES if not line["run"].startswith("ours,seed=1")]}
    for name, some in lines.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, some)) + "\n")
    return [f"x{index}={tmp_path / name}" for index, name in enumerate(lines, start=1)]


def test_gaps_are_paired_by_seed_on_every_rung(files):
    first, second = ladder.points(ladder.read_rungs(files), ["ours", "other"], "local", "accuracy", "fedavg")
    assert (first.rung, second.rung) == ("x1", "x2")
    assert first.gaps == pytest.approx([10, 5, 8])
    assert second.gaps == pytest.approx([10, 8])
    assert first.share == 0.25


def test_a_statement_needs_the_whole_interval():
    values = 100 * (np.array(OURS) - RIVAL)
    low, _ = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    assert low > 0
    statements = [ladder.statement(some) for some in (values, -values, values - low - 0.1, values[:1])]
    assert statements == ["above", "below", "no difference shown", "one seed shows no order"]


def test_the_command_prints_a_table_and_draws_a_figure(files, tmp_path, capsys):
    out = tmp_path / "figure.png"
    words = ["--ours", "ours", "--rival", "local", "--key", "accuracy", "--bytes-of", "fedavg"]
    ladder.main([*words, "--out", str(out), *files])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows[0] == "| digits | x1 | ours | 7.7 ± 6.3 | above | 0.2500 | 3 |"
    assert rows[1].startswith("| digits | x2 | ours | 9.0 ± 12.7 | no difference shown |")
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["one", "x1=missing.jsonl"])
def test_a_rung_without_results_is_named(text):
    with pytest.raises(ValueError, match=f"rung='{text}'"):
        ladder.read_rungs([text])
