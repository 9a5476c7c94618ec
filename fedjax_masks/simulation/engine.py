"""The simulation engine: an algorithm and a task in, compiled rounds out.

Together with its siblings this is the only home of ``jit``, ``vmap``, ``scan`` over clients
and ``shard_map``.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_masks import flops, payload, trees
from fedjax_masks.algorithm import FederatedAlgorithm, State, Task
from fedjax_masks.devices import Population
from fedjax_masks.simulation import arrays, clock, residence, supply
from fedjax_masks.simulation.cohorts import lay_out_rounds
from fedjax_masks.simulation.evaluate import (
    evaluated_clients,
    global_correct,
    make_evaluate,
    personal_correct,
)
from fedjax_masks.simulation.layout import Block, Rows, device_mesh, padded_length
from fedjax_masks.simulation.memory import fit_plan
from fedjax_masks.simulation.plan import Plan, parse_plan
from fedjax_masks.simulation.records import Evaluation, RoundMetrics, Stats, padding_efficiency
from fedjax_masks.simulation.residence import AUTO, Storage, WhereClients
from fedjax_masks.simulation.round import RoundReport, Setting, run_chunk
from fedjax_masks.simulation.store import Store


class Simulation(NamedTuple):
    """A compiled simulation, as a record of functions.

    Attributes:
      init: ``() -> State`` before round 0.
      run: ``(state, first_round, num_rounds) -> (state, RoundMetrics)``; ``num_rounds`` is at
        most the chunk. The given state is donated: use the one that comes back.
      evaluate: ``(state) -> Evaluation``.
      clients: ``(state, ids) -> states of these clients``, sorted, wherever they lie; at most as many
        as a chunk has places for.
      stats: ``() -> Stats`` so far.
      plan: The execution plan.
      setup_bytes: Bytes that every device gets once, before the first round.
      memory_bytes: Estimated peak of device memory for a chunk of rounds.
      clients_on: Where the clients' states lie: ``device``, ``mesh`` or ``host``.
      store: Their file on the host, if any.
    """

    init: Callable[[], State]
    run: Callable[[State, int, int], tuple[State, RoundMetrics]]
    evaluate: Callable[[State], Evaluation]
    clients: Callable[[State, np.ndarray], Any]
    stats: Callable[[], Stats]
    plan: Plan
    setup_bytes: int
    memory_bytes: int
    clients_on: WhereClients
    store: Store | None


class Shapes(NamedTuple):
    """Shapes of everything that one client handles, found without running anything."""

    state: State
    message: Any
    upload: Any
    metrics: list[str]


def trace_client(
    make_algorithm: Callable[[Any], FederatedAlgorithm],
    values: Any,
    task: Task,
    key: chex.PRNGKey,
    examples: arrays.Examples,
) -> tuple[Callable[[Any], FederatedAlgorithm], Shapes]:
    """Traces one client's round, for all values of some options at once.

    Args:
      make_algorithm: ``(values) -> FederatedAlgorithm``.
      values: The options' values or shapes, any pytree; ``()`` where there are none.
      task: Data and clients.
      key: A key like the simulation's.
      examples: The training data.

    Returns:
      ``make_algorithm``, in whose algorithms training is not traced again; and the shapes.
    """
    state = jax.eval_shape(lambda values, key: make_algorithm(values).init(key, task), values, key)
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    message = jax.eval_shape(
        lambda values, *sent: make_algorithm(values).send(*sent), values, state.server, scalar
    )
    client = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), state.clients)
    data = jax.eval_shape(
        lambda e, s: arrays.client_data(e, Rows(s, s, s, s, s), Block(s, s), arrays.capacity(task)),
        examples,
        scalar,
    )
    arguments = (values, key, state.common, message, client, data)
    train = flops.trace(lambda values, *args: make_algorithm(values).train(*args), *arguments)
    _, upload, metrics = train.out

    def make(values: Any) -> FederatedAlgorithm:
        return make_algorithm(values)._replace(train=partial(train.call, values))

    return make, Shapes(state, message, upload, sorted(metrics))


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
    evaluated = evaluated_clients(eval_clients, task.num_clients)
    number = np.uint32(seed)
    init_key, rounds_key = jax.eval_shape(keys, number)
    limit = min(chunk * cohort, task.num_clients)
    data = supply.choose(task, storage.data, limit=limit, put=lambda tree: put(tree, place))
    make, shapes = trace_client(lambda _: algorithm, (), task, init_key, data.shapes)
    algorithm = make(())
    asked = parse_plan(plan, cohort=cohort)
    states = residence.choose(
        shapes.state.clients,
        task.num_clients,
        storage,
        initial=lambda: algorithm.init(keys(number)[0], task).clients,
        devices=asked.devices,
        limit=limit,
        put=lambda tree: put(tree, place),
    )

    static_bits = [payload.static_bits(sent) for sent in (shapes.upload, shapes.message)]
    timer = None if population is None else clock.Clock(population, static_bits)
    fleet = () if population is None else jax.tree.map(jnp.asarray, population.fleet)
    tried: list[Plan] = []

    def whole_state(plan: Plan) -> Any:
        """Where the parts of a state lie."""
        place = placement(plan)
        return State(place, place, states.sharding(place))

    def compile_chunk(plan: Plan) -> Any:
        tried.append(plan)
        setting = Setting(algorithm, plan, arrays.capacity(task), poison, timer, states.packing)
        place = placement(plan)
        program = jax.jit(
            partial(run_chunk, setting),
            donate_argnums=0,
            in_shardings=(whole_state(plan), *[place] * 6),
            out_shardings=(whole_state(plan), place),
        )
        scalar = jax.ShapeDtypeStruct((), jnp.int32)
        rows = jax.ShapeDtypeStruct((chunk, padded_length(cohort, plan, algorithm.tiers.number)), jnp.int32)
        cohorts = Rows(*[rows] * len(Rows._fields))
        state = shapes.state._replace(clients=states.shapes)
        return program.lower(state, data.shapes, rounds_key, scalar, scalar, cohorts, fleet).compile()

    began = time.perf_counter()
    program, fitted, memory_bytes = fit_plan(compile_chunk, asked)
    compile_seconds = time.perf_counter() - began
    place = placement(fitted)
    fleet = put(fleet, place)
    rounds_key = jax.jit(lambda number: keys(number)[1], out_shardings=place)(number)
    padding = {"examples": 0.0, "slots": 0.0}

    @partial(jax.jit, out_shardings=whole_state(fitted))
    def initial(number: Any) -> State:
        state = algorithm.init(keys(number)[0], task)
        return state._replace(clients=states.init(state.clients))

    def run(state: State, first_round: int, num_rounds: int) -> tuple[State, RoundMetrics]:
        if not 1 <= num_rounds <= chunk:
            raise ValueError(f"num_rounds={num_rounds}: accepted are 1 to {chunk}, the chunk")
        end = first_round + num_rounds
        cohorts = lay_out_rounds(range(first_round, end), seed, cohort, task, algorithm, fitted)
        ids = clients_of(cohorts, task)
        before, clients = state.clients, states.load(state.clients, ids)
        padded = jax.tree.map(
            lambda a: np.pad(a, ((0, chunk - num_rounds), (0, 0))),
            data.point(states.point(cohorts, ids), ids),
        )
        arguments = put((np.int32(first_round), np.int32(num_rounds), padded), place)
        state = state._replace(clients=clients)
        state, report = program(state, data.load(ids), rounds_key, *arguments, fleet)
        upcoming = range(end, end + num_rounds)  # to be prepared while the program runs
        following = clients_of(lay_out_rounds(upcoming, seed, cohort, task, algorithm, fitted), task)
        data.prepare(following)
        states.announce(before, np.setdiff1d(following, ids))
        report = jax.tree.map(lambda a: a[:num_rounds], jax.device_get(report))
        state = state._replace(clients=states.save(before, ids, state.clients))
        metrics = round_metrics(cohorts, report, cohort, shapes, static_bits, timer)
        for name in padding:
            padding[name] += float(np.sum(metrics.train.get(name, 0.0)))
        return state, metrics

    @partial(jax.jit, out_shardings=place)
    def on_global(state: State, examples: arrays.Examples) -> jax.Array:
        return global_correct(algorithm, state, examples)[None]

    @partial(jax.jit, out_shardings=place)
    def on_personal(state: State, examples: arrays.Examples, rows: Rows) -> dict[str, jax.Array]:
        counts = personal_correct(algorithm, state, examples, rows, fitted, states.packing)
        return jax.tree.map(lambda a: a[None], counts)

    def evaluate(state: State) -> Evaluation:
        (evaluation,) = evaluate_all(state)
        return evaluation

    evaluate_all = make_evaluate(
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
        evaluate=evaluate,
        clients=lambda state, ids: states.read(state.clients, ids),
        stats=lambda: Stats(compile_seconds, len(tried), padding_efficiency(padding)),
        plan=fitted,
        setup_bytes=trees.num_bytes(shapes.state.common),
        memory_bytes=memory_bytes,
        clients_on=states.name,
        store=states.store,
    )


def check_cohort(cohort: int, task: Task) -> None:
    """Raises ValueError for a cohort that there cannot be."""
    if not 1 <= cohort <= task.num_clients:
        raise ValueError(f"cohort={cohort}: accepted are 1 to {task.num_clients}, the number of clients")


def keys(seed: Any) -> tuple[chex.PRNGKey, chex.PRNGKey]:
    """Of the initial state, and of all rounds."""
    init_key, rounds_key = jax.random.split(jax.random.key(seed))
    return init_key, rounds_key


def placement(plan: Plan) -> Any:
    """Where arrays lie between rounds: one device, or a copy on each."""
    if plan.devices == 1:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return NamedSharding(device_mesh(plan), PartitionSpec())


def put(tree: Any, place: jax.sharding.Sharding) -> Any:
    """Host arrays, the same in every process, to where arrays lie."""
    if place.is_fully_addressable:
        return jax.device_put(tree, place)

    def place_one(array: Any) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, place, lambda index: array[index])

    return jax.tree.map(place_one, tree)


def round_metrics(
    cohorts: Rows,
    report: RoundReport,
    cohort: int,
    shapes: Shapes,
    static_bits: list[int],
    timer: clock.Clock | None,
) -> RoundMetrics:
    """Puts clients in the order of their ids, without padding, whose id is larger than any client's."""
    order = np.argsort(cohorts.ids, axis=1)[:, :cohort]
    clients = report.clients

    def pick(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, order, 1)

    dropped, *values = (pick(column) for column in np.moveaxis(np.asarray(clients.values), -1, 0))
    # Bits of large payloads are beyond the range of the device's 32 bits.
    bits = [pick(traced).astype(np.int64) for traced in np.moveaxis(np.asarray(clients.bits), -1, 0)]
    bytes_up, bytes_down = ((static + traced + 7) // 8 for static, traced in zip(static_bits, bits))
    names = shapes.metrics if timer is None else sorted((*shapes.metrics, *clock.READINGS))
    train = dict(zip(names, values, strict=True))
    server = {name: np.asarray(values) for name, values in report.server.items()}
    gone = np.zeros_like(dropped) if timer is None else train["lost"] + train["away"]
    if "server_flops" in train:  # its half of what clients train with its help
        helped = np.where(gone > 0, 0, train["server_flops"]).sum(1, dtype=np.float64)
        server["flops"] = helped + server.get("flops", 0.0)
    if timer is not None:
        bytes_up = np.where(gone > 0, 0, bytes_up)
        bytes_down = np.where(train["away"] > 0, 0, bytes_down)
        server |= clock.sum_up(timer, train, server.get("flops", 0.0))
    return RoundMetrics(
        ids=pick(cohorts.ids),
        weight=np.where(dropped > 0, 0, pick(cohorts.sizes)).astype(np.float32),
        dropped=dropped > 0,
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        train=train,
        server=server,
    )


def clients_of(cohorts: Rows, task: Task) -> np.ndarray:
    """The ids of all clients in some cohorts, sorted, without padding."""
    ids = np.unique(cohorts.ids)
    return ids[ids < task.num_clients]
