"""Rounds per second of fixed simulations.

All data are synthetic with a fixed seed. The rate of a workload is the median over chunks of rounds, after a
first round without measurement. The rate of matrix products is measured in the same process, so that other
load of the machine affects both alike.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optax

from fedjax_masks import models
from fedjax_masks.algorithms.fedavg import fedavg
from fedjax_masks.algorithms.fedmask import fedmask
from fedjax_masks.algorithms.fedskel import fedskel
from fedjax_masks.benchmarks import measure
from fedjax_masks.core.algorithm import FederatedAlgorithm, Task
from fedjax_masks.core.progress import lines
from fedjax_masks.data import synthetic_task
from fedjax_masks.experiment.config import make_config
from fedjax_masks.experiment.loop import chunk_length, run_rounds
from fedjax_masks.experiment.progress import progress
from fedjax_masks.experiment.trackers import tracking
from fedjax_masks.experiment.writers import chunk_writers
from fedjax_masks.simulation import make_simulation

RAGGED_BATCH = 20  # examples of a minibatch where clients differ in size

Setup = tuple[FederatedAlgorithm, Task, int]
"""Algorithm, data, and clients per round."""


def _task(shape: tuple[int, ...], num_classes: int, sizes: np.ndarray) -> Task:
    """Synthetic data with the scale of normalized images and much noise.

    Without the noise, a network would soon fit all examples. Its gradients would be denormal numbers, with
    which a CPU is many times slower.
    """
    return synthetic_task(shape, num_classes, sizes, test_per_client=1, noise=1.25, scale=0.2)


def _femnist(sizes: np.ndarray) -> Setup:
    task = _task((28, 28, 1), 62, sizes)
    return fedavg(models.femnist_cnn(task), optax.sgd(0.1), epochs=1, batch_size=RAGGED_BATCH), task, 10


def femnist_cnn() -> Setup:
    """FedAvg with a convolutional network; all clients have equally many examples."""
    return _femnist(np.full(100, 100))


def femnist_cnn_ragged() -> Setup:
    """FedAvg with a convolutional network; clients have different numbers of examples."""
    return _femnist(np.random.default_rng(0).permutation(np.linspace(20, 180, 100).round().astype(int)))


def mlp_1000() -> Setup:
    """FedAvg with a perceptron and many clients."""
    task = _task((28, 28, 1), 62, np.full(1000, 50))
    return fedavg(models.mlp(task, hidden=(200, 200)), optax.sgd(0.1), epochs=1, batch_size=10), task, 100


def pfl_cifar10() -> Setup:
    """FedAvg with a convolutional network, color images and many clients."""
    task = _task((32, 32, 3), 10, np.full(1000, 50))
    return fedavg(models.femnist_cnn(task), optax.sgd(0.1), epochs=1, batch_size=10), task, 50


def fedmask_lenet() -> Setup:
    """FedMask with LeNet."""
    task = _task((28, 28, 1), 10, np.full(100, 40))
    return fedmask(models.lenet(task), optax.sgd(100.0), keep_scores=False, epochs=5, batch_size=10), task, 20


def _hundred_clients() -> Task:
    return _task((32, 32, 3), 10, np.full(100, 500))


def blaze_cnn_100() -> Setup:
    """FedAvg with a convolutional network; all of a hundred clients in every round."""
    task = _hundred_clients()
    return fedavg(models.femnist_cnn(task), optax.sgd(0.1), epochs=5, batch_size=50), task, 100


def ssfl_cifar10() -> Setup:
    """FedAvg with ResNet-18 on color images."""
    task = _hundred_clients()
    return fedavg(models.resnet18(task), optax.sgd(0.1), epochs=5, batch_size=16), task, 10


def ssfl_fedskel() -> Setup:
    """FedSkel with ResNet-18 on color images, a fifth of the filters."""
    task = _hundred_clients()
    algorithm = fedskel(models.resnet18(task), optax.sgd(0.1), ratios=(0.2,), epochs=5, batch_size=16)
    return algorithm, task, 10


SETUPS: Mapping[str, Callable[[], Setup]] = {
    "femnist-cnn": femnist_cnn,
    "femnist-cnn-ragged": femnist_cnn_ragged,
    "mlp-1000": mlp_1000,
    "pfl-cifar10": pfl_cifar10,
    "fedmask-lenet": fedmask_lenet,
    "blaze-cnn-100": blaze_cnn_100,
    "ssfl-cifar10": ssfl_cifar10,
    "ssfl-fedskel": ssfl_fedskel,
}
"""The simulations of workloads by name."""


def bench_rounds(setup: Callable[[], Setup], *, rounds: int, plan: str = "auto") -> dict[str, Any]:
    """Measures rounds per second of one workload.

    Args:
      setup: A function that makes the algorithm, the data and the size of the cohort.
      rounds: The number of rounds to measure, after a first round.
      plan: The execution plan.

    Returns:
      Flat figures. ``rounds_per_s`` is the median over chunks, ``model_flops_per_round`` the FLOPs of matrix
      products and convolutions over the cohort, ``achieved_gflops`` their rate. ``products_share`` is the
      share of a round's time that these would take at the rate of large matrix products. ``traffic_share`` is
      the share that the bytes of training would take at the rate of a large array. The remaining time goes
      into patches, pooling and small steps.
    """
    data_start = time.perf_counter()
    algorithm, task, cohort = setup()
    simulation_start = time.perf_counter()
    chunk = max(1, min(5, rounds))
    simulation = make_simulation(algorithm, task, cohort=cohort, chunk=chunk, plan=plan)
    rates, flops, traffic, chunks = [], [], [], range(1, 1 + rounds, chunk)
    with lines("bench", total=len(chunks), unit=f"chunks of {chunk} rounds", phase="compiling") as show:
        state, (metrics,) = simulation.run(simulation.init(), 0, 1)
        first_round = time.perf_counter() - simulation_start
        for start in chunks:
            chunk_start = time.perf_counter()
            state, (metrics,) = simulation.run(state, start, chunk)
            rates.append(chunk / (time.perf_counter() - chunk_start))
            flops.append(float(metrics.mean("flops").mean()) * cohort)
            traffic.append(float(metrics.mean("traffic").mean()) * cohort)
            show(len(rates), f"{rates[-1]:.3g} rounds/s", now=True)
    rate, flops_per_round = statistics.median(rates), statistics.fmean(flops)
    stats, peak = simulation.stats(), measure.rates()
    return {
        "plan": str(simulation.plan),
        "device": measure.device(),
        "rounds": len(rates) * chunk,
        "data_s": round(simulation_start - data_start, 3),
        "compile_s": round(stats.compile_seconds, 3),
        "first_round_s": round(first_round, 3),
        "rounds_per_s": round(rate, 4),
        "peak_rss_mb": round(measure.peak_rss_mb(), 1),
        "device_peak_mb": measure.device_peak_mb(),
        "model_flops_per_round": flops_per_round,
        "achieved_gflops": round(rate * flops_per_round / 1e9, 2),
        "matmul_gflops": peak.gflops,
        "products_share": round(rate * flops_per_round / 1e9 / peak.gflops, 3),
        "traffic_share": round(rate * statistics.fmean(traffic) / 1e9 / peak.gbytes, 3),
        "padding_efficiency": round(stats.padding_efficiency, 4),
        "num_compilations": stats.num_compilations,
        "final_train_loss": round(float(metrics.mean("loss")[-1]), 4),
    }


def bench_runner(*, rounds: int, plan: str = "auto") -> dict[str, Any]:
    """Measures the overhead of the runner (records, progress, checkpoints) over the bare loop of rounds.

    Both run the same rounds of ``femnist-cnn`` in turns, fifteen times, without evaluation, whose cost
    depends on the user's configuration.

    Args:
      rounds: The number of rounds of each run.
      plan: The execution plan.

    Returns:
      ``bare_s`` and ``runner_s``: median seconds of a run; ``overhead``: the median ratio minus 1.
    """
    algorithm, task, cohort = femnist_cnn()
    chunk = chunk_length(rounds)
    simulation = make_simulation(algorithm, task, cohort=cohort, chunk=chunk, plan=plan)
    state, _ = simulation.run(simulation.init(), 0, 1)
    evaluation = simulation.evaluate(state)
    simulation = simulation._replace(evaluate=lambda state: evaluation)

    def bare() -> None:
        state = simulation.init()
        for start in range(0, rounds, chunk):
            state, _ = simulation.run(state, start, min(chunk, rounds - start))

    def runner() -> None:
        config = make_config({"algorithm.name": "fedavg", "rounds": rounds, "eval_every": chunk})
        with (
            tempfile.TemporaryDirectory() as out,
            progress("bench", start=0, rounds=rounds, quiet=False, activity="") as show,
            tracking((), Path(out), config={}) as tracker,
        ):
            (hooks,) = chunk_writers([Path(out)], config, [tracker.log])
            run_rounds(
                simulation,
                simulation.init(),
                rounds=rounds,
                eval_every=chunk,
                on_chunk=[(*hooks, show)],
            )

    times = measure.time_in_turns({"bare": bare, "runner": runner}, 15, title="bare and with the runner")
    return {
        "plan": str(simulation.plan),
        "device": measure.device(),
        "rounds": rounds,
        "bare_s": round(statistics.median(times["bare"]), 4),
        "runner_s": round(statistics.median(times["runner"]), 4),
        "overhead": round(measure.speedup(times["runner"], times["bare"]) - 1, 4),
    }
