"""The simulation engine: from an algorithm and a task to compiled rounds, for one run or for several in step.

Only this package uses ``jit``, ``vmap``, ``scan`` over clients, and ``shard_map``.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from fedjax_masks.communication import size
from fedjax_masks.core.algorithm import FederatedAlgorithm, State, Task
from fedjax_masks.core.choices import StatePlace
from fedjax_masks.core.errors import UserError
from fedjax_masks.costs.profiles import Population
from fedjax_masks.simulation.chunks import ChunkRunner
from fedjax_masks.simulation.evaluate import evaluated_clients, make_evaluate
from fedjax_masks.simulation.parts import make_parts
from fedjax_masks.simulation.plan import Plan
from fedjax_masks.simulation.records import Evaluation, RoundMetrics, Stats
from fedjax_masks.simulation.runs import lay_out_runs
from fedjax_masks.simulation.states import ClientStates, client_states
from fedjax_masks.simulation.storage import AUTO, Storage
from fedjax_masks.simulation.store import Store
from fedjax_masks.simulation.tracing import MakeAlgorithm


class Simulation(NamedTuple):
    """A compiled simulation of one run, or of several runs in step, as a record of functions.

    A state is that of all runs: with several runs, each leaf has a leading axis of runs.

    Attributes:
      init: ``() -> State`` before round 0.
      run: ``(state, first_round, num_rounds) -> (state, one RoundMetrics per run)``; ``num_rounds`` is at
        most the chunk. The argument is donated: use the returned state.
      evaluate: ``(state) -> one Evaluation per run``.
      clients: ``(state, ids) -> ClientStates`` of some clients of the first run, from any storage; ``ids``
        are sorted, and at most as many as the clients of a chunk.
      take: ``(state, run) -> State`` of one run.
      stack: ``(one State per run) -> State`` of all runs.
      stats: ``() -> Stats`` so far, of all runs.
      plan: The execution plan within a run; its reason also describes the layout of runs.
      setup_bytes: Bytes that every device of a run gets once, before the first round.
      memory_bytes: Estimated peak of device memory for a chunk of rounds of all runs.
      num_clients: The task's number of clients.
      period: The period of the algorithm's schedule, in rounds.
      state_place: The place of clients' states: ``device``, ``mesh`` or ``host``.
      store: The file of clients' states on the host, if any.
    """

    init: Callable[[], State]
    run: Callable[[State, int, int], tuple[State, list[RoundMetrics]]]
    evaluate: Callable[[State], list[Evaluation]]
    clients: Callable[[State, np.ndarray], ClientStates]
    take: Callable[[State, int], State]
    stack: Callable[[Sequence[State]], State]
    stats: Callable[[], Stats]
    plan: Plan
    setup_bytes: int
    memory_bytes: int
    num_clients: int
    period: int
    state_place: StatePlace
    store: Store | None


def make_simulation(
    algorithm: FederatedAlgorithm | MakeAlgorithm,
    task: Task,
    *,
    cohort: int,
    seeds: Sequence[int] = (0,),
    values: Mapping[str, Sequence[float]] = MappingProxyType({}),
    chunk: int = 10,
    plan: str = "auto",
    population: Population | None = None,
    storage: Storage = AUTO,
    eval_clients: int | None = None,
    poison: bool = False,
) -> Simulation:
    """Compiles a simulation.

    Args:
      algorithm: The algorithm; with ``values``, ``(options) -> algorithm``, whose options are traced scalars.
      task: Data and clients, of all runs.
      cohort: Clients per round, at most ``task.num_clients``.
      seeds: Each run's seed, which decides everything random: initial state, cohorts, order of examples.
      values: Each numeric option's value in every run.
      chunk: The largest number of rounds of one call of ``run``.
      plan: An execution plan, see :func:`~fedjax_masks.simulation.plan.parse_plan`; never changes results.
        With several runs, its devices are divided among the runs.
      population: The clients' devices and links; without a population, rounds take no simulated time.
      storage: The places of clients' states and data between rounds; never changes results.
      eval_clients: The number of clients whose own models are evaluated; None for all.
      poison: Whether to overwrite every value that is not sent. This is a test: an algorithm that reads such
        a value gives other results, or NaN.

    Returns:
      The compiled simulation. Each of several runs gives the results of a single run, up to the order of
      sums.

    Raises:
      UserError: ``cohort`` or ``eval_clients`` is out of range, the plan is no plan, a function of the
        algorithm returns a wrong result, or several runs have storage on the host.
      jax.errors.ConcretizationTypeError: The algorithm depends on the value of an option at trace time.
      MemoryError: The simulation does not fit into memory under any plan.

    Example:
      >>> import fedjax_masks as fm, optax
      >>> task = fm.load_task("digits", clients=10)
      >>> model = fm.models.mlp(task, hidden=(16,))
      >>> simulation = fm.make_simulation(
      ...     lambda options: fm.fedavg(model, optax.sgd(options["lr"])),
      ...     task,
      ...     cohort=5,
      ...     seeds=(0, 0),
      ...     values={"lr": (0.1, 0.01)},
      ... )
      >>> state, metrics = simulation.run(simulation.init(), 0, 1)
      >>> len(metrics), len(simulation.evaluate(state))
      (2, 2)
    """
    check_cohort(cohort, task)
    ids = evaluated_clients(eval_clients, task.num_clients)
    first_plan, layout = lay_out_runs(plan, cohort=cohort, num_runs=len(seeds))
    parts = make_parts(
        _factory(algorithm, values),
        task,
        cohort=cohort,
        chunk=chunk,
        seeds=seeds,
        values=values,
        devices=first_plan.devices,
        population=population,
        storage=storage,
        poison=poison,
    )
    runner = ChunkRunner(parts, layout, first_plan)
    runs, states = runner.runs, parts.states
    return Simulation(
        init=runner.init,
        run=runner.run,
        evaluate=make_evaluate(parts.make, parts.algorithm, task, runs, ids, states, runner.settings[0]),
        clients=lambda state, ids: states.read(client_states(runs.take(state, 0)), ids),
        take=runs.take,
        stack=runs.join,
        stats=runner.stats,
        plan=runs.plan,
        setup_bytes=size.installed_bytes(parts.shapes.message),
        memory_bytes=runner.memory_bytes,
        num_clients=task.num_clients,
        period=parts.algorithm.schedule.period,
        state_place=states.name,
        store=states.store,
    )


def _factory(
    algorithm: FederatedAlgorithm | MakeAlgorithm, values: Mapping[str, Sequence[float]]
) -> MakeAlgorithm:
    """``(options) -> algorithm``."""
    if callable(algorithm):
        factory: MakeAlgorithm = algorithm
        if values:
            return factory
        # Called outside a trace: without traced options, a factory may depend on values of arrays.
        constant = factory({})
    else:
        constant = algorithm
    return lambda options: constant


def check_cohort(cohort: int, task: Task) -> None:
    """Checks the size of a cohort.

    Raises:
      UserError: It is out of range.
    """
    if not 1 <= cohort <= task.num_clients:
        raise UserError(f"cohort={cohort}: must be from 1 to {task.num_clients}, the number of clients")
