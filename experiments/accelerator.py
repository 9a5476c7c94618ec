"""Checks and measurements of an accelerator, for ``accelerator.sh``.

In this order: the device; algorithms beside the same programs on the CPU; rounds per second of all workloads
under several plans; pfl-cifar10 over 1500 rounds with evaluation; a profile. A check that fails is a line
with its error, and the others go on.
"""

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import fedjax_masks as fm
from fedjax_masks.benchmarks import rounds as setups
from fedjax_masks.benchmarks.rounds import bench_rounds
from fedjax_masks.core import target
from fedjax_masks.core.algorithm import FederatedAlgorithm, Task
from fedjax_masks.data import synthetic_task
from fedjax_masks.simulation import make_simulation

Check = tuple[str, Callable[[], dict[str, Any]]]

ALGORITHMS: dict[str, Callable[[fm.models.Model], FederatedAlgorithm]] = {
    "fedavg": lambda model: fm.fedavg(model, optax.sgd(0.1), batch_size=10),
    "scaffold": lambda model: fm.scaffold(model, optax.sgd(0.1), batch_size=10),
    "heterofl": lambda model: fm.heterofl(model, optax.sgd(0.1), batch_size=10, ratios=(1.0, 0.5)),
    "fedskel": lambda model: fm.fedskel(model, optax.sgd(0.1), batch_size=10, updates=1),
    "mpfl": lambda model: fm.mpfl(model, optax.sgd(0.1), batch_size=10, iterations=2),
    "fedmask": lambda model: fm.fedmask(model, optax.sgd(10.0), batch_size=10, epochs=2),
    "adp": lambda model: fm.adp(model, optax.sgd(0.02), batch_size=10),
}
PLANS = ("auto", "scan", "blocks:10")
ROUNDS = {"fedmask-lenet": 10}
LARGE = {"blaze-cnn-100", "ssfl-cifar10", "ssfl-fedskel"}  # of these, two rounds under auto alone


def device() -> dict[str, Any]:
    """The device, and what it says of its memory."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "memory": first.memory_stats(),
    }


def beside_cpu(name: str) -> dict[str, Any]:
    """The largest difference in the state between the device and the CPU, after some rounds, in float32."""
    sizes = np.array([20, 30, 10, 40, 25, 35])
    task = synthetic_task((16, 16, 3), 10, sizes, noise=1.0, scale=0.3)
    algorithm = ALGORITHMS[name](fm.models.cnn(task))
    here = _rounds(algorithm, task)
    with target.making_for(target.Target("cpu", jax.devices("cpu"))):
        there = _rounds(algorithm, task)
    floats = [
        float(np.max(np.abs(a - b), initial=0))
        for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True)
        if np.issubdtype(a.dtype, np.floating)
    ]
    bits = [
        float(np.mean(a != b))
        for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True)
        if a.dtype == bool and a.size
    ]
    return {"largest_difference": max(floats, default=0.0), "share_of_bits": max(bits, default=0.0)}


def _rounds(algorithm: FederatedAlgorithm, task: Task) -> Any:
    simulation = make_simulation(algorithm, task, cohort=4, chunk=3, plan="auto,mesh:1")
    return jax.device_get(simulation.run(simulation.init(), 0, 3)[0])


def whole_run(rounds: int, every: int = 10) -> dict[str, Any]:
    """Seconds of pfl-cifar10 with an evaluation of 10,000 images after every ten rounds."""
    algorithm, task, cohort = _pfl()
    start = time.perf_counter()
    simulation = make_simulation(algorithm, task, cohort=cohort, chunk=every)
    state, compiled = simulation.init(), time.perf_counter()
    for first in range(0, rounds, every):
        state, _ = simulation.run(state, first, min(every, rounds - first))
        (evaluation,) = simulation.evaluate(state)
    return {
        "rounds": rounds,
        "plan": str(simulation.plan),
        "compile_s": round(compiled - start, 2),
        "seconds": round(time.perf_counter() - compiled, 2),
        "global_accuracy": evaluation.global_accuracy,
        "memory_bytes": simulation.memory_bytes,
        "memory": jax.devices()[0].memory_stats(),
    }


def profile(out: Path) -> dict[str, Any]:
    """Writes a profile of one chunk of pfl-cifar10."""
    algorithm, task, cohort = _pfl()
    simulation = make_simulation(algorithm, task, cohort=cohort, chunk=2)
    state, _ = simulation.run(simulation.init(), 0, 2)
    with jax.profiler.trace(str(out)):
        state, _ = simulation.run(state, 2, 2)
        jax.block_until_ready(state)
    return {"files": [str(path.relative_to(out)) for path in sorted(out.rglob("*")) if path.is_file()]}


def _pfl() -> setups.Setup:
    algorithm, _, cohort = setups.pfl_cifar10()
    task = synthetic_task((32, 32, 3), 10, np.full(1000, 50), test_per_client=10, noise=1.25, scale=0.2)
    return algorithm, task, cohort


def checks(out: Path, *, small: bool) -> Iterator[Check]:
    """All checks by name."""
    yield "device", device
    for name in ALGORITHMS:
        yield f"beside the CPU: {name}", lambda name=name: beside_cpu(name)
    for name in ("mlp-1000", "femnist-cnn") if small else setups.SETUPS:
        few, setup = small or name in LARGE, setups.SETUPS[name]
        for plan in PLANS[:1] if few else PLANS:
            number = 2 if few else ROUNDS.get(name, 20)
            yield (
                f"{name}, {plan}",
                lambda setup=setup, number=number, plan=plan: bench_rounds(setup, rounds=number, plan=plan),
            )
    yield "pfl-cifar10 whole", lambda: whole_run(4 if small else 1500, 2 if small else 10)
    yield "profile", lambda: profile(out / "profile")


def main() -> None:
    """Runs all checks, and appends a line for each to ``results.jsonl``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--small", action="store_true", help="few rounds of few workloads, for a CPU")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    start, failures = time.perf_counter(), 0
    for name, check in checks(args.out, small=args.small):
        begin = time.perf_counter()
        try:
            figures = check()
        except Exception as error:  # one failure must not cost the other figures
            figures, failures = {"error": repr(error), "traceback": traceback.format_exc()}, failures + 1
        line = {"check": name, "wall_s": round(time.perf_counter() - begin, 2), **figures}
        with (args.out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")
        result = "failed: " + line["error"] if "error" in line else "done"
        print(f"{time.perf_counter() - start:6.1f} s  {name}: {result}", flush=True)
    if failures:
        raise SystemExit(f"error: {failures} checks failed, see {args.out / 'results.jsonl'}")


if __name__ == "__main__":
    main()
