"""The simulation engine: an algorithm and a task in, compiled rounds out, for one run or for many in step.

Together with its siblings this is the only home of ``jit``, ``vmap``, ``scan`` over clients and of
``shard_map``.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.communication import size
from fedjax_masks.core.algorithm import FederatedAlgorithm, State, Task
from fedjax_masks.core.choices import StatePlace
from fedjax_masks.core.errors import UserError
from fedjax_masks.costs.devices import Population
from fedjax_masks.simulation import arrays, storage, supply
from fedjax_masks.simulation.cohorts import check_selection, clients_of, lay_out_rounds, select_cohorts
from fedjax_masks.simulation.evaluate import evaluated_clients, make_evaluate
from fedjax_masks.simulation.mapping import OfClients, Rows, of_clients, padded_length, put, with_clients
from fedjax_masks.simulation.memory import fit_plan
from fedjax_masks.simulation.metering import make_meter, read
from fedjax_masks.simulation.plan import Plan
from fedjax_masks.simulation.records import Evaluation, Padding, RoundMetrics, Stats
from fedjax_masks.simulation.round import RoundReport, Setting, run_chunk, simulation_keys
from fedjax_masks.simulation.runs import Layout, Runs, lay_out_runs
from fedjax_masks.simulation.storage import AUTO, Residence, Storage
from fedjax_masks.simulation.store import Store
from fedjax_masks.simulation.tracing import trace_client

Options = Mapping[str, Any]
MakeAlgorithm = Callable[[Options], FederatedAlgorithm]


class Simulation(NamedTuple):
    """A compiled simulation of one run, or of several in step, as a record of functions.

    A state is that of all runs: each leaf of it leads with the runs, where there are several.

    Attributes:
      init: ``() -> State`` before round 0.
      run: ``(state, first_round, num_rounds) -> (state, one RoundMetrics a run)``; ``num_rounds`` is at most
        the chunk. The given state is donated: use the returned one.
      evaluate: ``(state) -> one Evaluation a run``.
      clients: ``(state, ids) ->`` states and profiles of these clients of the first run, sorted, wherever
        they lie; at most as many as a chunk has places for.
      take: ``(state, run) -> State`` of one run.
      stack: ``(one State a run) -> State`` of all runs.
      stats: ``() -> Stats`` so far, of all runs.
      plan: The execution plan within a run; its reason also tells the layout of runs.
      setup_bytes: Bytes that every device of a run gets once, before the first round.
      memory_bytes: Estimated peak of device memory for a chunk of rounds of all runs.
      num_clients: The task's number of clients.
      clients_on: The place of clients' states: ``device``, ``mesh`` or ``host``.
      store: Their file on the host, if any.
    """

    init: Callable[[], State]
    run: Callable[[State, int, int], tuple[State, list[RoundMetrics]]]
    evaluate: Callable[[State], list[Evaluation]]
    clients: Callable[[State, np.ndarray], OfClients]
    take: Callable[[State, int], State]
    stack: Callable[[Sequence[State]], State]
    stats: Callable[[], Stats]
    plan: Plan
    setup_bytes: int
    memory_bytes: int
    num_clients: int
    clients_on: StatePlace
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
    """Prepares a simulation.

    Args:
      algorithm: The algorithm; with ``values``, ``(options) -> algorithm``, whose options are traced scalars.
      task: Data and clients, of all runs.
      cohort: Clients per round, at most ``task.num_clients``.
      seeds: Each run's seed. It decides everything random: initial state, cohorts, order of examples.
      values: Each numeric option's value in every run.
      chunk: The largest number of rounds that one call of ``run`` may ask for.
      plan: An execution plan, see :func:`~fedjax_masks.simulation.plan.parse_plan`. Never changes results. Of
        several runs, its devices are those for runs.
      population: The clients' devices and links; None leaves time out of it.
      storage: The place of clients' states and data between rounds. Never changes results.
      eval_clients: Evaluate the personal models of so many clients only; None for all.
      poison: Destroys, on its way, every value that was not sent. For tests: an algorithm that reads what it
        never received gives other results, or NaN.

    Returns:
      The simulation, compiled. Each of several runs gives what it would give alone, up to the order of sums.

    Raises:
      ValueError: ``cohort`` or ``eval_clients`` is out of range, or the plan is not understood.
      UserError: A function of the algorithm returns something wrong, or several runs want the host.
      jax.errors.ConcretizationTypeError: The algorithm needs to know the value of an option.
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
    evaluated = evaluated_clients(eval_clients, task.num_clients)
    asked, layout = lay_out_runs(plan, cohort=cohort, num_runs=len(seeds))
    engine = _Engine(_maker(algorithm, values), task, cohort, seeds, values, chunk)
    engine.prepare(asked, population, storage, poison)
    engine.compile(asked, layout, evaluated)
    return Simulation(
        init=engine.init,
        run=engine.run,
        evaluate=engine.evaluate,
        clients=lambda state, ids: engine.states.read(of_clients(engine.runs.take(state, 0)), ids),
        take=engine.runs.take,
        stack=engine.runs.join,
        stats=lambda: Stats(engine.compile_seconds, len(engine.tried), engine.padding.efficiency),
        plan=engine.runs.plan,
        setup_bytes=size.installed_bytes(engine.shapes.message),
        memory_bytes=engine.memory_bytes,
        num_clients=task.num_clients,
        clients_on=engine.states.name,
        store=engine.states.store,
    )


def _maker(algorithm: FederatedAlgorithm | MakeAlgorithm, values: Mapping[str, Any]) -> MakeAlgorithm:
    if callable(algorithm):
        make: MakeAlgorithm = algorithm
        if values:
            return make
        # A factory need not work inside a trace where nothing of it is traced.
        made = make({})
    else:
        made = algorithm
    return lambda options: made


def check_cohort(cohort: int, task: Task) -> None:
    """Raises ValueError for a cohort that there cannot be."""
    if not 1 <= cohort <= task.num_clients:
        raise ValueError(f"cohort={cohort}: accepted are 1 to {task.num_clients}, the number of clients")


class _Engine:
    """The parts of a simulation, and the loop over chunks that moves data between the host and them."""

    def __init__(
        self,
        make_algorithm: MakeAlgorithm,
        task: Task,
        cohort: int,
        seeds: Sequence[int],
        values: Mapping[str, Sequence[float]],
        chunk: int,
    ) -> None:
        self.make_algorithm, self.task, self.cohort, self.chunk = make_algorithm, task, cohort, chunk
        self.seeds = [np.uint32(seed) for seed in seeds]
        self.options = [
            {name: np.float32(column[run]) for name, column in values.items()} for run in range(len(seeds))
        ]
        self.tried: list[Plan] = []
        self.padding = Padding()

    def prepare(self, asked: Plan, population: Population | None, where: Storage, poison: bool) -> None:
        """Traces one client, and chooses the places of data and states."""
        task, several = self.task, len(self.seeds) > 1
        if several and "host" in (where.clients, where.data):
            raise UserError("storage=host: must be left out with several runs in one program")
        limit = min(self.chunk * self.cohort, task.num_clients)
        self.data = supply.choose(task, "device" if several else where.data, limit=limit, put=self._share)
        init_key, _ = jax.eval_shape(simulation_keys, self.seeds[0])
        scalars = jax.tree.map(lambda a: jax.ShapeDtypeStruct((), jnp.float32), self.options[0])
        self.make, self.shapes = trace_client(self.make_algorithm, scalars, task, init_key, self.data.shapes)
        self.algorithm = self.make(self.options[0])
        shapes = of_clients(self.shapes.state)
        if several:
            self.states = storage.on_device(shapes, task.num_clients, chunk=self.chunk)
        else:
            self.states = storage.choose(
                shapes,
                task.num_clients,
                where,
                lambda: of_clients(self._initial(self.options[0], self.seeds[0])),
                storage.Programs(self.cohort, self.chunk, asked.devices, put=self._share),
            )
        self.meter = make_meter(self.shapes, self.cohort, population)
        self.poison = poison

    def compile(self, asked: Plan, layout: Layout, evaluated: np.ndarray) -> None:
        """Compiles a chunk of rounds under the plan, or under a smaller one that fits into memory."""
        began = time.perf_counter()
        self.program, fitted, self.memory_bytes = fit_plan(partial(self._compile_chunk, layout), asked)
        self.compile_seconds = time.perf_counter() - began
        self.runs = layout(fitted)
        self.fleet = self._share(self.meter.fleet)
        settings = self.runs.stack(list(zip(self.options, self.seeds)))
        self.settings = put(settings, self.runs.place)
        self.initial_states = self._compile_init()
        self.lay_out = lru_cache(maxsize=2)(self._lay_out)  # the next chunk's is laid out ahead
        self.evaluate = make_evaluate(
            self.make, self.algorithm, self.task, self.runs, evaluated, self.states, self.settings[0]
        )

    def init(self) -> State:
        """The state of all runs before round 0."""
        return self.initial_states(self.settings)

    def _compile_init(self) -> Callable[[Any], State]:
        runs, states = self.runs, self.states

        def one(_: Any, settings: Any) -> State:
            state = self._initial(*settings)
            return with_clients(state, states.init(of_clients(state)))

        return jax.jit(
            lambda settings: runs.map(one, (), settings), out_shardings=_state_placement(states, runs)
        )

    def run(self, state: State, first_round: int, num_rounds: int) -> tuple[State, list[RoundMetrics]]:
        """Runs some rounds, in parts as long as the places of clients' states allow."""
        if not 1 <= num_rounds <= self.chunk:
            raise ValueError(f"num_rounds={num_rounds}: accepted are 1 to {self.chunk}, the chunk")
        rounds, parts = range(first_round, first_round + num_rounds), []
        for start in range(0, num_rounds, self.states.rounds):
            state, part = self._run_part(state, rounds[start : start + self.states.rounds])
            parts.append(part)
        joined = [jax.tree.map(lambda *each: np.concatenate(each), *part) for part in zip(*parts)]
        metrics = [read(self.meter, *part) for part in joined]
        for part in metrics:
            self.padding = self.padding.plus(part)
        return state, metrics

    def _run_part(self, state: State, rounds: range) -> tuple[State, list[tuple[Rows, RoundReport]]]:
        number, before, runs, states = len(rounds), of_clients(state), self.runs, self.states
        selected, cohorts = self.lay_out(rounds)
        check_selection(self.algorithm, rounds, selected, self._select)
        ids = clients_of(cohorts, self.task)
        rows = [
            jax.tree.map(lambda a: np.pad(a, ((0, states.rounds - number), (0, 0))), rows)
            for rows in (self.data.point(states.point(one, ids), ids) for one in cohorts)
        ]
        own = (*self.settings, put(runs.stack(rows), runs.place))
        counts = self._share((np.int32(rounds.start), np.int32(number)))
        state = with_clients(state, states.load(before, ids))
        state, report = self.program(state, own, (self.data.load((), ids), *counts, self.fleet))
        # While the program runs, the next one's rows are fetched.
        following = clients_of(self.lay_out(range(rounds.stop, rounds.stop + number))[1], self.task)
        self.data.prefetch((), following)
        states.prefetch(before, np.setdiff1d(following, ids))
        reports = runs.split(jax.device_get(report))
        state = with_clients(state, states.save(before, ids, of_clients(state)))
        return state, [(rows, jax.tree.map(lambda a: a[:number], own)) for rows, own in zip(cohorts, reports)]

    def _initial(self, options: Options, seed: Any) -> State:
        return self.make(options).init(simulation_keys(seed)[0], self.task)

    def _share(self, tree: Any) -> Any:
        return put(tree, self.runs.everywhere)

    def _select(self, rounds: range) -> np.ndarray:
        """``int32[rounds, runs, cohort]``."""
        number = self.task.num_clients
        cohorts = [
            select_cohorts(rounds, int(seed), self.cohort, number, self.algorithm) for seed in self.seeds
        ]
        return np.stack(cohorts, axis=1)

    def _lay_out(self, rounds: range) -> tuple[np.ndarray, list[Rows]]:
        selected = self._select(rounds)
        return selected, [
            lay_out_rounds(cohorts, self.task, self.algorithm, self.runs.plan)
            for cohorts in np.moveaxis(selected, 1, 0)
        ]

    def _compile_chunk(self, layout: Layout, plan: Plan) -> Any:
        self.tried.append(plan)
        runs, states, algorithm = layout(plan), self.states, self.algorithm

        def one_chunk(shared: Any, own: Any) -> tuple[State, RoundReport]:
            data, first, num_rounds, fleet = shared
            state, options, seed, cohorts = own
            setting = Setting(
                self.make(options),
                runs.plan,
                arrays.capacity(self.task),
                poison=self.poison,
                clock=self.meter.clock,
                packing=states.packing,
                server_trains=self.shapes.server_trains,
            )
            _, key = simulation_keys(seed)
            return run_chunk(setting, state, data, key, first, num_rounds, cohorts, fleet)

        parts = _state_placement(states, runs)
        program = jax.jit(
            lambda state, own, shared: runs.map(one_chunk, shared, (state, *own)),
            donate_argnums=0,
            in_shardings=(parts, runs.place, runs.everywhere),
            out_shardings=(parts, runs.place),
        )
        length = padded_length(self.cohort, runs.plan, algorithm.schedule.num_tiers)
        cohorts = Rows(*[jax.ShapeDtypeStruct((states.rounds, length), jnp.int32)] * len(Rows._fields))
        own = (with_clients(self.shapes.state, states.shapes), self.options[0], self.seeds[0], cohorts)
        state, *own = runs.shapes(own)
        scalar = jax.ShapeDtypeStruct((), jnp.int32)
        shared = (self.data.shapes, scalar, scalar, self.meter.fleet)
        return program.lower(state, tuple(own), shared).compile()


def _state_placement(states: Residence, runs: Runs) -> State:
    """The shardings of the parts of a state."""
    rows: Any = states.sharding(runs.place)
    return State(runs.place, rows, rows)
