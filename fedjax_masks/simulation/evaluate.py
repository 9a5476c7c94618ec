"""Evaluation of the global model and of clients' own models, for one run or for several."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import repeat

import jax
import numpy as np

from fedjax_masks.core import target
from fedjax_masks.core.algorithm import ClientIndex, FederatedAlgorithm, State, Task
from fedjax_masks.core.errors import UserError
from fedjax_masks.simulation.accuracy import global_correct, personal_correct
from fedjax_masks.simulation.arrays import Examples, test_examples, with_shuffled_test
from fedjax_masks.simulation.lanes import Lanes, lane_shapes, lay_out, num_lanes
from fedjax_masks.simulation.mapping import put
from fedjax_masks.simulation.parts import Parts
from fedjax_masks.simulation.records import Evaluation
from fedjax_masks.simulation.runs import Runs
from fedjax_masks.simulation.states import client_states, with_client_states
from fedjax_masks.simulation.storage import StateStorage
from fedjax_masks.simulation.tracing import MakeAlgorithm, Options


def evaluated_clients(number: int | None, num_clients: int) -> np.ndarray:
    """The ids of the clients whose own models are evaluated, ``int[n]``, sorted.

    Every run has the same sample, so that runs can be compared client by client.

    Args:
      number: The number of clients; None for all.
      num_clients: The task's number of clients.

    Raises:
      UserError: ``number`` is out of range.

    >>> evaluated_clients(None, 3).tolist(), len(evaluated_clients(10, 1000000))
    ([0, 1, 2], 10)
    """
    if number is None:
        return np.arange(num_clients)
    if not 1 <= number <= num_clients:
        raise UserError(f"eval_clients={number}: must be from 1 to {num_clients}, the number of clients")
    return np.sort(np.random.default_rng(0).choice(num_clients, number, replace=False))


def make_evaluate(
    make: MakeAlgorithm,
    algorithm: FederatedAlgorithm,
    task: Task,
    runs: Runs,
    ids: np.ndarray,
    states: StateStorage,
    options: Options,
) -> Callable[[State], list[Evaluation]]:
    """Makes the evaluation of all runs; its first call puts the test data on the devices.

    Args:
      make: ``(options) -> algorithm`` of a run.
      algorithm: The algorithm of any run.
      task: Data and clients.
      runs: The layout of runs.
      ids: The clients whose own models are evaluated, sorted.
      states: The storage of clients' states.
      options: The options of every run.
    """
    count_global, count_personal = _global_program(make, runs), _personal_program(make, runs, states)

    @cache  # at the first evaluation: digests of a large test set take time
    def data() -> tuple[Examples[jax.Array], ClientIndex]:
        task_in_order = with_shuffled_test(task)
        return put(test_examples(task_in_order), runs.shared_sharding), task_in_order.test

    def personal_counts(state: State) -> list[dict[str, np.ndarray]]:
        examples, index = data()
        size = min(states.max_clients, len(ids))
        # The last group ends with the last client, so that one program serves all groups.
        starts = [*range(0, len(ids) - size, size), len(ids) - size]
        groups = []
        for start in starts:
            group = ids[start : start + size]
            lanes, lane_indices = lay_out(group, index, runs.plan)
            program_state = with_client_states(state, states.load(client_states(state), group))
            lanes = put(states.locate(lanes, group), runs.shared_sharding)
            counts = runs.split(jax.device_get(count_personal(program_state, options, examples, lanes)))
            groups.append([{name: values[lane_indices] for name, values in run.items()} for run in counts])
        return [_join_groups(run, np.diff([*starts, len(ids)])) for run in zip(*groups)]

    def evaluate(state: State) -> list[Evaluation]:
        hits = counts = repeat(None)
        if "global" in algorithm.predict:
            hits = runs.split(jax.device_get(count_global(state, options, data()[0])))
        if "personal" in algorithm.predict:
            counts = personal_counts(state)
        return [_evaluation(data()[1], ids, *run) for run in zip(hits, counts)]

    return evaluate


def lower_evaluation(parts: Parts, runs: Runs, num_clients: int) -> dict[str, jax.stages.Lowered]:
    """Lowers the programs of an evaluation, by ``"global"`` and ``"personal"``.

    Args:
      parts: The parts of the simulation.
      runs: The layout of runs.
      num_clients: The number of clients whose own models are evaluated.
    """
    task, index = parts.task, parts.task.test
    state = runs.shapes(with_client_states(parts.shapes.state, parts.states.shapes))
    options = runs.shapes(parts.options[0])
    examples = Examples(
        jax.ShapeDtypeStruct(task.test_inputs.shape, task.test_inputs.dtype),
        jax.ShapeDtypeStruct(task.test_labels.shape, np.int32),
        jax.ShapeDtypeStruct((len(index.rows) + 1,), np.int32),
    )
    programs = {}
    if "global" in parts.algorithm.predict:
        programs["global"] = target.lower(_global_program(parts.make, runs), state, options, examples)
    if "personal" in parts.algorithm.predict:
        lanes = lane_shapes(num_lanes(min(parts.states.max_clients, num_clients), runs.plan))
        program = _personal_program(parts.make, runs, parts.states)
        programs["personal"] = target.lower(program, state, options, examples, lanes)
    return programs


def _global_program(make: MakeAlgorithm, runs: Runs) -> jax.stages.Wrapped:
    """The program of the global model: ``(state, options, examples) -> bool[runs, num_test]``."""

    @partial(jax.jit, out_shardings=runs.sharding)
    def count_global(state: State, options: Options, examples: Examples[jax.Array]) -> jax.Array:
        def one_run(examples: Examples[jax.Array], run: tuple[State, Options]) -> jax.Array:
            state, options = run
            with target.exact_products():
                return global_correct(make(options), state, examples, runs.plan)

        return runs.map(one_run, examples, (state, options))

    return count_global


def _personal_program(make: MakeAlgorithm, runs: Runs, states: StateStorage) -> jax.stages.Wrapped:
    """The program of clients' own models: ``(state, options, examples, lanes) -> counts`` by model."""

    @partial(jax.jit, out_shardings=runs.sharding)
    def count_personal(
        state: State, options: Options, examples: Examples[jax.Array], lanes: Lanes[jax.Array]
    ) -> dict[str, jax.Array]:
        def one_run(
            shared: tuple[Examples[jax.Array], Lanes[jax.Array]], run: tuple[State, Options]
        ) -> dict[str, jax.Array]:
            (state, options), (examples, lanes) = run, shared
            with target.exact_products():
                return personal_correct(make(options), state, examples, lanes, runs.plan, states.packing)

        return runs.map(one_run, (examples, lanes), (state, options))

    return count_personal


def _join_groups(groups: Sequence[dict[str, np.ndarray]], sizes: np.ndarray) -> dict[str, np.ndarray]:
    """The counts of all clients, from overlapping groups of which the first ``sizes`` clients are new."""
    return {
        name: np.concatenate([group[name][:size] for group, size in zip(groups, sizes)]) for name in groups[0]
    }


def _evaluation(
    index: ClientIndex, ids: np.ndarray, hits: np.ndarray | None, counts: Mapping[str, np.ndarray] | None
) -> Evaluation:
    """The accuracies of one run, from its correct predictions.

    Args:
      index: The test examples of each client.
      ids: The evaluated clients.
      hits: The result of :func:`global_correct`; None without a global model.
      counts: ``int[len(ids)]`` by model; None where clients have no models.
    """
    sizes = np.asarray(index.sizes)[ids]

    def share(counts: np.ndarray) -> np.ndarray:
        return np.where(sizes > 0, counts / np.maximum(sizes, 1), np.nan)

    accuracy = None if hits is None else float(hits.mean())
    if counts is None:
        assert hits is not None, "an algorithm has a global model, or personal ones"
        return Evaluation(accuracy, ids, share(_count_by_client(hits, index)[ids]), {})
    accuracies = {name: share(values) for name, values in counts.items()}
    return Evaluation(accuracy, ids, accuracies.pop("personal"), accuracies)


def _count_by_client(hits: np.ndarray, index: ClientIndex) -> np.ndarray:
    """The number of hits among each client's test examples, ``int64[num_clients]``."""
    # Differences of a running sum count all clients at once.
    sums = np.concatenate([[0], np.cumsum(hits[index.rows])])
    return sums[index.offsets + index.sizes] - sums[index.offsets]
