"""Speed and memory by number of clients, size of the cohort and number of devices.

Rounds of all sizes run in turns in one process, so that other load of the machine slows them alike. Memory is
measured in a process of its own.
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
from fedjax_masks.core.progress import activity, say
from fedjax_masks.data import synthetic_task, task_from_arrays
from fedjax_masks.simulation import RoundMetrics, Simulation, Storage, make_simulation

_POPULATIONS = (10**3, 10**4, 10**5, 10**6)
_COHORTS = (10, 30, 100, 300, 1000)
_COHORT, _EXAMPLES, _POOL = 100, 20, 10_000


def _population(num_clients: int) -> tuple[FederatedAlgorithm, Task]:
    """FedMask with LeNet; the seed determines the examples of the clients, of two classes each."""
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
    # Pruning would lengthen the first round of each client, and thus all rounds of large populations.
    return fedmask(
        models.lenet(task), optax.sgd(100.0), keep_scores=False, epochs=1, batch_size=10, prune_ratio=1.0
    ), task


def _on_host(num_clients: int, cohort: int, chunk: int, plan: str, folder: str) -> Simulation:
    """A simulation with the clients' states on the host."""
    algorithm, task = _population(num_clients)
    storage = Storage(clients="host", path=Path(folder) / f"{num_clients}.rows")
    return make_simulation(algorithm, task, cohort=cohort, chunk=chunk, plan=plan, storage=storage)


def _next_chunk(simulation: Simulation, chunk: int) -> Callable[[], RoundMetrics]:
    """A call that runs the next chunk of rounds."""
    carry = [(simulation.init(), 0)]

    def call() -> RoundMetrics:
        state, start = carry[0]
        state, (metrics,) = simulation.run(state, start, chunk)
        carry[0] = state, start + chunk
        return metrics

    return call


def bench_clients(*, rounds: int, plan: str = "auto") -> dict[str, Any]:
    """Measures cohorts of one size out of populations of different sizes, with masks on the host.

    Args:
      rounds: The number of rounds of each population, after a chunk without measurement.
      plan: The execution plan.

    Returns:
      By population: ``rounds_per_s``; ``relative``, the ratio to the smallest population over paired chunks;
      ``predicted_mb`` and ``peak_mb``, resident memory of a process; and ``store_mb``, disk space of the
      visited clients.
    """
    chunk = max(1, min(2, rounds))
    with tempfile.TemporaryDirectory() as folder:
        simulations = {number: _on_host(number, _COHORT, chunk, plan, folder) for number in _POPULATIONS}
        turns = max(1, rounds // chunk)
        calls = {n: _next_chunk(s, chunk) for n, s in simulations.items()}
        times = measure.time_in_turns(calls, turns, title="rounds of every population")
        stores = {number: simulation.store for number, simulation in simulations.items()}
        sizes = {number: store.file_bytes for number, store in stores.items() if store is not None}
    figures = {}
    for number in _POPULATIONS:
        figures[str(number)] = {
            "rounds_per_s": round(chunk / statistics.median(times[number]), 4),
            "relative": measure.speedup(times[_POPULATIONS[0]], times[number]),
            "store_mb": round(sizes[number] / 1e6, 3),
            **_in_process(_memory, number, _COHORT, chunk, plan),
        }
    (simulation, *_) = simulations.values()
    assert simulation.store is not None
    return {
        "device": measure.device(),
        "plan": str(simulation.plan),
        "rounds": turns * chunk,
        "cohort": _COHORT,
        "row_bytes": simulation.store.state_bytes,
        "clients": figures,
    }


def _memory(num_clients: int, cohort: int, chunk: int, plan: str) -> dict[str, float]:
    """Resident memory of a simulation in MB: the prediction before the first round, and the peak."""
    with tempfile.TemporaryDirectory() as folder:
        simulation = _on_host(num_clients, cohort, chunk, plan, folder)
        run = _next_chunk(simulation, chunk)
        predicted = measure.resident_mb() + simulation.memory_bytes / 1e6
        measure.forget_peak()
        for _ in range(3):
            run()
        return {"predicted_mb": round(predicted, 1), "peak_mb": round(measure.peak_rss_mb(), 1)}


def _in_process(function: Callable[..., Mapping[str, float]], *arguments: object) -> Mapping[str, float]:
    """Calls a function in a new process; its first argument is the number of clients."""
    context, title = multiprocessing.get_context("spawn"), f"memory of {arguments[0]} clients"
    say(title)
    with activity(title), ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def bench_cohort(*, rounds: int, plan: str = "auto") -> dict[str, Any]:
    """Measures cohorts of different sizes out of a thousand clients with a perceptron.

    Args:
      rounds: The number of rounds of each cohort, after a chunk without measurement.
      plan: The execution plan.

    Returns:
      By size of the cohort: ``clients_per_s``, the rate of trained clients; ``relative``, its ratio to that
      of the smallest cohort; ``memory_mb``, device memory.
    """
    algorithm, task, _ = mlp_1000()
    chunk = max(1, min(2, rounds))
    simulations = {n: make_simulation(algorithm, task, cohort=n, chunk=chunk, plan=plan) for n in _COHORTS}
    calls, turns = {n: _next_chunk(s, chunk) for n, s in simulations.items()}, max(1, rounds // chunk)
    times = measure.time_in_turns(calls, turns, title="rounds of every cohort")
    return {
        "device": measure.device(),
        "cohorts": {
            str(number): {
                "plan": str(simulations[number].plan),
                "clients_per_s": round(number * chunk / statistics.median(times[number]), 2),
                "relative": round(
                    measure.speedup(times[_COHORTS[0]], times[number]) * number / _COHORTS[0], 3
                ),
                "memory_mb": round(simulations[number].memory_bytes / 1e6, 1),
            }
            for number in _COHORTS
        },
    }


def bench_devices(*, rounds: int, plan: str = "auto") -> dict[str, Any]:
    """Measures ``mlp-1000`` on 1, 2, 4 and 8 devices, as far as there are so many.

    Args:
      rounds: The number of rounds on each number of devices, after a chunk without measurement.
      plan: The execution plan, without its mesh.

    Returns:
      By number of devices: ``rounds_per_s``; ``speedup``, the ratio to one device.
    """
    algorithm, task, cohort = mlp_1000()
    kind, _, _ = plan.partition(",mesh:")
    numbers = [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
    chunk = max(1, min(5, rounds))
    simulations = {
        n: make_simulation(algorithm, task, cohort=cohort, chunk=chunk, plan=f"{kind},mesh:{n}")
        for n in numbers
    }
    calls, turns = {n: _next_chunk(s, chunk) for n, s in simulations.items()}, max(1, rounds // chunk)
    times = measure.time_in_turns(calls, turns, title="rounds on every number of devices")
    return {
        "device": measure.device(),
        "cores": os.cpu_count(),
        "devices": {
            str(number): {
                "plan": str(simulations[number].plan),
                "rounds_per_s": round(chunk / statistics.median(times[number]), 4),
                "speedup": measure.speedup(times[1], times[number]),
            }
            for number in numbers
        },
    }
