"""The simulation engine: an algorithm and a task in, compiled rounds out.

Together with its siblings this is the only home of ``jit``, ``vmap``, ``scan`` over clients
and ``shard_map``.
"""

import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_masks import flops, payload, trees
from fedjax_masks.algorithm import FederatedAlgorithm, State, Task
from fedjax_masks.devices import Population
from fedjax_masks.simulation import arrays, clock
from fedjax_masks.simulation.cohorts import lay_out_rounds
from fedjax_masks.simulation.evaluate import global_correct, personal_correct
from fedjax_masks.simulation.layout import Block, Rows, device_mesh, lay_out, padded_length
from fedjax_masks.simulation.memory import fit_plan
from fedjax_masks.simulation.plan import Plan, parse_plan
from fedjax_masks.simulation.records import Evaluation, RoundMetrics, Stats
from fedjax_masks.simulation.round import RoundReport, Setting, run_chunk

EVAL_BATCH = 100


class Simulation(NamedTuple):
    """A compiled simulation, as a record of functions.

    Attributes:
      init: ``() -> State`` before round 0.
      run: ``(state, first_round, num_rounds) -> (state, RoundMetrics)``; ``num_rounds`` is at
        most the chunk. The given state is donated: use the one that comes back.
      evaluate: ``(state) -> Evaluation``.
      stats: ``() -> Stats`` so far.
      plan: The execution plan.
      setup_bytes: Bytes that every device gets once, before the first round.
      memory_bytes: Estimated peak of device memory for a chunk of rounds.
    """

    init: Callable[[], State]
    run: Callable[[State, int, int], tuple[State, RoundMetrics]]
    evaluate: Callable[[State], Evaluation]
    stats: Callable[[], Stats]
    plan: Plan
    setup_bytes: int
    memory_bytes: int


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
        lambda e, s: arrays.client_data(e, Rows(s, s, s, s), Block(s, s), arrays.capacity(task)),
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
      poison: Destroys, on its way, every value that was not sent. For tests: an algorithm
        that reads what it never received gives other results, or NaN.

    Returns:
      The simulation; compiled at the first call of ``run``.

    Raises:
      ValueError: ``cohort`` is out of range, or the plan is not understood.
      MemoryError: The simulation does not fit into memory under any plan.
    """
    check_cohort(cohort, task)
    init_key, rounds_key = jax.eval_shape(keys, np.uint32(seed))
    train = arrays.train_examples(task)
    make, shapes = trace_client(lambda _: algorithm, (), task, init_key, train)
    algorithm = make(())
    asked = parse_plan(plan, cohort=cohort)

    static_bits = [payload.static_bits(sent) for sent in (shapes.upload, shapes.message)]
    timer = None if population is None else clock.Clock(population, static_bits)
    fleet = () if population is None else jax.tree.map(jnp.asarray, population.fleet)
    tried: list[Plan] = []

    def compile_chunk(plan: Plan) -> Any:
        tried.append(plan)
        setting = Setting(algorithm, plan, arrays.capacity(task), poison, timer)
        place = placement(plan)
        program = jax.jit(
            partial(run_chunk, setting),
            donate_argnums=0,
            in_shardings=place,
            out_shardings=place,
        )
        scalar = jax.ShapeDtypeStruct((), jnp.int32)
        rows = jax.ShapeDtypeStruct((chunk, padded_length(cohort, plan, algorithm.tiers.number)), jnp.int32)
        cohorts = Rows(*[rows] * len(Rows._fields))
        return program.lower(shapes.state, train, rounds_key, scalar, scalar, cohorts, fleet).compile()

    began = time.perf_counter()
    program, fitted, memory_bytes = fit_plan(compile_chunk, asked)
    compile_seconds = time.perf_counter() - began
    place = placement(fitted)
    train, fleet = put((train, fleet), place)
    number = np.uint32(seed)
    rounds_key = jax.jit(lambda number: keys(number)[1], out_shardings=place)(number)
    padding = {"examples": 0.0, "slots": 0.0}
    initial = jax.jit(lambda number: algorithm.init(keys(number)[0], task), out_shardings=place)

    def run(state: State, first_round: int, num_rounds: int) -> tuple[State, RoundMetrics]:
        if not 1 <= num_rounds <= chunk:
            raise ValueError(f"num_rounds={num_rounds}: accepted are 1 to {chunk}, the chunk")
        rounds = range(first_round, first_round + num_rounds)
        cohorts = lay_out_rounds(rounds, seed, cohort, task, algorithm, fitted)
        padded = jax.tree.map(lambda a: np.pad(a, ((0, chunk - num_rounds), (0, 0))), cohorts)
        arguments = put((np.int32(first_round), np.int32(num_rounds), padded), place)
        state, report = program(state, train, rounds_key, *arguments, fleet)
        report = jax.tree.map(lambda a: a[:num_rounds], jax.device_get(report))
        metrics = round_metrics(cohorts, report, cohort, shapes, static_bits, timer)
        for name in padding:
            padding[name] += float(np.sum(metrics.train.get(name, 0.0)))
        return state, metrics

    def stats() -> Stats:
        share = padding["examples"] / padding["slots"] if padding["slots"] else 1.0
        return Stats(compile_seconds, len(tried), share)

    return Simulation(
        init=lambda: initial(number),
        run=run,
        evaluate=_make_evaluate(algorithm, task, fitted),
        stats=stats,
        plan=fitted,
        setup_bytes=trees.num_bytes(shapes.state.common),
        memory_bytes=memory_bytes,
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


def _make_evaluate(algorithm: FederatedAlgorithm, task: Task, plan: Plan) -> Callable[[State], Evaluation]:
    """Compiles evaluation on first use; test data go to the device only then."""
    place = placement(plan)

    @cache
    def data() -> arrays.Examples:
        return put(arrays.test_examples(task, EVAL_BATCH), place)

    @partial(jax.jit, out_shardings=place)
    def on_global(state: State, examples: arrays.Examples) -> jax.Array:
        return global_correct(algorithm, state, examples, EVAL_BATCH)

    @partial(jax.jit, out_shardings=place)
    def on_personal(state: State, examples: arrays.Examples, rows: Rows) -> dict[str, jax.Array]:
        return personal_correct(algorithm, state, examples, rows, EVAL_BATCH, plan)

    def evaluate(state: State) -> Evaluation:
        hits, counts, places = None, None, None
        if algorithm.predict_global is not None:
            hits = np.asarray(on_global(state, data()))
        if algorithm.predict is not None:
            rows, places = lay_out(np.arange(task.num_clients), task.test, plan)
            counts = jax.device_get(on_personal(state, data(), jax.device_put(rows, place)))
        return make_evaluation(task, hits, counts, places)

    return evaluate


def make_evaluation(
    task: Task,
    hits: np.ndarray | None,
    counts: Mapping[str, np.ndarray] | None,
    places: np.ndarray | None,
) -> Evaluation:
    """Accuracies from what was classified correctly.

    Args:
      task: Data and clients.
      hits: Of :func:`global_correct`; None without a global model.
      counts: Of :func:`personal_correct`; None where clients have no models of their own.
      places: ``int64[num_clients]``: each client's place in the counts.
    """
    sizes = np.asarray(task.test.sizes)

    def share(counts: np.ndarray) -> np.ndarray:
        return np.where(sizes > 0, counts / np.maximum(sizes, 1), np.nan)

    accuracy = None if hits is None else float(hits.mean())
    if counts is None:
        assert hits is not None, "an algorithm needs predict or predict_global"
        return Evaluation(accuracy, share(_count_by_client(hits, task)), {})
    accuracies = {name: share(count[places]) for name, count in counts.items()}
    return Evaluation(accuracy, accuracies.pop(""), accuracies)


def _count_by_client(hits: np.ndarray, task: Task) -> np.ndarray:
    """``int64[num_clients]``: how many of each client's test rows are hits."""
    running = np.concatenate([[0], np.cumsum(hits[task.test.rows])])
    return running[task.test.offsets + task.test.sizes] - running[task.test.offsets]
