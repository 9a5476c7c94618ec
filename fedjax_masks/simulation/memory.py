"""Free memory, the memory of compiled programs, and the choice of a plan that fits."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax

from fedjax_masks.core import target
from fedjax_masks.simulation.plan import Plan


def available_bytes() -> int | None:
    """The free memory of the first device that programs are made for, in bytes; None if unknown.

    For a CPU, this is the free memory of the host, or less where the control groups of a container or of a
    batch job limit the process.
    """
    if (memory := target.memory()) is not None:
        return memory
    device = target.local_device()
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        # Some platforms do not tell their limit.
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None
    return min([_host_bytes(), *_group_bytes()])


def _host_bytes() -> int:
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        if not hasattr(os, "sysconf"):  # Windows
            return sys.maxsize
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_bytes(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """The free bytes in each control group of the process that has a limit, in either version of groups.

    Args:
      membership: A file with a line ``number:controllers:path`` per group; version 2 has no controllers.
      root: The mount point of the groups.
    """
    for line in membership.read_text().splitlines() if membership.exists() else ():
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
                free = int((level / f"memory.{limit}").read_text())
                free -= int((level / f"memory.{usage}").read_text())
                stat = dict(line.split() for line in (level / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # the mount has no such group, or the group has no limit
                continue
            # The kernel's cache of inactive files counts as usage, but is released on demand.
            yield free + int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def peak_bytes(program: jax.stages.Compiled) -> int:
    """The peak memory of a compiled program in bytes: arguments, results and temporaries."""
    sizes = program.memory_analysis()
    if sizes is None:
        return 0
    # Donated arguments share memory with results.
    arguments_and_results = (
        sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    )
    return arguments_and_results + sizes.temp_size_in_bytes


def fit_plan(
    compile_plan: Callable[[Plan], jax.stages.Compiled], plan: Plan, *, available: int | None = None
) -> tuple[jax.stages.Compiled, Plan, int]:
    """Compiles a program under the plan, or under a smaller plan that fits into memory.

    Smaller plans have smaller blocks first, and then fewer devices.

    Args:
      compile_plan: Compiles the program for a plan.
      plan: The largest plan.
      available: Free bytes; None for those of the machine.

    Returns:
      The program, its plan, and its estimated peak memory in bytes.

    Raises:
      MemoryError: Even a program for one client at a time does not fit.
    """
    available = available_bytes() if available is None else available
    while True:
        program = _compiled(compile_plan, plan)
        if program is None:
            reason = "more memory than the chip has, as its compiler says"
        else:
            # The devices of a CPU share its memory, and the analysis is that of one device.
            copies = plan.devices // jax.process_count() or 1 if target.is_cpu() else 1
            need = peak_bytes(program) * copies
            if available is None or need <= available:
                return program, plan, need
            reason = f"{need / 1e9:.1f} GB, {available / 1e9:.1f} GB are free"
        if plan.block == plan.devices == 1:
            raise MemoryError(
                f"the simulation needs {reason}, and clients already run one at a time; choose a smaller "
                "model, or fewer clients"
            )
        fewer = -(-plan.devices // 2) if jax.process_count() == 1 else 1
        smaller = {"block": -(-plan.block // 2)} if plan.block > 1 else {"devices": fewer}
        plan = replace(plan, reason=f"{plan} needs {reason}", **smaller)


def _compiled(compile_plan: Callable[[Plan], jax.stages.Compiled], plan: Plan) -> jax.stages.Compiled | None:
    """The program of a plan; None if the compiler refuses it for want of memory, as that for TPUs does."""
    try:
        return compile_plan(plan)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
