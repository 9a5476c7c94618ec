"""Makes the page of benchmarks from the committed lines of ``experiments/benchmarks.py``.

A hook of mkdocs; ``python docs/make_benchmarks.py`` prints the page.
"""

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
    return "\n".join([_PREFACE, *sections])


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


def _table(columns: dict[str, str], rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = [tuple(columns.values()), ("---",) * len(columns)]
    cells += [tuple(_cell(row[key]) for key in columns) for row in rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def on_files(files: Any, config: Any) -> Any:
    """Adds the page."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "benchmarks.md", content=page()))
    return files


if __name__ == "__main__":
    print(page())
