import json
import math
import os
import subprocess
import sys

import pytest

from fedjax_masks.benchmarks import WORKLOADS, measure, scale
from fedjax_masks.benchmarks.skeleton import bench_skeleton

FIGURES = {
    "fedmask-compact": ["latency_speedup", "fedmask"],
    "masked-inference": ["latency_speedup", "fedmask", "mpfl", "adp"],
    "fedskel-rounds": ["ratio", "round_speedup"],
    "runner-overhead": ["bare_s", "runner_s", "overhead"],
}
SCALES = {
    "scale-clients": ("clients", ["rounds_per_s", "relative", "predicted_mb", "peak_mb", "store_mb"]),
    "scale-cohort": ("cohorts", ["clients_per_s", "relative", "memory_mb"]),
    "scale-devices": ("devices", ["rounds_per_s", "speedup"]),
}
OF_ROUNDS = ["rounds_per_s", "compile_s", "achieved_gflops", "padding_efficiency", "num_compilations"]


def figures_of(workload, rounds):
    """In a process of its own, compiled as users have it: what tests compile runs many times slower."""
    command = [sys.executable, "-m", "fedjax_masks.cli", "bench", "--workload", workload]
    command += ["--rounds", str(rounds), "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.strip()  # what goes on, while it does
    return json.loads(done.stdout)


def test_measuring_says_how_far_it_is(capsys):
    calls = []
    taken = measure.time_in_turns(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, title="work"
    )
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 3, "b": 3}
    assert calls == ["a", "b"] * 4
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("work: 3/3 turns, ")


# Of a size for accelerators: minutes for a round on a CPU.
LARGE = {"fedskel-backward", "blaze-cnn-100", "ssfl-cifar10", "ssfl-fedskel"}


@pytest.mark.slow
@pytest.mark.parametrize("workload", [name for name in WORKLOADS if name not in LARGE | set(SCALES)])
def test_every_workload_prints_its_figures(workload):
    figures = figures_of(workload, 1)
    assert figures["workload"] == workload
    assert set(FIGURES.get(workload, OF_ROUNDS)) <= set(figures)
    assert all(math.isfinite(value) for value in figures.values() if isinstance(value, (int, float)))
    if workload in FIGURES:
        return
    assert figures["num_compilations"] == 1
    assert 0 < figures["padding_efficiency"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("workload", SCALES)
def test_scales_have_figures_at_every_size(monkeypatch, workload):
    monkeypatch.setattr(scale, "_POPULATIONS", (200, 100_000))
    monkeypatch.setattr(scale, "_COHORT", 5)
    monkeypatch.setattr(scale, "_COHORTS", (2, 5))
    figures = WORKLOADS[workload].run(rounds=1)
    key, wanted = SCALES[workload]
    assert len(figures[key]) > 1
    for found in figures[key].values():
        assert set(wanted) <= set(found)
        assert all(math.isfinite(found[name]) and found[name] > 0 for name in wanted)
    if workload == "scale-clients":  # in two rounds at most ten clients were there, and left a row
        row = figures["row_bytes"] + 4
        assert all(found["store_mb"] * 1e6 / row < 10.1 for found in figures[key].values())


@pytest.mark.slow
def test_a_compacted_model_is_smaller_and_the_same():
    figures = figures_of("fedmask-compact", 2)
    assert set(figures["latency_speedup"]["fedmask"]) == {"1", "32"}
    compared = figures["fedmask"]
    assert compared["parameters_compacted"] < compared["parameters_masked"]
    assert compared["max_logit_difference"] < 1e-5


@pytest.mark.slow
def test_skeletons_are_timed_layer_by_layer():
    """On a small model: ResNet-18 takes minutes."""
    figures = bench_skeleton(rounds=1, name="cifar-cnn")
    ratios = {"0.4", "0.2", "0.1"}
    assert set(figures["conv_backward_speedup"]) == set(figures["training_step_speedup"]) == ratios
    assert [layer["count"] for layer in figures["layers"].values()] == [1, 1]
    assert all(set(layer["speedup"]) == ratios for layer in figures["layers"].values())
    assert figures["round_time_ratio"] > 0
