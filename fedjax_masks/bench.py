"""Fixed workloads for measuring speed: ``fedjax-masks bench``.

All data are synthetic with a fixed seed. A workload's rate is the median over chunks of
rounds after one for warming up; the matmul rate is measured in the same process, so that a
share of it means something on a noisy machine.
"""

import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_masks import models
from fedjax_masks.algorithm import FederatedAlgorithm, Task
from fedjax_masks.algorithms.fedavg import fedavg
from fedjax_masks.algorithms.fedmask import fedmask
from fedjax_masks.bench_fedskel import bench_skeleton
from fedjax_masks.compaction import compact, parameter_count
from fedjax_masks.config import make_config
from fedjax_masks.data import synthetic_task
from fedjax_masks.errors import UserError, unknown
from fedjax_masks.experiment import writers
from fedjax_masks.masks import mask_params
from fedjax_masks.runner import chunk_length, run_rounds
from fedjax_masks.simulation import make_simulation
from fedjax_masks.telemetry import progress

Setup = tuple[FederatedAlgorithm, Task, int]
_SCORES = optax.sgd(100.0)


def _task(shape: tuple[int, ...], num_classes: int, sizes: np.ndarray) -> Task:
    """Inputs of the size of normalised images, and too noisy to be learnt by heart at once.

    A network that is sure of everything has gradients among the denormal numbers, on which a
    CPU is many times slower: that would be measured instead.
    """
    return synthetic_task(shape, num_classes, sizes, test_per_client=1, noise=1.25, scale=0.2)


def _femnist(sizes: np.ndarray) -> Setup:
    task = _task((28, 28, 1), 62, sizes)
    return fedavg(models.femnist_cnn(task), optax.sgd(0.1), epochs=1, batch_size=20), task, 10


def _femnist_cnn() -> Setup:
    return _femnist(np.full(100, 100))


def _femnist_cnn_ragged() -> Setup:
    return _femnist(np.random.default_rng(0).permutation(np.linspace(20, 180, 100).round().astype(int)))


def _mlp_1000() -> Setup:
    task = _task((28, 28, 1), 62, np.full(1000, 50))
    return fedavg(models.mlp(task, hidden=(200, 200)), optax.sgd(0.1), epochs=1, batch_size=10), task, 100


def _pfl_cifar10() -> Setup:
    task = _task((32, 32, 3), 10, np.full(1000, 50))
    return fedavg(models.femnist_cnn(task), optax.sgd(0.1), epochs=1, batch_size=10), task, 50


def _fedmask_lenet() -> Setup:
    task = _task((28, 28, 1), 10, np.full(100, 40))
    return fedmask(models.lenet(task), _SCORES, epochs=5, batch_size=10), task, 20


_ROUND_WORKLOADS: Mapping[str, Callable[[], Setup]] = {
    "femnist-cnn": _femnist_cnn,
    "femnist-cnn-ragged": _femnist_cnn_ragged,
    "mlp-1000": _mlp_1000,
    "pfl-cifar10": _pfl_cifar10,
    "fedmask-lenet": _fedmask_lenet,
}


def matmul_gflops(size: int = 1024, repeats: int = 9) -> float:
    """The machine's float32 matrix-product rate in GFLOP/s: best of several products."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    seconds = [_seconds(lambda: product(a, a)) for _ in range(repeats)]
    return 2 * size**3 / min(seconds) / 1e9


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def peak_rss_mb() -> float:
    """Peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def bench_rounds(workload: str, *, rounds: int, plan: str = "auto") -> dict[str, Any]:
    """Measures rounds per second of one workload.

    Args:
      workload: The name of a workload of rounds.
      rounds: Rounds to measure, after as many as one chunk for warming up.
      plan: An execution plan.

    Returns:
      Flat figures: ``rounds_per_s`` is the median over chunks, ``model_flops_per_round`` the
      FLOPs of matrix products and convolutions over the cohort, ``achieved_gflops`` their rate.
    """
    began = time.perf_counter()
    algorithm, task, cohort = _ROUND_WORKLOADS[workload]()
    prepared = time.perf_counter()
    chunk = max(1, min(5, rounds))
    simulation = make_simulation(algorithm, task, cohort=cohort, chunk=chunk, plan=plan)
    state, metrics = simulation.run(simulation.init(), 0, 1)
    first_round = time.perf_counter() - prepared
    rates, flops = [], []
    for start in range(1, 1 + rounds, chunk):
        tick = time.perf_counter()
        state, metrics = simulation.run(state, start, chunk)
        rates.append(chunk / (time.perf_counter() - tick))
        flops.append(float(metrics.mean("flops").mean()) * cohort)
    rate, flops_per_round = statistics.median(rates), statistics.fmean(flops)
    stats = simulation.stats()
    return {
        "workload": workload,
        "plan": str(simulation.plan),
        "device": _device(),
        "rounds": len(rates) * chunk,
        "data_s": round(prepared - began, 3),
        "compile_s": round(stats.compile_seconds, 3),
        "first_round_s": round(first_round, 3),
        "rounds_per_s": round(rate, 4),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "model_flops_per_round": flops_per_round,
        "achieved_gflops": round(rate * flops_per_round / 1e9, 2),
        "matmul_gflops": round(matmul_gflops(), 1),
        "padding_efficiency": round(stats.padding_efficiency, 4),
        "num_compilations": stats.num_compilations,
        "final_train_loss": round(float(metrics.mean("loss")[-1]), 4),
    }


def bench_compaction(*, rounds: int, plan: str = "auto") -> dict[str, Any]:
    """Latency of a FedMask personal model: masked and dense against compacted.

    The model is LeNet on 28 x 28 images, trained for ``rounds`` rounds; the two forms run in
    turn, and the ratio is the median over pairs.
    """
    task = synthetic_task((28, 28, 1), 10, np.full(20, 40), noise=0.5)
    model = models.lenet(task)
    algorithm = fedmask(model, _SCORES, epochs=5, batch_size=10)
    simulation = make_simulation(algorithm, task, cohort=20, chunk=rounds, plan=plan)
    state, metrics = simulation.run(simulation.init(), 0, rounds)
    client = jax.tree.map(lambda a: a[0], state.clients)
    params = mask_params(model.kernels, state.common, client.value)
    small, small_params = compact(model, params)
    latency, speedup, difference = {}, {}, 0.0
    for batch in (1, 32):
        x = jnp.asarray(task.test_inputs[:batch])
        dense_form = partial(jax.jit(model.apply), params, x)
        small_form = partial(jax.jit(small.apply), small_params, x)
        difference = max(difference, float(jnp.max(jnp.abs(dense_form() - small_form()))))
        pairs = [(_seconds(dense_form), _seconds(small_form)) for _ in range(200)]
        latency[str(batch)] = {
            "masked_ms": round(1e3 * statistics.median(a for a, _ in pairs), 4),
            "compacted_ms": round(1e3 * statistics.median(b for _, b in pairs), 4),
        }
        speedup[str(batch)] = round(statistics.median(a / b for a, b in pairs), 3)
    return {
        "workload": _COMPACTION,
        "device": _device(),
        "density": round(float(metrics.mean("density")[-1]), 4),
        "parameters_dense": parameter_count(params),
        "parameters_compacted": parameter_count(small_params),
        "max_logit_difference": difference,
        "latency": latency,
        "latency_speedup": {"fedmask": speedup},
    }


def bench_runner(*, rounds: int, plan: str = "auto") -> dict[str, Any]:
    """What the runner adds to the bare loop of rounds: records, progress and checkpoints.

    Both run the same rounds of ``femnist-cnn`` in turn, seven times; evaluation, whose cost is
    the user's choice, is left out of both.
    """
    algorithm, task, cohort = _femnist_cnn()
    chunk = chunk_length(rounds)
    simulation = make_simulation(algorithm, task, cohort=cohort, chunk=chunk, plan=plan)
    state, _ = simulation.run(simulation.init(), 0, 1)
    evaluation = simulation.evaluate(state)
    simulation = simulation._replace(evaluate=lambda state: evaluation)

    def bare() -> None:
        state = simulation.init()
        for start in range(0, rounds, chunk):
            state, _ = simulation.run(state, start, min(chunk, rounds - start))

    def whole() -> None:
        config = make_config({"algorithm.name": "fedavg", "rounds": rounds, "eval_every": chunk})
        with (
            tempfile.TemporaryDirectory() as out,
            progress("bench", done=0, rounds=rounds, quiet=False) as show,
        ):
            hooks = (*writers(Path(out), config), show)
            run_rounds(simulation, simulation.init(), rounds=rounds, eval_every=chunk, on_chunk=hooks)

    pairs = [(_seconds(bare), _seconds(whole)) for _ in range(7)]
    return {
        "workload": _RUNNER,
        "plan": str(simulation.plan),
        "device": _device(),
        "rounds": rounds,
        "bare_s": round(statistics.median(a for a, _ in pairs), 4),
        "runner_s": round(statistics.median(b for _, b in pairs), 4),
        "overhead": round(statistics.median(b / a for a, b in pairs) - 1, 4),
    }


def _device() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _bench_skeleton(*, rounds: int, plan: str = "auto") -> dict[str, Any]:
    return {"workload": _SKELETON, **bench_skeleton(rounds=rounds, plan=plan)}


_COMPACTION, _RUNNER, _SKELETON = "fedmask-compact", "runner-overhead", "fedskel-backward"

WORKLOADS: Mapping[str, str] = {
    "femnist-cnn": "FedAvg, two convolutions on 28 x 28, 100 clients of 100, cohort 10",
    "femnist-cnn-ragged": "the same, clients of 20 to 180 examples",
    "mlp-1000": "FedAvg, dense 200-200-62, 1000 clients of 50, cohort 100",
    "pfl-cifar10": "FedAvg, two convolutions on 32 x 32 x 3, 1000 clients of 50, cohort 50",
    "fedmask-lenet": "FedMask, LeNet on 28 x 28, 100 clients of 40, cohort 20, 5 epochs",
    _COMPACTION: "latency of a FedMask model, masked and dense against compacted",
    _RUNNER: "what records, progress and checkpoints add to the rounds of femnist-cnn",
    _SKELETON: "ResNet-18 with skeletons: backward passes, training steps, rounds",
}
"""Names of the workloads, and what they are."""


def bench(workload: str, *, rounds: int = 20, plan: str = "auto") -> dict[str, Any]:
    """Runs a workload.

    Args:
      workload: A key of :data:`WORKLOADS`.
      rounds: Rounds to measure (to train, for ``fedmask-compact``).
      plan: An execution plan.

    Returns:
      Its figures, ready for JSON.

    Raises:
      UserError: There is no such workload, or too few rounds.
    """
    if workload not in WORKLOADS:
        raise unknown("workload", workload, WORKLOADS)
    if rounds < 1:
        raise UserError(f"rounds={rounds}: at least 1 is accepted")
    special = {_COMPACTION: bench_compaction, _RUNNER: bench_runner, _SKELETON: _bench_skeleton}
    if workload in special:
        return special[workload](rounds=rounds, plan=plan)
    return bench_rounds(workload, rounds=rounds, plan=plan)
