"""Several runs of one program in step: other seeds, other values of numeric options, the same shapes.

A run is the program of :mod:`fedjax_masks.simulation.round`; a batch maps it over one more axis. Runs
need nothing of each other, so they, and not the clients of a run, are spread over the devices.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import FederatedAlgorithm, State, Task
from fedjax_masks.costs.devices import Population
from fedjax_masks.simulation import arrays
from fedjax_masks.simulation.cohorts import check_selection, lay_out_rounds, select_cohorts
from fedjax_masks.simulation.engine import Simulation, check_cohort
from fedjax_masks.simulation.evaluate import (
    evaluated_clients,
    global_correct,
    make_evaluate,
    personal_correct,
)
from fedjax_masks.simulation.mapping import Rows, of_clients, padded_length
from fedjax_masks.simulation.memory import fit_plan
from fedjax_masks.simulation.metering import make_meter, read
from fedjax_masks.simulation.plan import Plan, parse_plan
from fedjax_masks.simulation.records import Evaluation, Padding, RoundMetrics, Stats
from fedjax_masks.simulation.round import Setting, round_step, run_chunk, simulation_keys
from fedjax_masks.simulation.storage import WhereClients, on_device
from fedjax_masks.simulation.store import Store
from fedjax_masks.simulation.tracing import trace_client

_AXIS = "runs"


class Batch(NamedTuple):
    """Compiled simulations that run in step, as a record of functions.

    Attributes:
      init: ``() -> State`` of all runs before round 0; every leaf leads with the runs.
      run: ``(state, first_round, num_rounds) -> (state, one RoundMetrics a run)``, as
        :attr:`Simulation.run`.
      evaluate: ``(state) -> one Evaluation a run``.
      take: ``(state, run) -> State`` of one run.
      stack: ``(one State a run) -> State`` of all runs.
      stats: ``() -> Stats`` of all runs so far.
      plan: The execution plan within a run; its reason also says how runs are laid out.
      setup_bytes: Of one run, as of a :class:`Simulation`.
      memory_bytes: Estimated peak of device memory, of all runs.
      num_clients: Of the task.
      clients_on: Where the clients' states lie; of several runs always on their device.
      store: The states' file on the host, if any.
    """

    init: Callable[[], State]
    run: Callable[[State, int, int], tuple[State, list[RoundMetrics]]]
    evaluate: Callable[[State], list[Evaluation]]
    take: Callable[[State, int], State]
    stack: Callable[[Sequence[State]], State]
    stats: Callable[[], Stats]
    plan: Plan
    setup_bytes: int
    memory_bytes: int
    num_clients: int
    clients_on: WhereClients = "device"
    store: Store | None = None


def alone(simulation: Simulation) -> Batch:
    """One simulation as a batch of one run, without a further axis."""

    def run(state: State, first_round: int, num_rounds: int) -> tuple[State, list[RoundMetrics]]:
        state, metrics = simulation.run(state, first_round, num_rounds)
        return state, [metrics]

    return Batch(
        init=simulation.init,
        run=run,
        evaluate=lambda state: [simulation.evaluate(state)],
        take=lambda state, run: state,
        stack=lambda states: states[0],
        stats=simulation.stats,
        plan=simulation.plan,
        setup_bytes=simulation.setup_bytes,
        memory_bytes=simulation.memory_bytes,
        num_clients=simulation.num_clients,
        clients_on=simulation.clients_on,
        store=simulation.store,
    )


def make_batch(
    make_algorithm: Callable[[Mapping[str, Any]], FederatedAlgorithm],
    task: Task,
    *,
    values: Mapping[str, Sequence[float]],
    seeds: Sequence[int],
    cohort: int,
    chunk: int = 10,
    plan: str = "auto",
    population: Population | None = None,
    eval_clients: int | None = None,
) -> Batch:
    """Prepares simulations that differ in their seeds and in the values of numeric options.

    Args:
      make_algorithm: ``(options) -> FederatedAlgorithm``; the options are traced scalars.
      task: Data and clients, of all runs.
      values: Each option's value in every run.
      seeds: Each run's seed.
      cohort: Clients per round.
      chunk: The largest number of rounds that one call of ``run`` may ask for.
      plan: The plan of a single run; of its devices only their number counts, as those for runs.
      population: The clients' devices and links, of all runs.
      eval_clients: Evaluate the own models of so many clients only; None for all.

    Returns:
      The batch, compiled. Each run gives what it would give alone, up to float reassociation.

    Raises:
      jax.errors.ConcretizationTypeError: The algorithm needs to know the value of an option.
      ValueError: ``cohort`` or ``eval_clients`` is out of range, or the plan is not understood.
      MemoryError: The runs do not fit into memory even one at a time.
    """
    check_cohort(cohort, task)
    evaluated = evaluated_clients(eval_clients, task.num_clients)
    if not values:
        # A factory need not work inside a trace where nothing of it is traced.
        make_algorithm = partial(_constant, make_algorithm({}))
    inner, asked = _plans(plan, cohort, len(seeds))
    columns = {name: np.asarray(column, np.float32) for name, column in values.items()}
    train = arrays.train_examples(task)
    scalars = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in columns}
    make, shapes = trace_client(make_algorithm, scalars, task, jax.random.key(0), train)
    like = make({name: column[0] for name, column in columns.items()})
    meter = make_meter(shapes, cohort, population)
    tried: list[Plan] = []

    def one_chunk(shared: Any, run: Any) -> Any:
        examples, first, num_rounds, fleet = shared
        state, values, seed, cohorts = run
        setting = Setting(make(values), inner, arrays.capacity(task), clock=meter.clock)
        _, key = simulation_keys(seed)
        return run_chunk(setting, state, examples, key, first, num_rounds, cohorts, fleet)

    def compile_chunk(plan: Plan) -> Any:
        tried.append(plan)
        total = _padded(len(seeds), plan)
        scalar = jax.ShapeDtypeStruct((), jnp.int32)
        rows = (total, chunk, padded_length(cohort, inner, like.tiers.number))
        cohorts = Rows(*[jax.ShapeDtypeStruct(rows, jnp.int32)] * len(Rows._fields))
        each = _with_runs((shapes.state, scalars, jax.ShapeDtypeStruct((), jnp.uint32)), total)
        states, *others = (*each, cohorts)

        def of_all(states: Any, others: Any, shared: Any) -> Any:
            return _map_runs(one_chunk, shared, (states, *others), plan)

        place = _placement(plan)
        program = jax.jit(
            of_all,
            donate_argnums=0,
            in_shardings=(place, place, _everywhere(plan)),
            out_shardings=place,
        )
        return program.lower(states, others, (train, scalar, scalar, meter.fleet)).compile()

    began = time.perf_counter()
    program, fitted, memory_bytes = fit_plan(compile_chunk, asked)
    compile_seconds = time.perf_counter() - began
    total, place, everywhere = _padded(len(seeds), fitted), _placement(fitted), _everywhere(fitted)
    train, fleet = jax.device_put((train, meter.fleet), everywhere)
    padded_seeds = _pad(np.asarray(seeds, np.uint32), total)
    settings = jax.device_put(
        ({name: _pad(column, total) for name, column in columns.items()}, padded_seeds), place
    )
    padding, drawn_before = Padding(), None

    def select(rounds: range) -> np.ndarray:
        """``int32[rounds, runs, cohort]``."""
        cohorts = [select_cohorts(rounds, seed, cohort, task.num_clients, like) for seed in seeds]
        return np.stack(cohorts, axis=1)

    @partial(jax.jit, out_shardings=place)
    def initial(settings: Any) -> State:
        def one(_: Any, run: Any) -> State:
            values, seed = run
            init_key, _ = simulation_keys(seed)
            return make(values).init(init_key, task)

        return _map_runs(one, (), settings, fitted)

    def run(state: State, first_round: int, num_rounds: int) -> tuple[State, list[RoundMetrics]]:
        nonlocal padding, drawn_before
        rounds = range(first_round, first_round + num_rounds)
        selected = select(rounds)
        check_selection(like, *(drawn_before or (rounds, selected)), select)
        drawn_before = rounds, selected
        drawn = [lay_out_rounds(cohorts, task, like, inner) for cohorts in np.moveaxis(selected, 1, 0)]
        cohorts = jax.tree.map(
            lambda *each: _pad(np.pad(each, ((0, 0), (0, chunk - num_rounds), (0, 0))), total), *drawn
        )
        others = (*settings, jax.device_put(cohorts, place))
        counts = jax.device_put((np.int32(first_round), np.int32(num_rounds)), everywhere)
        state, report = program(state, list(others), (train, *counts, fleet))
        report = jax.device_get(report)
        found = []
        for index, rows in enumerate(drawn):
            own = jax.tree.map(lambda a, index=index: a[index, :num_rounds], report)
            found.append(read(meter, rows, own))
            padding = padding.plus(found[-1])
        return state, found

    @jax.jit
    def on_global(state: State, examples: arrays.Examples) -> jax.Array:
        def one(examples: arrays.Examples, run: Any) -> jax.Array:
            state, (values, _) = run
            return global_correct(make(values), state, examples, inner)

        return _map_runs(one, examples, (state, settings), fitted)

    @jax.jit
    def on_personal(state: State, examples: arrays.Examples, rows: Rows) -> dict[str, jax.Array]:
        def one(shared: Any, run: Any) -> dict[str, jax.Array]:
            examples, rows = shared
            state, (values, _) = run
            return personal_correct(make(values), state, examples, rows, inner)

        return _map_runs(one, (examples, rows), (state, settings), fitted)

    evaluate = make_evaluate(
        like,
        task,
        inner,
        evaluated,
        on_device(of_clients(shapes.state), task.num_clients, chunk=chunk),
        put=lambda tree: jax.device_put(tree, everywhere),
        on_global=on_global,
        on_personal=on_personal,
    )
    return Batch(
        init=lambda: initial(settings),
        run=run,
        evaluate=lambda state: evaluate(state)[: len(seeds)],
        take=jax.jit(lambda state, run: jax.tree.map(lambda a: a[run], state), out_shardings=everywhere),
        stack=lambda states: jax.device_put(
            jax.tree.map(lambda *each: _pad(np.stack(each), total), *map(jax.device_get, states)), place
        ),
        stats=lambda: Stats(compile_seconds, len(tried), padding.efficiency),
        plan=replace(inner, reason=_describe(len(seeds), fitted)),
        setup_bytes=trees.num_bytes(shapes.state.common),
        memory_bytes=memory_bytes,
        num_clients=task.num_clients,
    )


def can_trace(
    make_algorithm: Callable[[Mapping[str, Any]], FederatedAlgorithm],
    task: Task,
    names: Sequence[str],
    *,
    cohort: int,
) -> bool:
    """Whether an algorithm takes traced values for options; not if it looks at them, as ``if`` does."""
    if not names:
        return True
    examples, scalar = arrays.train_examples(task), jax.ShapeDtypeStruct((), jnp.float32)
    key, plan = jax.random.key(0), parse_plan("scan,mesh:1", cohort=cohort)
    rows = Rows(*[jax.ShapeDtypeStruct((cohort,), jnp.int32)] * len(Rows._fields))

    def everything(values: Mapping[str, Any], state: State, examples: arrays.Examples, rows: Rows) -> Any:
        algorithm = make(values)
        state, report = round_step(Setting(algorithm, plan, capacity), state, examples, rows, key)
        inputs = examples.inputs[:1]
        globally, predictors = algorithm.predict_global, (algorithm.predict, *algorithm.probes.values())
        client = jax.tree.map(lambda a: a[0], state.clients)
        logits = [f(state.common, state.server, client, inputs) for f in predictors if f is not None]
        return report, logits, globally and globally(state.common, state.server, inputs)

    values, capacity = dict.fromkeys(names, scalar), arrays.capacity(task)
    try:
        make, shapes = trace_client(make_algorithm, values, task, key, examples)
        jax.eval_shape(everything, values, shapes.state, examples, rows)
    except jax.errors.JAXTypeError:
        return False
    return True


def _constant(algorithm: FederatedAlgorithm, values: Any) -> FederatedAlgorithm:
    del values
    return algorithm


def _plans(text: str, cohort: int, num_runs: int) -> tuple[Plan, Plan]:
    """The plan of clients within a run, on one device, and that of runs."""
    kind, _, mesh = text.partition(",mesh:")
    devices = parse_plan(text, cohort=num_runs).devices if mesh else min(num_runs, jax.device_count())
    inner = parse_plan(f"{kind},mesh:1", cohort=cohort)
    if jax.default_backend() == "cpu":
        return inner, Plan(1, devices, "a core runs one run after the other from its cache")
    return inner, Plan(-(-num_runs // devices), devices, "an accelerator runs all at once")


def _describe(num_runs: int, plan: Plan) -> str:
    """How many runs go where.

    >>> _describe(32, Plan(1, 2, "why"))
    '32 runs in one program, 2 devices with 1 run at a time each: why'
    """
    devices = "1 device" if plan.devices == 1 else f"{plan.devices} devices"
    width = "1 run" if plan.block == 1 else f"{plan.block} runs"
    each = "" if plan.devices == 1 else " each"
    return f"{num_runs} runs in one program, {devices} with {width} at a time{each}: {plan.reason}"


def _padded(num_runs: int, plan: Plan) -> int:
    """The number of runs that are computed; the last is repeated to fill blocks on every device."""
    full = plan.block * plan.devices
    return -(-num_runs // full) * full


def _pad(rows: np.ndarray, total: int) -> np.ndarray:
    return np.pad(rows, [(0, total - len(rows)), *[(0, 0)] * (rows.ndim - 1)], mode="edge")


def _with_runs(shapes: Any, total: int) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((total, *a.shape), a.dtype), shapes)


def _mesh(plan: Plan) -> Mesh:
    return Mesh(jax.devices()[: plan.devices], (_AXIS,))


def _placement(plan: Plan) -> NamedSharding:
    """Where what every run has of its own lies."""
    return NamedSharding(_mesh(plan), PartitionSpec(_AXIS))


def _everywhere(plan: Plan) -> NamedSharding:
    """Where what all runs share lies."""
    return NamedSharding(_mesh(plan), PartitionSpec())


def _map_runs(function: Callable[[Any, Any], Any], shared: Any, runs: Any, plan: Plan) -> Any:
    """Runs ``function(shared, run)`` for every run, in blocks on every device."""

    def on_device(shared: Any, runs: Any) -> Any:
        width = plan.block if plan.block > 1 else None
        return jax.lax.map(partial(function, shared), runs, batch_size=width)

    if plan.devices == 1:
        return on_device(shared, runs)
    return jax.shard_map(
        on_device,
        mesh=_mesh(plan),
        in_specs=(PartitionSpec(), PartitionSpec(_AXIS)),
        out_specs=PartitionSpec(_AXIS),
        check_vma=False,  # as in the map over clients
    )(shared, runs)
