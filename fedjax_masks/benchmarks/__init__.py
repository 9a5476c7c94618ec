"""Fixed workloads for measuring speed: ``fedjax-masks bench``."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from fedjax_masks.benchmarks import rounds as simulations
from fedjax_masks.benchmarks.inference import bench_inference
from fedjax_masks.benchmarks.rounds import bench_rounds, bench_runner
from fedjax_masks.benchmarks.scale import bench_clients, bench_cohort, bench_devices
from fedjax_masks.benchmarks.skeleton import bench_skeleton
from fedjax_masks.core.errors import UserError, unknown
from fedjax_masks.experiment import platforms


class Workload(NamedTuple):
    """Something to measure.

    Attributes:
      text: What it is.
      run: ``(*, rounds, plan) -> figures``.
    """

    text: str
    run: Callable[..., dict[str, Any]]


WORKLOADS: Mapping[str, Workload] = {
    "femnist-cnn": Workload(
        "FedAvg, two convolutions on 28 x 28, 100 clients of 100, cohort 10",
        partial(bench_rounds, simulations.femnist_cnn),
    ),
    "femnist-cnn-ragged": Workload(
        "the same, clients of 20 to 180 examples", partial(bench_rounds, simulations.femnist_cnn_ragged)
    ),
    "mlp-1000": Workload(
        "FedAvg, dense 200-200-62, 1000 clients of 50, cohort 100",
        partial(bench_rounds, simulations.mlp_1000),
    ),
    "pfl-cifar10": Workload(
        "FedAvg, two convolutions on 32 x 32 x 3, 1000 clients of 50, cohort 50",
        partial(bench_rounds, simulations.pfl_cifar10),
    ),
    "fedmask-lenet": Workload(
        "FedMask, LeNet on 28 x 28, 100 clients of 40, cohort 20, 5 epochs",
        partial(bench_rounds, simulations.fedmask_lenet),
    ),
    "runner-overhead": Workload(
        "what records, progress and checkpoints add to the rounds of femnist-cnn", bench_runner
    ),
    "fedskel-backward": Workload(
        "ResNet-18 with skeletons: backward passes, training steps, rounds", bench_skeleton
    ),
    "fedmask-compact": Workload(
        "latency of a FedMask model, masked and dense against compacted",
        partial(bench_inference, systems=("fedmask",)),
    ),
    "scale-clients": Workload(
        "FedMask, LeNet, cohort 100 of a thousand to a million clients, masks on the host", bench_clients
    ),
    "scale-cohort": Workload("mlp-1000 with cohorts of 10 to 1000", bench_cohort),
    "scale-devices": Workload("mlp-1000 on 1 to 8 devices", bench_devices),
    "masked-inference": Workload("the same of every system that makes models smaller", bench_inference),
}
"""Workloads by name."""


def bench(workload: str, *, rounds: int = 20, plan: str = "auto") -> dict[str, Any]:
    """Runs a workload.

    Args:
      workload: A key of :data:`WORKLOADS`.
      rounds: Rounds to measure (to train, where models are measured).
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
    platforms.check()
    return {"workload": workload, **WORKLOADS[workload].run(rounds=rounds, plan=plan)}
