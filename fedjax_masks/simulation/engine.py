"""The simulation engine: an algorithm and a task in, compiled rounds out.

Together with its siblings this is the only home of ``jit``, ``vmap``, ``scan`` over clients
and ``shard_map``.
"""

import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import FederatedAlgorithm, State, Task
from fedjax_masks.costs.devices import Population
from fedjax_masks.simulation import arrays, supply
from fedjax_masks.simulation.cohorts import check_selection, clients_of, lay_out_rounds, select_cohorts
from fedjax_masks.simulation.evaluate import (
    evaluated_clients,
    global_correct,
    make_evaluate,
    personal_correct,
)
from fedjax_masks.simulation.mapping import (
    OfClients,
    Rows,
    of_clients,
    padded_length,
    placement,
    put,
    with_clients,
)
from fedjax_masks.simulation.memory import fit_plan
from fedjax_masks.simulation.metering import make_meter, read
from fedjax_masks.simulation.plan import Plan, parse_plan
from fedjax_masks.simulation.records import Evaluation, Padding, RoundMetrics, Stats
from fedjax_masks.simulation.round import RoundReport, Setting, run_chunk, simulation_keys
from fedjax_masks.simulation.storage import AUTO, Programs, Residence, Storage, WhereClients
from fedjax_masks.simulation.storage import choose as choose_storage
from fedjax_masks.simulation.store import Store
from fedjax_masks.simulation.tracing import trace_client


class Simulation(NamedTuple):
    """A compiled simulation, as a record of functions.

    Attributes:
      init: ``() -> State`` before round 0.
      run: ``(state, first_round, num_rounds) -> (state, RoundMetrics)``; ``num_rounds`` is at
        most the chunk. The given state is donated: use the one that comes back.
      evaluate: ``(state) -> Evaluation``.
      clients: ``(state, ids) ->`` what there is of these clients, sorted, wherever it lies; at most as
        many as a chunk has places for.
      stats: ``() -> Stats`` so far.
      plan: The execution plan.
      setup_bytes: Bytes that every device gets once, before the first round.
      memory_bytes: Estimated peak of device memory for a chunk of rounds.
      num_clients: Of the task.
      clients_on: Where it lies: ``device``, ``mesh`` or ``host``.
      store: Their file on the host, if any.
    """

    init: Callable[[], State]
    run: Callable[[State, int, int], tuple[State, RoundMetrics]]
    evaluate: Callable[[State], Evaluation]
    clients: Callable[[State, np.ndarray], OfClients]
    stats: Callable[[], Stats]
    plan: Plan
    setup_bytes: int
    memory_bytes: int
    num_clients: int
    clients_on: WhereClients
    store: Store | None


def make_simulation(
    algorithm: FederatedAlgorithm,
    task: Task,
    *,
    cohort: int,
    seed: int = 0,
    chunk: int = 10,
    plan: str = "auto",
    population: Population | None = None,
    storage: Storage = AUTO,
    eval_clients: int | None = None,
    poison: bool = False,
) -> Simulation:
    """Prepares a simulation.

    Args:
      algorithm: The algorithm.
      task: Data and clients.
      cohort: Clients per round, at most ``task.num_clients``.
      seed: Decides everything random: initial state, cohorts, order of examples.
      chunk: The largest number of rounds that one call of ``run`` may ask for.
      plan: An execution plan, see :func:`parse_plan`. Never changes results.
      population: The clients' devices and links; None leaves time out of it.
      storage: Where the clients' states lie between rounds. Never changes results.
      eval_clients: Evaluate the own models of so many clients only; None for all.
      poison: Destroys, on its way, every value that was not sent. For tests: an algorithm
        that reads what it never received gives other results, or NaN.

    Returns:
      The simulation; compiled at the first call of ``run``.

    Raises:
      ValueError: ``cohort`` or ``eval_clients`` is out of range, or the plan is not understood.
      MemoryError: The simulation does not fit into memory under any plan.
    """
    check_cohort(cohort, task)
    evaluated, number = evaluated_clients(eval_clients, task.num_clients), np.uint32(seed)
    init_key, rounds_key = jax.eval_shape(simulation_keys, number)
    asked, limit = parse_plan(plan, cohort=cohort), min(chunk * cohort, task.num_clients)
    data = supply.choose(task, storage.data, limit=limit, put=lambda tree: put(tree, place))
    make, shapes = trace_client(lambda _: algorithm, (), task, init_key, data.shapes)
    algorithm = make(())
    states = choose_storage(
        of_clients(shapes.state),
        task.num_clients,
        storage,
        lambda: of_clients(algorithm.init(simulation_keys(number)[0], task)),
        Programs(cohort, chunk, asked.devices, put=lambda tree: put(tree, place)),
    )
    meter = make_meter(shapes, cohort, population)
    tried: list[Plan] = []

    def compile_for(plan: Plan) -> Any:
        tried.append(plan)
        setting = Setting(algorithm, plan, arrays.capacity(task), poison, meter.clock, states.packing)
        state = with_clients(shapes.state, states.shapes)
        rows = (states.rounds, padded_length(cohort, plan, algorithm.tiers.number))
        return _compile(setting, states, state, data.shapes, rounds_key, rows, meter.fleet)

    began = time.perf_counter()
    program, fitted, memory_bytes = fit_plan(compile_for, asked)
    compile_seconds = time.perf_counter() - began
    place, padding = placement(fitted), Padding()
    fleet = put(meter.fleet, place)
    rounds_key = jax.jit(lambda number: simulation_keys(number)[1], out_shardings=place)(number)

    def select(rounds: range) -> np.ndarray:
        return select_cohorts(rounds, seed, cohort, task.num_clients, algorithm)

    @lru_cache(maxsize=2)  # what is laid out while a program runs is what the next one asks for
    def lay_out(rounds: range) -> tuple[np.ndarray, Rows]:
        selected = select(rounds)
        return selected, lay_out_rounds(selected, task, algorithm, fitted)

    @partial(jax.jit, out_shardings=_state_placement(states, fitted))
    def initial(number: Any) -> State:
        state = algorithm.init(simulation_keys(number)[0], task)
        return with_clients(state, states.init(of_clients(state)))

    def run_at_once(state: State, rounds: range) -> tuple[State, tuple[Rows, RoundReport]]:
        number, before = len(rounds), of_clients(state)
        selected, cohorts = lay_out(rounds)
        check_selection(algorithm, rounds, selected, select)
        ids = clients_of(cohorts, task)
        rows = data.point(states.point(cohorts, ids), ids)
        padded = jax.tree.map(lambda a: np.pad(a, ((0, states.rounds - number), (0, 0))), rows)
        arguments = put((np.int32(rounds.start), np.int32(number), padded), place)
        state = with_clients(state, states.load(before, ids))
        state, report = program(state, data.load(ids), rounds_key, *arguments, fleet)
        # While the program runs, what the next one needs is prepared.
        following = clients_of(lay_out(range(rounds.stop, rounds.stop + number))[1], task)
        data.prepare(following)
        states.announce(before, np.setdiff1d(following, ids))
        report = jax.tree.map(lambda a: a[:number], jax.device_get(report))
        state = with_clients(state, states.save(before, ids, of_clients(state)))
        return state, (cohorts, report)

    def run(state: State, first_round: int, num_rounds: int) -> tuple[State, RoundMetrics]:
        nonlocal padding
        if not 1 <= num_rounds <= chunk:
            raise ValueError(f"num_rounds={num_rounds}: accepted are 1 to {chunk}, the chunk")
        rounds, parts = range(first_round, first_round + num_rounds), []
        for start in range(0, num_rounds, states.rounds):
            state, part = run_at_once(state, rounds[start : start + states.rounds])
            parts.append(part)
        metrics = read(meter, *jax.tree.map(lambda *each: np.concatenate(each), *parts))
        padding = padding.plus(metrics)
        return state, metrics

    @partial(jax.jit, out_shardings=place)
    def on_global(state: State, examples: arrays.Examples) -> jax.Array:
        return global_correct(algorithm, state, examples, fitted)[None]

    @partial(jax.jit, out_shardings=place)
    def on_personal(state: State, examples: arrays.Examples, rows: Rows) -> dict[str, jax.Array]:
        counts = personal_correct(algorithm, state, examples, rows, fitted, states.packing)
        return jax.tree.map(lambda a: a[None], counts)

    evaluate = make_evaluate(
        algorithm,
        task,
        fitted,
        evaluated,
        states,
        put=lambda tree: put(tree, place),
        on_global=on_global,
        on_personal=on_personal,
    )
    return Simulation(
        init=lambda: initial(number),
        run=run,
        evaluate=lambda state: evaluate(state)[0],
        clients=lambda state, ids: states.read(of_clients(state), ids),
        stats=lambda: Stats(compile_seconds, len(tried), padding.efficiency),
        plan=fitted,
        setup_bytes=trees.num_bytes(shapes.state.common),
        memory_bytes=memory_bytes,
        num_clients=task.num_clients,
        clients_on=states.name,
        store=states.store,
    )


def _state_placement(states: Residence, plan: Plan) -> Any:
    """Where the parts of a state lie."""
    place = placement(plan)
    rows = states.sharding(place)
    return State(place, place, rows, rows)


def _compile(
    setting: Setting, states: Residence, state: State, data: Any, key: Any, rows: tuple[int, int], fleet: Any
) -> Any:
    """Compiles a chunk of rounds, for shapes."""
    place, parts = placement(setting.plan), _state_placement(states, setting.plan)
    program = jax.jit(
        partial(run_chunk, setting),
        donate_argnums=0,
        in_shardings=(parts, *[place] * 6),
        out_shardings=(parts, place),
    )
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    cohorts = Rows(*[jax.ShapeDtypeStruct(rows, jnp.int32)] * len(Rows._fields))
    return program.lower(state, data, key, scalar, scalar, cohorts, fleet).compile()


def check_cohort(cohort: int, task: Task) -> None:
    """Raises ValueError for a cohort that there cannot be."""
    if not 1 <= cohort <= task.num_clients:
        raise ValueError(f"cohort={cohort}: accepted are 1 to {task.num_clients}, the number of clients")
