"""The choice of a block by the estimated time of a round.

All clients of a block take as many steps as the largest of them. Where clients differ in size or tier, a
block of the whole cohort may compute mostly padding; smaller blocks of clients of like size compute less, and
start more kernels. The choice depends on the program and on the accelerator.
"""

from collections.abc import Callable
from dataclasses import replace

import jax

from fedjax_masks.aot.chips import Chip, chip_of
from fedjax_masks.aot.estimate import estimate
from fedjax_masks.aot.hlo import parse
from fedjax_masks.core import target
from fedjax_masks.simulation.cohorts import lay_out_rounds, select_cohorts
from fedjax_masks.simulation.memory import fit_plan
from fedjax_masks.simulation.parts import Parts
from fedjax_masks.simulation.plan import Plan

_ROUNDS = 10  # rounds whose cohorts are looked at
_LESS_WORK = 0.8  # the largest share of the examples, with padding, for which an estimate is worth its time
_FASTER = 0.9  # the largest share of the time for which a second compilation is


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
    if target.is_cpu() or not plan.is_free:
        return compiled
    faster = faster_plan(program, plan, parts, chip or chip_of(target.platform(), _device_kind()))
    return compiled if faster.block == plan.block else fit_plan(compile_plan, faster)


def faster_plan(program: jax.stages.Compiled, plan: Plan, parts: Parts, chip: Chip) -> Plan:
    """The plan whose block is the fastest by estimate, among the plan's block and its halves.

    Args:
      program: The program under the plan.
      plan: The plan.
      parts: The parts of the simulation.
      chip: The accelerator.
    """
    blocks = [plan.block]
    while blocks[-1] > 1:
        blocks.append(-(-blocks[-1] // 2))
    steps = {block: _steps(parts, replace(plan, block=block)) for block in blocks}
    work = {block: block * steps[block] for block in blocks}
    text = program.as_text() if min(work.values()) <= _LESS_WORK * work[plan.block] else None
    if not text:
        return plan
    module, trips = parse(text), steps[plan.block]

    def seconds(block: int) -> float:
        kernels = estimate(module, chip, trips=trips, share=block / plan.block)
        return kernels.costs.seconds * steps[block] / steps[plan.block]

    times = {block: seconds(block) for block in blocks}
    best = min(times, key=times.__getitem__)
    if times[best] > _FASTER * times[plan.block]:
        return plan
    share = times[best] / times[plan.block]
    return replace(
        plan,
        block=best,
        reason=f"clients differ in size or tier: {best} at once take {share:.0%} of the time of {plan.block}",
    )


def _steps(parts: Parts, plan: Plan) -> float:
    """The examples of each block's largest client, summed over the blocks of a device: a mean over rounds."""
    rounds = range(min(_ROUNDS, parts.chunk))
    cohorts = select_cohorts(
        rounds, int(parts.seeds[0]), parts.cohort, parts.task.num_clients, parts.algorithm
    )
    sizes = lay_out_rounds(cohorts, parts.task, parts.algorithm, plan).sizes
    largest = sizes.reshape(len(rounds), -1, plan.block).max(axis=2)
    return float(largest.sum(axis=1).mean()) / plan.devices


def _device_kind() -> str:
    return target.devices()[0].device_kind
