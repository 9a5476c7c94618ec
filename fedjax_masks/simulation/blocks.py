"""The choice of a block by the estimated time of a round.

All clients of a block take as many steps as the largest of them. Where clients differ in size or tier, a
block of the whole cohort may compute mostly padding; smaller blocks of clients of like size compute less, and
start more kernels. The choice depends on the program and on the accelerator.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from fedjax_masks.core import target
from fedjax_masks.programs.chips import Chip, chip_of
from fedjax_masks.programs.estimate import estimate
from fedjax_masks.programs.hlo import Module, parse
from fedjax_masks.simulation.cohorts import lay_out_rounds, select_cohorts
from fedjax_masks.simulation.memory import fit_plan
from fedjax_masks.simulation.parts import Parts
from fedjax_masks.simulation.plan import Plan

_ROUNDS = 10  # rounds whose cohorts are looked at
_BATCH = 20  # the assumed examples of a minibatch, which an algorithm does not tell
_WORTHWHILE = 0.8  # the largest share of the places for examples, or of the time, that is worth a compilation


class Load(NamedTuple):
    """The load of the slowest device in a mean round.

    Attributes:
      blocks: The number of blocks.
      longest: Examples of the largest client of a block, a mean over the blocks.
    """

    blocks: int
    longest: float


def compile_fast(
    compile_plan: Callable[[Plan], jax.stages.Compiled], plan: Plan, parts: Parts, chip: Chip | None = None
) -> tuple[jax.stages.Compiled, Plan, int]:
    """Compiles a program under the plan, or under a smaller plan that fits into memory or is faster.

    Args:
      compile_plan: Compiles the program for a plan.
      plan: The largest plan.
      parts: The parts of the simulation.
      chip: The accelerator; None for that at hand.

    Returns:
      The program, its plan, and its estimated peak memory in bytes.

    Raises:
      MemoryError: Even a program for one client at a time does not fit.
    """
    compiled = program, plan, _ = fit_plan(compile_plan, plan)
    chip = chip or chip_of(target.platform(), target.local_device().device_kind)
    # Several processes might estimate differently, and must run one program.
    if not plan.is_free or chip is None or jax.process_count() > 1:
        return compiled
    try:
        faster = faster_plan(program, plan, parts, chip)
        if faster is None:
            return compiled
        candidate = fit_plan(compile_plan, faster)
        cohorts, times = _cohorts(parts), []
        for program, plan, _ in (compiled, candidate):
            load = _load(parts, plan, cohorts)
            times.append(_seconds(_module(program), chip, load, load))
    except Exception as error:  # the text of programs is XLA's own, and the first program works
        warnings.warn(f"plan=auto: smaller blocks are not tried: {error!r}", stacklevel=2)
        return compiled
    return candidate if times[1] < times[0] else compiled


def faster_plan(program: jax.stages.Compiled, plan: Plan, parts: Parts, chip: Chip) -> Plan | None:
    """The plan whose block is the fastest by estimate, among halves of the block; None if none is faster.

    Args:
      program: The program under the plan.
      plan: The plan.
      parts: The parts of the simulation.
      chip: The accelerator.
    """
    blocks = [plan.block]
    while blocks[-1] > 1:
        blocks.append(-(-blocks[-1] // 2))
    cohorts = _cohorts(parts)
    loads = {block: _load(parts, replace(plan, block=block), cohorts) for block in blocks}
    work = {block: block * load.blocks * load.longest for block, load in loads.items()}
    if min(work.values()) > _WORTHWHILE * work[plan.block]:
        return None
    module = _module(program)
    now = loads[plan.block]
    times = {b: _seconds(module, chip, now, load, share=b / plan.block) for b, load in loads.items()}
    best = min(times, key=times.__getitem__)
    if not times[best] <= _WORTHWHILE * times[plan.block]:  # also where there is no estimate
        return None
    share = times[best] / times[plan.block]
    reason = f"clients differ in size or tier: {best} at once take {share:.0%} of the time of {plan.block}"
    return replace(plan, block=best, reason=reason)


def _module(program: jax.stages.Compiled) -> Module | None:
    text = program.as_text()
    return parse(text) if text else None


def _seconds(module: Module | None, chip: Chip, now: Load, then: Load, *, share: float = 1.0) -> float:
    """The estimated seconds of a round under another load; NaN without a program.

    The kernels of a block shrink with it, and each block starts all of them.

    Args:
      module: The program.
      chip: The accelerator.
      now: The load of the program.
      then: The other load.
      share: The size of the other load's blocks, as a share of the program's.
    """
    if module is None:
        return float("nan")
    trips = max(1.0, then.longest / _BATCH)
    whole = estimate(module, chip, trips=trips, outer_trips=1.0, share=share)
    return whole.costs.seconds * then.blocks / now.blocks


def _cohorts(parts: Parts) -> np.ndarray:
    """The cohorts of the first rounds: ``int32[rounds, cohort]``."""
    rounds = range(min(_ROUNDS, parts.chunk))
    return select_cohorts(rounds, int(parts.seeds[0]), parts.cohort, parts.task.num_clients, parts.algorithm)


def _load(parts: Parts, plan: Plan, cohorts: np.ndarray) -> Load:
    sizes = lay_out_rounds(cohorts, parts.task, parts.algorithm, plan).sizes
    longest = sizes.reshape(len(cohorts), plan.devices, -1, plan.block).max(axis=3)
    slowest = np.max(longest.sum(axis=2), axis=1).mean()
    return Load(longest.shape[2], float(slowest) / longest.shape[2])
