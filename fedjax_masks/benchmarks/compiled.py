"""Estimates of simulations on accelerators that are not there: compiled, not run."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from fedjax_masks.aot.compilation import Compilation, compile_for
from fedjax_masks.benchmarks import rounds as setups
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.progress import activity
from fedjax_masks.experiment import build, config
from fedjax_masks.programs.products import Product

_SHOWN = 6


def bench_workload(workload: str, chip: str, *, rounds: int, plan: str) -> dict[str, Any]:
    """Compiles a workload for a chip.

    Args:
      workload: A key of :data:`fedjax_masks.benchmarks.rounds.SETUPS`.
      chip: A key of :data:`fedjax_masks.programs.chips.CHIPS`.
      rounds: The number of rounds in the compiled chunk.
      plan: The execution plan.

    Raises:
      UserError: The workload does not measure rounds, or there is no such chip.
    """
    if workload not in setups.SETUPS:
        raise UserError(
            f"workload={workload!r}: must be one of {', '.join(setups.SETUPS)} with --compile-for"
        )
    _use_cpu()
    algorithm, task, cohort = setups.SETUPS[workload]()
    with activity(f"compiling {workload} for {chip}"):
        compiled = compile_for(
            chip, algorithm, task, cohort=cohort, plan=plan, rounds=rounds, batch_size=setups.RAGGED_BATCH
        )
    return {"workload": workload, **figures(compiled)}


def bench_config(file: str, chip: str, *, rounds: int) -> dict[str, Any]:
    """Compiles the simulation of a configuration for a chip.

    Args:
      file: A configuration file, TOML or JSON.
      chip: A key of :data:`fedjax_masks.programs.chips.CHIPS`.
      rounds: The number of rounds in the compiled chunk.

    Raises:
      UserError: The configuration is wrong, or there is no such chip.
    """
    _use_cpu()
    run = config.make_config(config.read_file(file))
    algorithm, task = build.build(run)
    with activity(f"compiling {file} for {chip}"):
        compiled = compile_for(
            chip,
            algorithm,
            task,
            cohort=min(run.cohort, task.num_clients),
            plan=run.plan,
            rounds=rounds,
            batch_size=run.training.batch_size,
            eval_clients=run.eval_clients,
        )
    return {"config": file, **figures(compiled)}


def figures(compiled: Compilation) -> dict[str, Any]:
    """The figures of a compiled simulation, ready for JSON; all but the first lines are for one round."""
    most, least, rounds = compiled.most.costs, compiled.least.costs, compiled.rounds
    calls = {product: count / rounds for product, count in compiled.most.products.items()}
    return {
        "chip": compiled.chip.name,
        "basis": "compiled, not run; rates by data sheet",
        "plan": str(compiled.plan),
        "reason": compiled.plan.reason,
        "memory_gb": round(compiled.memory_bytes / 1e9, 3),
        "evaluation_ms": round(1e3 * compiled.evaluation, 3),
        "host_loops": compiled.most.host_loops,
        "round_ms": round(1e3 * most.seconds / rounds, 3),
        "least_round_ms": round(1e3 * least.seconds / rounds, 3),
        "branches_ms": _longest(compiled.most.branches.values(), rounds),
        "bound": most.bound,
        "launch_ms": round(1e3 * most.launch_s / rounds, 3),
        "memory_ms": round(1e3 * most.traffic_s / rounds, 3),
        "products_ms": round(1e3 * most.compute_s / rounds, 3),
        "kernels": round(most.kernels / rounds, 1),
        "least_kernels": round(least.kernels / rounds, 1),
        "gb_moved": round(most.bytes / 1e9 / rounds, 3),
        "gflop": round(most.flops / 1e9 / rounds, 3),
        "products": [_describe(product, calls[product]) for product in _largest(calls)],
    }


def _use_cpu() -> None:
    """Keeps jax from looking for the devices of the installed compilers, which need not be there."""
    jax.config.update("jax_platforms", "cpu")


def _longest(seconds: Iterable[float], rounds: int) -> list[float]:
    """The branches of a round that take most, in milliseconds, from a hundredth of the longest upwards."""
    times = sorted((round(1e3 * s / rounds, 3) for s in seconds), reverse=True)
    return [time for time in times[:_SHOWN] if time > 0.01 * times[0]]


def _largest(calls: Mapping[Product, float]) -> list[Product]:
    """The products with most FLOPs."""
    return sorted(calls, key=lambda product: -product.flops * calls[product])[:_SHOWN]


def _describe(product: Product, calls: float) -> str:
    """A product in words.

    >>> _describe(Product("product", 50, 7840, 64, 288, "highest"), 5)
    '5 x product of 50: 7840 x 288 x 64, highest'
    """
    kind = "product of" if product.kind == "product" else "convolution with groups:"
    return (
        f"{calls:g} x {kind} {product.batch}: {product.rows} x {product.terms:g} x {product.columns}, "
        f"{product.precision}"
    )
