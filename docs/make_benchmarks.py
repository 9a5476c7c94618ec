"""Makes the page of benchmarks: ``python docs/make_benchmarks.py > docs/benchmarks.md``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_RESULTS = Path(__file__).parents[1] / "experiments" / "results"
_PREFACE = """# Benchmarks

What `fedjax-masks bench` measured, on synthetic data; `experiments/benchmarks.py` runs all of it. Rates are
medians. Of a round's time, *products* is the share that its matrix products and convolutions would take at
the rate of a large matrix product on the same machine, the share of peak; *traffic* is the share that its
bytes would take at the rate of a large array. The larger of the two bounds the round; what both leave is
neither: patches of convolutions, pooling, and steps too small to fill a core.
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
_CLIENTS = {
    "rounds_per_s": "rounds/s",
    "relative": "÷ a thousand's",
    "predicted_mb": "predicted memory, MB",
    "peak_mb": "peak memory, MB",
    "store_mb": "file of the visited, MB",
}
_COHORTS = {
    "plan": "plan",
    "clients_per_s": "clients/s",
    "relative": "÷ the smallest's",
    "memory_mb": "device memory, MB",
}
_DEVICES = {"plan": "plan", "rounds_per_s": "rounds/s", "speedup": "÷ one device's"}
_SCALES = {
    "scale-clients": ("More and more clients", "clients", _CLIENTS),
    "scale-cohort": ("Larger and larger cohorts", "cohorts", _COHORTS),
    "scale-devices": ("More and more devices", "devices", _DEVICES),
}


def page() -> str:
    """The page, in Markdown: a section for each machine."""
    files = sorted(_RESULTS.glob("benchmarks_*.jsonl"))
    sections = [_section([json.loads(line) for line in file.read_text().splitlines()]) for file in files]
    return "\n".join([_PREFACE, *sections, _skeleton(), _inference()])


def _section(found: Sequence[dict[str, Any]]) -> str:
    first = found[0]
    about = f"JAX {first['versions']['jax']}, {first['date']}."
    rates = [line for line in found if "matmul_gflops" in line]
    if rates:
        about += f" Large matrix products: {rates[0]['matmul_gflops']} GFLOP/s."
    parts = [f"## {first['device']}", "", about, "", *_table(_ROUNDS, rates)]
    for line in found:
        if line["workload"] == "runner-overhead":
            share = f"{100 * line['overhead']:.1f} %"
            parts += ["", f"Records, progress and checkpoints add {share} to a run (`{line['command']}`)."]
        if line["workload"] in _SCALES:
            title, key, columns = _SCALES[line["workload"]]
            rows = [{key: int(number), **figures} for number, figures in line[key].items()]
            parts += ["", f"### {title}", "", f"`{line['command']}`", ""]
            parts += _table({key: key, **columns}, rows)
    return "\n".join([*parts, ""])


def _skeleton() -> str:
    """What a backward pass of few filters saves, and what bounds it."""
    found, about = _single("fedskel_backward.json")
    rows = [
        {
            "convolution": f"{layer['count']} x {name}",
            "dense, ms": layer["ms"]["1.0"],
            "r = 0.1, ms": layer["ms"]["0.1"],
            "÷": layer["speedup"]["0.1"],
            "roofline, ms": layer["roofline_ms"]["bound"],
        }
        for name, layer in found["layers"].items()
    ]
    totals = [
        {"": "backward passes of all convolutions", **found["conv_backward_speedup"]},
        {"": "training step", **found["training_step_speedup"]},
    ]
    parts = ["## Backward pass of a skeleton", "", about, ""]
    parts += ["ResNet-18, 32 x 32 images, batch 50: times as fast as dense, by the share r of filters.", ""]
    parts += _table({key: key or " " for key in totals[0]}, totals)
    ratio = found["round_time_ratio"]
    parts += ["", f"A round of ten clients at r = 0.1 takes {ratio} of the same round at r = 1. The roofline"]
    parts += ["is of r = 0.1: two thin products, measured alone, and the arrays and patches around them.", ""]
    return "\n".join([*parts, *_table({key: key for key in rows[0]}, rows), ""])


def _inference() -> str:
    """Masked models beside what is left of them without their zeros."""
    found, about = _single("masked_inference.json")
    rows = [
        {
            "system": f"{name}, {found[name]['model']}",
            "batch": int(batch),
            "masked, ms": ms["masked_ms"],
            "compacted, ms": ms["compacted_ms"],
            "÷": found["latency_speedup"][name][batch],
        }
        for name in found["latency_speedup"]
        for batch, ms in found[name]["latency"].items()
    ]
    alone = "`fedjax-masks bench --workload fedmask-compact` measures FedMask's rows alone."
    table = _table({key: key for key in rows[0]}, rows)
    return "\n".join(["## Inference by compacted models", "", f"{about} {alone}", "", *table, ""])


def _single(name: str) -> tuple[dict[str, Any], str]:
    """Results of a benchmark of its own, and where they come from."""
    origin = json.loads((_RESULTS / "provenance.json").read_text())[name]
    about = f"`{origin['command']}` at {origin['commit']}, on {origin['machine']}."
    return json.loads((_RESULTS / name).read_text()), about


def _table(columns: dict[str, str], rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = [tuple(columns.values()), ("---",) * len(columns)]
    cells += [tuple(_cell(row[key]) for key in columns) for row in rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    print(page(), end="")
