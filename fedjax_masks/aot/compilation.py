"""Programs of a simulation, compiled for a chip that is not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from fedjax_masks.core import target
from fedjax_masks.core.algorithm import FederatedAlgorithm, Task
from fedjax_masks.programs.chips import Chip, chip_named, devices_of
from fedjax_masks.programs.estimate import Estimate, estimate
from fedjax_masks.programs.hlo import Module, parse
from fedjax_masks.simulation.accuracy import EVAL_BATCH
from fedjax_masks.simulation.blocks import compile_fast
from fedjax_masks.simulation.chunks import lower_chunk
from fedjax_masks.simulation.cohorts import lay_out_rounds, select_cohorts
from fedjax_masks.simulation.evaluate import lower_evaluation
from fedjax_masks.simulation.parts import Parts, make_parts
from fedjax_masks.simulation.plan import Plan
from fedjax_masks.simulation.runs import Layout, Runs, lay_out_runs
from fedjax_masks.simulation.storage import AUTO


class Compilation(NamedTuple):
    """A simulation, compiled for a chip.

    Attributes:
      chip: The chip.
      plan: The plan that fits into its memory.
      memory_bytes: Peak bytes of memory of a chunk.
      rounds: The number of rounds of a chunk.
      module: The program of a chunk.
      most: The estimate of a chunk whose branches all take the longest way.
      least: The estimate of a chunk whose branches all take the shortest way.
      evaluation: The seconds of an evaluation.
    """

    chip: Chip
    plan: Plan
    memory_bytes: int
    rounds: int
    module: Module
    most: Estimate
    least: Estimate
    evaluation: float


def compile_for(
    name: str,
    algorithm: FederatedAlgorithm,
    task: Task,
    *,
    cohort: int,
    plan: str = "auto",
    rounds: int = 10,
    batch_size: int = 10,
    eval_clients: int | None = None,
) -> Compilation:
    """Compiles a simulation for a chip, and estimates its costs there. Nothing runs.

    Args:
      name: A key of :data:`fedjax_masks.programs.chips.CHIPS`.
      algorithm: The algorithm.
      task: Data and clients.
      cohort: Clients per round.
      plan: An execution plan, see :func:`~fedjax_masks.simulation.plan.parse_plan`.
      rounds: The number of rounds of a chunk.
      batch_size: Examples per minibatch, from which the turns of loops over minibatches follow where clients
        have different numbers of examples.
      eval_clients: The number of clients whose own models are evaluated; None for all.

    Raises:
      UserError: There is no such chip, or its compiler is not installed; or the plan is no plan.
      MemoryError: The simulation does not fit into the chip's memory.

    Example:
      >>> from fedjax_masks.benchmarks import rounds
      >>> algorithm, task, cohort = rounds.mlp_1000()
      >>> compiled = compile_for("h200", algorithm, task, cohort=cohort)  # doctest: +SKIP
      >>> compiled.most.costs.seconds / compiled.rounds  # doctest: +SKIP
    """
    chip = chip_named(name)
    with _no_cache(), target.making_for(target.Target(chip.platform, devices_of(chip), chip.memory)):
        first_plan, layout = lay_out_runs(plan, cohort=cohort, num_runs=1)
        parts = parts_of(algorithm, task, cohort=cohort, rounds=rounds, devices=first_plan.devices)
        program, plan_there, memory = compile_fast(
            lambda plan: _compile_chunk(parts, layout, plan, rounds), first_plan, parts, chip
        )
        runs = layout(plan_there)
        module = parse(program.as_text() or "")
        trips = _turns(parts, plan_there, rounds, batch_size)
        most, least = (estimate(module, chip, trips=trips, branch=branch) for branch in (max, min))
        clients = task.num_clients if eval_clients is None else eval_clients
        evaluation = _evaluation(parts, runs, chip, clients)
    return Compilation(chip, plan_there, memory, rounds, module, most, least, evaluation)


def parts_of(algorithm: FederatedAlgorithm, task: Task, *, cohort: int, rounds: int, devices: int) -> Parts:
    """The parts of a simulation of one run, without its programs.

    Args:
      algorithm: The algorithm.
      task: Data and clients.
      cohort: Clients per round.
      rounds: The number of rounds of a chunk.
      devices: The number of devices of the plan.
    """
    return make_parts(
        lambda options: algorithm,
        task,
        cohort=cohort,
        chunk=rounds,
        seeds=(0,),
        values={},
        devices=devices,
        population=None,
        storage=AUTO,
        poison=False,
    )


@contextmanager
def _no_cache() -> Iterator[None]:
    """Keeps programs out of JAX's cache on the disk: without their chip they cannot be read again."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    _enable_cache(False)
    try:
        yield
    finally:
        _enable_cache(enabled)


def _enable_cache(enabled: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()  # jax asks for the setting once, and remembers it


def _compile_chunk(parts: Parts, layout: Layout, plan: Plan, rounds: int) -> jax.stages.Compiled:
    return lower_chunk(parts, layout(plan), num_rounds=rounds).compile()


def _turns(parts: Parts, plan: Plan, rounds: int, batch_size: int) -> float:
    """The mean number of minibatches of the largest client of a block, over the blocks of some rounds."""
    cohorts = select_cohorts(range(rounds), 0, parts.cohort, parts.task.num_clients, parts.algorithm)
    lanes = lay_out_rounds(cohorts, parts.task, parts.algorithm, plan)
    longest = lanes.sizes.reshape(rounds, -1, plan.block).max(2)
    return float(np.mean(-(-longest // batch_size)))


def _evaluation(parts: Parts, runs: Runs, chip: Chip, num_clients: int) -> float:
    """Seconds of an evaluation of the global model and of clients' own models."""
    sizes = np.asarray(parts.task.test.sizes)
    seconds = 0.0
    for name, lowered in lower_evaluation(parts, runs, num_clients).items():
        module = parse(lowered.compile().as_text() or "")
        trips = float(-(-sizes.max(initial=0) // EVAL_BATCH))
        calls = 1 if name == "global" else -(-num_clients // min(parts.states.max_clients, num_clients))
        seconds += calls * estimate(module, chip, trips=trips).costs.seconds
    return seconds
