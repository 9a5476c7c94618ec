"""Whether a compiled program fits into memory, found before it runs."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from fedjax_masks.simulation.plan import Plan


def available_bytes() -> int | None:
    """Free memory of the first device, in bytes; None if unknown.

    For a CPU, that of the host, or what the control groups of a container or a batch job leave of it.
    """
    device = jax.devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats()
        return stats["bytes_limit"] - stats["bytes_in_use"] if stats else None
    return min([_host_bytes(), *_group_bytes()])


def _host_bytes() -> int:
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        if not hasattr(os, "sysconf"):  # Windows
            return sys.maxsize
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_bytes(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What each limited control group of this process leaves, in bytes; either version of them.

    Args:
      own: Names the groups, a line ``number:controllers:path`` each; version 2 has no controllers.
      root: Where they are mounted.
    """
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        limit, usage = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        group = top / path.strip("/")
        for level in (group, *group.parents):  # a limit binds all groups below it
            if not level.is_relative_to(top):
                break
            try:
                left = int((level / f"memory.{limit}").read_text())
                left -= int((level / f"memory.{usage}").read_text())
                stat = dict(line.split() for line in (level / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # there is no such group in this mount, or no limit
                continue
            # Files that nobody has open fill what is free, and make room when it is needed.
            yield left + int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


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
        copies = plan.devices // jax.process_count() or 1 if jax.default_backend() == "cpu" else 1
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
        fewer = -(-plan.devices // 2) if jax.process_count() == 1 else 1
        smaller = {"block": -(-plan.block // 2)} if plan.block > 1 else {"devices": fewer}
        plan = replace(plan, reason=reason, **smaller)
