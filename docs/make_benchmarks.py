"""Makes the page of benchmarks: ``python docs/make_benchmarks.py > docs/benchmarks.md``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
_BENCHMARKS = _ROOT / "experiments" / "results"
_RESULTS = _ROOT / "fedjax_masks" / "claims" / "results"
_PREFACE = """# Benchmarks

`fedjax-masks bench` measured these figures on synthetic data; `experiments/benchmarks.py` runs all of its
workloads. Rates are medians. Two columns are shares of a round's time: *products* is the time that its matrix
products and convolutions would take at the rate of a large matrix product on the same machine, *traffic* the
time that its bytes would take at the rate of a large array. The larger share bounds the round. The rest goes
into patches of convolutions, into pooling, and into steps too small to fill a core.
"""
_ROUNDS = {
    "workload": "workload",
    "plan": "plan",
    "rounds_per_s": "rounds/s",
    "achieved_gflops": "GFLOP/s",
    "products_share": "products",
    "traffic_share": "traffic",
    "padding_efficiency": "useful slots",
    "compile_s": "compile, s",
    "peak_rss_mb": "peak memory, MB",
}
_COMPILED_PREFACE = """## Accelerators: compiled, not run

XLA compiled ten rounds of each workload for the chip, and the estimate adds up the kernels. A kernel takes
the longest of three times: its launch, its bytes at the data sheet's bandwidth, its FLOPs at the data sheet's
rate for their precision. Real kernels are slower: the figures show what bounds a round, and that the program
fits. They are for one round, whose branches take the longest way; *shortest* is the other one, and *its
branches* are what the longest ones add. FedSkel's branches are a round of whole training and a round with
skeletons: of ten clients in fresh cohorts, mostly some take either; with `cohorts=cycle` all take one.
*Before* are the programs of commit 7806f89, to which the command was added.
"""
_COMPILED = {
    "workload": "workload",
    "plan": "plan",
    "before_round_ms": "before, ms",
    "round_ms": "estimate, ms",
    "least_round_ms": "shortest, ms",
    "branches_ms": "its branches, ms",
    "bound": "bound by",
    "launch_ms": "launches, ms",
    "memory_ms": "memory, ms",
    "products_ms": "products, ms",
    "kernels": "kernels",
    "host_loops": "loops that the host ends",
    "before_gb_moved": "before, GB moved",
    "gb_moved": "GB moved",
    "memory_gb": "peak memory, GB",
    "evaluation_ms": "evaluation, ms",
}
_CASES_PREFACE = """### Kernels by algorithm

`{command}`, JAX {jax}: five ragged clients of a small network, on an {chip}. Its kernels take little but
their launch, so that their number is the speed of small simulations. A round takes the longest way through
its branches; algorithms that train several times in it, for tiers, for epochs before or after others, or for
a second gradient, need as many times the kernels of FedAvg.
"""
_CASES = {
    "case": "algorithm",
    "before_kernels": "before, kernels",
    "kernels": "kernels",
    "least_kernels": "shortest",
    "times_fedavg": "÷ FedAvg's",
    "before_round_ms": "before, ms",
    "round_ms": "estimate, ms",
}
_CLIENTS = {
    "rounds_per_s": "rounds/s",
    "relative": "÷ 1,000 clients",
    "predicted_mb": "predicted memory, MB",
    "peak_mb": "peak memory, MB",
    "store_mb": "file of visited clients, MB",
}
_COHORTS = {
    "plan": "plan",
    "clients_per_s": "clients/s",
    "relative": "÷ smallest cohort",
    "memory_mb": "device memory, MB",
}
_DEVICES = {"plan": "plan", "rounds_per_s": "rounds/s", "speedup": "÷ one device"}
_SCALES = {
    "scale-clients": ("Rounds by number of clients", "clients", _CLIENTS),
    "scale-cohort": ("Rounds by size of the cohort", "cohorts", _COHORTS),
    "scale-devices": ("Rounds by number of devices", "devices", _DEVICES),
}


def page() -> str:
    """The page in Markdown, with a section for each machine."""
    files = sorted(_BENCHMARKS.glob("benchmarks_*.jsonl"))
    sections = [_section([json.loads(line) for line in file.read_text().splitlines()]) for file in files]
    return "\n".join([_PREFACE, *sections, *_compiled(), _cases(), _skeleton(), _inference()])


def _section(lines: Sequence[dict[str, Any]]) -> str:
    first = lines[0]
    machine = f"JAX {first['versions']['jax']}, {first['date']}."
    rates = [line for line in lines if "matmul_gflops" in line]
    if rates:
        machine += f" Large matrix products: {rates[0]['matmul_gflops']} GFLOP/s."
    parts = [f"## {first['device']}", "", machine, "", *_table(_ROUNDS, rates)]
    for line in lines:
        if line["workload"] == "runner-overhead":
            share = f"{100 * line['overhead']:.1f} %"
            parts += ["", f"Records, progress and checkpoints add {share} to a run (`{line['command']}`)."]
        if line["workload"] in _SCALES:
            title, key, columns = _SCALES[line["workload"]]
            rows = [{key: int(number), **figures} for number, figures in line[key].items()]
            parts += ["", f"### {title}", "", f"`{line['command']}`", ""]
            parts += _table({key: key, **columns}, rows)
    return "\n".join([*parts, ""])


def _compiled() -> list[str]:
    """The section on accelerators that are not there, with a table for each."""
    files = sorted(_BENCHMARKS.glob("compiled_*.jsonl"))
    if not files:
        return []
    parts = [_COMPILED_PREFACE]
    for file in files:
        lines = _beside_before(file, "workload", ("round_ms", "gb_moved"))
        command = lines[0]["command"].replace(f"--workload {lines[0]['workload']}", "--workload NAME")
        parts += [f"### {lines[0]['chip']}", "", f"`{command}`, JAX {lines[0]['versions']['jax']}.", ""]
        parts += [*_table(_COMPILED, lines), ""]
    return parts


def _cases() -> str:
    """The section on the kernels that each algorithm needs."""
    file = _BENCHMARKS / "cases_h200.jsonl"
    lines = _beside_before(file, "case", ("round_ms", "kernels"))
    fedavg = next(line["kernels"] for line in lines if line["case"] == "fedavg")
    for line in lines:
        line["times_fedavg"] = f"{line['kernels'] / fedavg:.1f}"
    origin = json.loads((_BENCHMARKS / "provenance.json").read_text())[file.name]
    preface = _CASES_PREFACE.format(command=origin["command"], jax=lines[0]["jax"], chip=lines[0]["chip"])
    return "\n".join([preface, *_table(_CASES, lines), ""])


def _beside_before(file: Path, name: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The lines of a file, each with figures of the earlier program of that name."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    earlier = file.with_name(f"before_{file.name.removeprefix('compiled_')}")
    texts = earlier.read_text().splitlines() if earlier.exists() else []
    before = {line[name]: line for line in map(json.loads, texts)}
    return [
        line | {f"before_{key}": before.get(line[name], {}).get(key, "") for key in keys} for line in lines
    ]


def _skeleton() -> str:
    """The section on backward passes of few filters: their speed-ups and their bounds."""
    figures, origin = _single("fedskel_backward.json")
    rows = [
        {
            "convolution": f"{layer['count']} x {name}",
            "dense, ms": layer["ms"]["1.0"],
            "r = 0.1, ms": layer["ms"]["0.1"],
            "÷": layer["speedup"]["0.1"],
            "roofline, ms": layer["roofline_ms"]["bound"],
        }
        for name, layer in figures["layers"].items()
    ]
    totals = [
        {"": "backward passes of all convolutions", **figures["conv_backward_speedup"]},
        {"": "training step", **figures["training_step_speedup"]},
    ]
    parts = ["## Backward pass of a skeleton", "", origin, ""]
    parts += ["ResNet-18, 32 x 32 images, batch 50: speed-up over dense, by the share r of filters.", ""]
    parts += _table({key: key or " " for key in totals[0]}, totals)
    ratio = figures["round_time_ratio"]
    parts += ["", f"A round of ten clients at r = 0.1 takes {ratio} of the time of the same round at r = 1."]
    parts += [
        "The roofline is for r = 0.1: the time of two thin products, measured alone, and of the arrays and"
    ]
    parts += ["patches that they need.", ""]
    return "\n".join([*parts, *_table({key: key for key in rows[0]}, rows), ""])


def _inference() -> str:
    """The section on masked models and on the same models without their zeros."""
    figures, origin = _single("masked_inference.json")
    rows = [
        {
            "system": f"{name}, {figures[name]['model']}",
            "batch": int(batch),
            "masked, ms": ms["masked_ms"],
            "compacted, ms": ms["compacted_ms"],
            "÷": figures["latency_speedup"][name][batch],
        }
        for name in figures["latency_speedup"]
        for batch, ms in figures[name]["latency"].items()
    ]
    alone = "`fedjax-masks bench --workload fedmask-compact` measures FedMask's rows alone."
    table = _table({key: key for key in rows[0]}, rows)
    return "\n".join(["## Inference by compacted models", "", f"{origin} {alone}", "", *table, ""])


def _single(name: str) -> tuple[dict[str, Any], str]:
    """The results of a single benchmark, and a sentence on their origin."""
    origin = json.loads((_RESULTS / "provenance.json").read_text())[name]
    sentence = f"`{origin['command']}` at {origin['commit']}, on {origin['machine']}."
    return json.loads((_RESULTS / name).read_text()), sentence


def _table(columns: dict[str, str], rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = [tuple(columns.values()), ("---",) * len(columns)]
    cells += [tuple(_cell(row[key]) for key in columns) for row in rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(map(_cell, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    print(page(), end="")
