"""Golden trajectories: every algorithm gives what it gave before the contract's second version.

Each file of ``tests/golden`` holds the records of one run on the embedded digits, made by the program as it
was before the redesign. Bytes and FLOPs are exact; losses and accuracies agree to rounding.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from fedjax_masks.algorithms import registry

GOLDEN = Path(__file__).parent / "golden"
EXACT = ("round", "bytes", "flops", "clients")
COMMAND = (
    *("run", "--dataset", "digits", "--partition", "shards:2", "--clients", "20", "--cohort", "5", "--quiet"),
    *("--rounds", "8", "--eval-every", "4", "--batch-size", "10", "--seed", "7"),
)
# Options whose defaults were others then.
OPTIONS = {
    "fedmask": ("keep_scores=false",),
    "fedskel": ("cohorts=cycle", "rest=own", "absent=ignore", "warm_up=0"),
    "mpfl": ("optimizer=adam", "lr=0.01"),
}
RECORDED = "0.10.2"  # another version of jax rounds otherwise, which training amplifies


def records(name, out):
    """The records of a run in a process of its own: the tests' compiler flags change rounding."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    epochs = "1" if name == "fedsgd" else "2"
    words = [*COMMAND, "--algorithm", name, "--epochs", epochs, "--out", str(out)]
    words += [word for option in OPTIONS.get(name, ()) for word in ("--set", f"algorithm.{option}")]
    command = [sys.executable, "-m", "fedjax_masks.cli", *words]
    subprocess.run(command, check=True, env=environment, timeout=300)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def flat(record):
    return {**{k: v for k, v in record.items() if k != "extra"}, **record["extra"]}


@pytest.mark.slow
@pytest.mark.skipif(jax.__version__ != RECORDED, reason="recorded with another jax")
@pytest.mark.parametrize("name", sorted(registry.REGISTRY))
def test_an_algorithm_repeats_its_golden_trajectory(name, tmp_path):
    golden = [json.loads(line) for line in (GOLDEN / f"{name}.jsonl").read_text().splitlines()]
    for record, expected in zip(records(name, tmp_path / "run"), golden, strict=True):
        record, expected = flat(record), flat(expected)
        for key, value in expected.items():
            if value is None or any(part in key for part in EXACT):
                assert record[key] == value, key
            else:
                assert record[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key


def test_every_algorithm_has_a_golden_trajectory():
    assert {path.stem for path in GOLDEN.glob("*.jsonl")} == set(registry.REGISTRY)
