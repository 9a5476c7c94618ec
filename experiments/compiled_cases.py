"""Compiles the algorithms of the contract's tests for a chip, and prints one JSON line for each.

    PYTHONPATH=tests python experiments/compiled_cases.py > experiments/results/cases_h200.jsonl

They run on a small network with ragged clients, so that a kernel takes little but its launch: the lines
compare the kernels that algorithms need. Nothing runs on the chip, which need not be there (extra ``[aot]``).
"""

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import version

import cases
import jax

from fedjax_masks.aot.compilation import compile_for
from fedjax_masks.benchmarks.compiled import figures
from fedjax_masks.programs.chips import CHIPS

_KEYS = (
    *("chip", "plan", "kernels", "least_kernels", "host_loops", "round_ms", "least_round_ms"),
    *("launch_ms", "memory_ms", "products_ms", "gb_moved", "memory_gb"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles the cases that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chip", default="h200", choices=CHIPS, help="the chip (default: %(default)s)")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="cases (default: all of them)")
    args = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    for name in args.cases or cases.CASES:
        kind = cases.kind_of(name, "cnn")
        algorithm, task = cases.algorithm(name, kind), cases.task_for(kind)
        compiled = figures(compile_for(args.chip, algorithm, task, cohort=cases.COHORT, batch_size=4))
        line = {"case": name, "network": kind, **{key: compiled[key] for key in _KEYS}}
        print(json.dumps(line | {"jax": version("jax")}), flush=True)


if __name__ == "__main__":
    main()
