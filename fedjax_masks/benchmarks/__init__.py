"""Fixed workloads that measure speed: ``fedjax-masks bench``. A workload imports its module when it runs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedjax_masks.core.errors import UserError, unknown_name
from fedjax_masks.core.lazy import load


class Workload(NamedTuple):
    """A workload.

    Attributes:
      text: A description.
      run: ``(*, rounds, plan) -> figures``: runs the workload.
    """

    text: str
    run: Callable[..., dict[str, Any]]


def _function(source: str, **arguments: object) -> Callable[..., dict[str, Any]]:
    """A function of this package, ``"MODULE:NAME"``, whose module is imported when it is called."""
    return lambda **options: load(f"fedjax_masks.benchmarks.{source}")(**arguments, **options)


def _rounds(setup: str) -> Callable[..., dict[str, Any]]:
    """A function that measures the rounds per second of a setup of :mod:`fedjax_masks.benchmarks.rounds`."""

    def run(**options: Any) -> dict[str, Any]:
        from fedjax_masks.benchmarks import rounds

        return rounds.bench_rounds(getattr(rounds, setup), **options)

    return run


WORKLOADS: Mapping[str, Workload] = {
    "femnist-cnn": Workload(
        "FedAvg, two convolutions on 28 x 28, 100 clients of 100, cohort 10",
        _rounds("femnist_cnn"),
    ),
    "femnist-cnn-ragged": Workload(
        "femnist-cnn with clients of 20 to 180 examples", _rounds("femnist_cnn_ragged")
    ),
    "mlp-1000": Workload(
        "FedAvg, dense 200-200-62, 1000 clients of 50, cohort 100",
        _rounds("mlp_1000"),
    ),
    "pfl-cifar10": Workload(
        "FedAvg, two convolutions on 32 x 32 x 3, 1000 clients of 50, cohort 50",
        _rounds("pfl_cifar10"),
    ),
    "fedmask-lenet": Workload(
        "FedMask, LeNet on 28 x 28, 100 clients of 40, cohort 20, 5 epochs",
        _rounds("fedmask_lenet"),
    ),
    "blaze-cnn-100": Workload(
        "FedAvg, two convolutions on 32 x 32 x 3, 100 clients of 500, all in a round, 5 epochs",
        _rounds("blaze_cnn_100"),
    ),
    "ssfl-cifar10": Workload(
        "FedAvg, ResNet-18 on 32 x 32 x 3, 100 clients of 500, cohort 10, 5 epochs",
        _rounds("ssfl_cifar10"),
    ),
    "ssfl-fedskel": Workload("ssfl-cifar10 by FedSkel, a fifth of the filters", _rounds("ssfl_fedskel")),
    "runner-overhead": Workload(
        "overhead of records, progress and checkpoints over the rounds of femnist-cnn",
        _function("rounds:bench_runner"),
    ),
    "fedskel-backward": Workload(
        "ResNet-18 with skeletons: backward passes, training steps, rounds",
        _function("skeleton:bench_skeleton"),
    ),
    "fedskel-rounds": Workload(
        "ResNet-18 of a quarter of the width: rounds with skeletons of a fifth against whole rounds",
        _function("skeleton_rounds:bench_skeleton_rounds"),
    ),
    "fedmask-compact": Workload(
        "latency of a FedMask model: the masked dense form against the compacted form",
        _function("inference:bench_inference", systems=("fedmask",)),
    ),
    "scale-clients": Workload(
        "FedMask, LeNet, cohorts of 100 out of a thousand to a million clients, masks on the host",
        _function("scale:bench_clients"),
    ),
    "scale-cohort": Workload("mlp-1000 with cohorts of 10 to 1000", _function("scale:bench_cohort")),
    "scale-devices": Workload("mlp-1000 on 1 to 8 devices", _function("scale:bench_devices")),
    "masked-inference": Workload(
        "fedmask-compact for every system that makes models smaller", _function("inference:bench_inference")
    ),
}
"""Workloads by name."""


def bench(
    workload: str,
    *,
    rounds: int = 20,
    plan: str = "auto",
    chip: str | None = None,
    config: str | None = None,
) -> dict[str, Any]:
    """Runs a workload.

    Args:
      workload: A key of :data:`WORKLOADS`.
      rounds: The number of rounds to measure; where models are measured, the number of training rounds.
      plan: The execution plan.
      chip: An accelerator that need not be there: the workload is compiled for it, and does not run.
      config: With ``chip``, a configuration file instead of the workload.

    Returns:
      The figures, ready for JSON.

    Raises:
      UserError: There is no such workload or chip, or too few rounds.
    """
    from fedjax_masks.experiment import platforms

    if workload not in WORKLOADS:
        raise unknown_name("workload", workload, WORKLOADS)
    if rounds < 1:
        raise UserError(f"rounds={rounds}: must be at least 1; name a larger number")
    if chip is not None:
        from fedjax_masks.benchmarks import compiled

        if config is not None:
            return compiled.bench_config(config, chip, rounds=rounds)
        return compiled.bench_workload(workload, chip, rounds=rounds, plan=plan)
    platforms.check()
    return {"workload": workload, **WORKLOADS[workload].run(rounds=rounds, plan=plan)}
