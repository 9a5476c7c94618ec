"""Whether a compiled program fits into memory, found before it runs."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax

from fedjax_masks.simulation.plan import Plan


def available_bytes() -> int | None:
    """Free memory of the first device (for a CPU, of the host), in bytes; None if unknown."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats()
        return stats["bytes_limit"] - stats["bytes_in_use"] if stats else None
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_bytes(program: Any) -> int:
    """Peak memory of a compiled program in bytes: arguments, results and temporaries."""
    need = program.memory_analysis()
    if need is None:
        return 0
    inputs_and_outputs = need.argument_size_in_bytes + need.output_size_in_bytes - need.alias_size_in_bytes
    return inputs_and_outputs + need.temp_size_in_bytes


def fit_plan(
    compile_for: Callable[[Plan], Any], plan: Plan, *, available: int | None = None
) -> tuple[Any, Plan, int]:
    """Compiles under the plan, or with smaller blocks and then fewer devices where it would not fit.

    Args:
      compile_for: Compiles the simulation for a plan.
      plan: The plan to start from.
      available: Bytes there are; None asks the machine.

    Returns:
      The program, its plan, and its estimated peak memory in bytes.

    Raises:
      MemoryError: Even one client at a time needs more than there is.
    """
    available = available_bytes() if available is None else available
    while True:
        program = compile_for(plan)
        copies = plan.devices if jax.default_backend() == "cpu" else 1
        need = peak_bytes(program) * copies
        if available is None or need <= available:
            return program, plan, need
        if plan.block == plan.devices == 1:
            raise MemoryError(
                f"the simulation needs {need / 1e9:.1f} GB, {available / 1e9:.1f} GB are free, and clients "
                "already run one at a time; accepted is a smaller model, or fewer clients with state of "
                "their own"
            )
        reason = f"{plan} needs {need / 1e9:.1f} GB, {available / 1e9:.1f} GB are free"
        smaller = {"block": -(-plan.block // 2)} if plan.block > 1 else {"devices": -(-plan.devices // 2)}
        plan = replace(plan, reason=reason, **smaller)
