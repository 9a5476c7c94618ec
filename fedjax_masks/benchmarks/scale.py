"""How speed and memory go with the number of clients, the cohort and the devices.

Of two sizes, rounds are run in turns in one process, so that their ratio means something on a noisy
machine; memory is measured in a process that does nothing else.
"""

import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import optax

from fedjax_masks import models
from fedjax_masks.algorithms.fedmask import fedmask
from fedjax_masks.benchmarks import measure
from fedjax_masks.benchmarks.rounds import mlp_1000
from fedjax_masks.core.algorithm import FederatedAlgorithm, Task
from fedjax_masks.core.progress import say, working
from fedjax_masks.data import synthetic_task, task_from_arrays
from fedjax_masks.simulation import Simulation, Storage, make_simulation

_POPULATIONS = (10**3, 10**4, 10**5, 10**6)
_COHORTS = (10, 30, 100, 300, 1000)
_COHORT, _EXAMPLES, _POOL = 100, 20, 10_000


def _population(num_clients: int) -> tuple[FederatedAlgorithm, Task]:
    """FedMask on LeNet; clients of two classes each, whose examples follow from the seed."""
    pool = synthetic_task((28, 28, 1), 10, [_POOL], test_per_client=1000, noise=1.25, scale=0.2)
    task = task_from_arrays(
        pool.inputs,
        pool.labels,
        pool.test_inputs,
        pool.test_labels,
        clients=num_clients,
        partition=f"draw:{_EXAMPLES}:2",
        test_per_client=1,
    )
    # A prune would make a client's first round longer than the others, and so rounds of many clients.
    return fedmask(models.lenet(task), optax.sgd(100.0), epochs=1, batch_size=10, prune_ratio=1.0), task


def _on_host(num_clients: int, cohort: int, chunk: int, plan: str, folder: str) -> Simulation:
    algorithm, task = _population(num_clients)
    storage = Storage(clients="host", path=Path(folder) / f"{num_clients}.rows")
    return make_simulation(algorithm, task, cohort=cohort, chunk=chunk, plan=plan, storage=storage)


def _rounds(simulation: Simulation, chunk: int) -> Callable[[], Any]:
    """A call that runs the next chunk of rounds."""
    held = [(simulation.init(), 0)]

    def call() -> Any:
        state, done = held[0]
        state, metrics = simulation.run(state, done, chunk)
        held[0] = state, done + chunk
        return metrics

    return call


def bench_clients(*, rounds: int, plan: str = "auto") -> dict[str, Any]:
    """A fixed cohort out of more and more clients, whose masks lie on the host.

    Args:
      rounds: Rounds to measure of every population, after as many as one chunk for warming up.
      plan: An execution plan.

    Returns:
      By population: ``rounds_per_s``; ``relative``, the ratio to the smallest population, by paired
      chunks; ``predicted_mb`` and ``peak_mb`` of the process's resident memory; and ``store_mb``, what
      the visited clients take on the disk.
    """
    chunk = max(1, min(2, rounds))
    with tempfile.TemporaryDirectory() as folder:
        held = {number: _on_host(number, _COHORT, chunk, plan, folder) for number in _POPULATIONS}
        turns = max(1, rounds // chunk)
        calls = {n: _rounds(s, chunk) for n, s in held.items()}
        taken = measure.in_turns(calls, turns, title="rounds of every population")
        stores = {number: simulation.store for number, simulation in held.items()}
        sizes = {number: store.file_bytes for number, store in stores.items() if store is not None}
    figures = {}
    for number in _POPULATIONS:
        figures[str(number)] = {
            "rounds_per_s": round(chunk / statistics.median(taken[number]), 4),
            "relative": measure.speedup(taken[_POPULATIONS[0]], taken[number]),
            "store_mb": round(sizes[number] / 1e6, 3),
            **_alone(_memory, number, _COHORT, chunk, plan),
        }
    (simulation, *_) = held.values()
    assert simulation.store is not None
    return {
        "device": measure.device(),
        "plan": str(simulation.plan),
        "rounds": turns * chunk,
        "cohort": _COHORT,
        "row_bytes": simulation.store.row_bytes,
        "clients": figures,
    }


def _memory(num_clients: int, cohort: int, chunk: int, plan: str) -> dict[str, float]:
    """Peak memory of a simulation of some rounds, and what was predicted before the first."""
    with tempfile.TemporaryDirectory() as folder:
        simulation = _on_host(num_clients, cohort, chunk, plan, folder)
        run = _rounds(simulation, chunk)
        predicted = measure.resident_mb() + simulation.memory_bytes / 1e6
        measure.forget_peak()
        for _ in range(3):
            run()
        return {"predicted_mb": round(predicted, 1), "peak_mb": round(measure.peak_rss_mb(), 1)}


def _alone(function: Callable[..., Mapping[str, float]], *arguments: Any) -> Mapping[str, float]:
    """A call in a process of its own."""
    fresh, told = multiprocessing.get_context("spawn"), f"memory of {arguments[0]} clients"
    say(told)
    with working(told), ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(function, *arguments).result()


def bench_cohort(*, rounds: int, plan: str = "auto") -> dict[str, Any]:
    """Larger and larger cohorts of a thousand clients with a perceptron.

    Returns:
      By cohort ``clients_per_s``, trained; and ``relative``, its ratio to that of the smallest cohort.
    """
    algorithm, task, _ = mlp_1000()
    chunk = max(1, min(2, rounds))
    held = {n: make_simulation(algorithm, task, cohort=n, chunk=chunk, plan=plan) for n in _COHORTS}
    calls, turns = {n: _rounds(s, chunk) for n, s in held.items()}, max(1, rounds // chunk)
    taken = measure.in_turns(calls, turns, title="rounds of every cohort")
    return {
        "device": measure.device(),
        "cohorts": {
            str(number): {
                "plan": str(held[number].plan),
                "clients_per_s": round(number * chunk / statistics.median(taken[number]), 2),
                "relative": round(
                    measure.speedup(taken[_COHORTS[0]], taken[number]) * number / _COHORTS[0], 3
                ),
                "memory_mb": round(held[number].memory_bytes / 1e6, 1),
            }
            for number in _COHORTS
        },
    }


def bench_devices(*, rounds: int, plan: str = "auto") -> dict[str, Any]:
    """The clients of ``mlp-1000`` on 1, 2, 4 and all devices.

    Returns:
      By number of devices ``rounds_per_s``, and ``speedup`` against one.
    """
    algorithm, task, cohort = mlp_1000()
    kind, _, _ = plan.partition(",mesh:")
    numbers = [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
    chunk = max(1, min(5, rounds))
    held = {
        n: make_simulation(algorithm, task, cohort=cohort, chunk=chunk, plan=f"{kind},mesh:{n}")
        for n in numbers
    }
    calls, turns = {n: _rounds(s, chunk) for n, s in held.items()}, max(1, rounds // chunk)
    taken = measure.in_turns(calls, turns, title="rounds on every number of devices")
    return {
        "device": measure.device(),
        "cores": os.cpu_count(),
        "devices": {
            str(number): {
                "plan": str(held[number].plan),
                "rounds_per_s": round(chunk / statistics.median(taken[number]), 4),
                "speedup": measure.speedup(taken[1], taken[number]),
            }
            for number in numbers
        },
    }
