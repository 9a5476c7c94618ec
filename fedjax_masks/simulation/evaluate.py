"""Accuracy of the global model and of every client's own: traced programs, and what calls them.

The last batch is filled with examples of its own set: the test set, or the client's part of it.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from itertools import repeat
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core.algorithm import ClientIndex, FederatedAlgorithm, State, Task
from fedjax_masks.simulation.arrays import Examples, test_examples, with_shuffled_test
from fedjax_masks.simulation.mapping import (
    EVERYWHERE,
    SPLIT,
    Block,
    Rows,
    lay_out,
    map_clients,
    of_clients,
    over_devices,
    put,
    with_clients,
)
from fedjax_masks.simulation.packing import Packing
from fedjax_masks.simulation.plan import Plan
from fedjax_masks.simulation.records import Evaluation
from fedjax_masks.simulation.runs import Runs
from fedjax_masks.simulation.storage import Residence

EVAL_BATCH = 100


def global_correct(algorithm: FederatedAlgorithm, state: State, examples: Examples, plan: Plan) -> jax.Array:
    """``bool[num_test]``: which test examples the global model classifies correctly.

    The plan's devices share the batches.
    """
    predict = algorithm.predict["global"]
    num = len(examples.labels)
    batches = -(-num // (EVAL_BATCH * plan.devices)) * plan.devices

    def on_device(shared: Any, starts: jax.Array) -> jax.Array:
        server, inputs, labels = shared

        def one_batch(start: jax.Array) -> jax.Array:
            rows = (start + jnp.arange(EVAL_BATCH)) % num
            return jnp.argmax(predict(server, None, inputs[rows]), -1) == labels[rows]

        return jax.lax.map(one_batch, starts)

    shared = (state.server, examples.inputs, examples.labels)
    starts = EVAL_BATCH * jnp.arange(batches)
    return over_devices(on_device, plan, (EVERYWHERE, SPLIT), SPLIT)(shared, starts).ravel()[:num]


def personal_correct(
    algorithm: FederatedAlgorithm,
    state: State,
    examples: Examples,
    rows: Rows,
    plan: Plan,
    packing: Packing | None = None,
) -> dict[str, jax.Array]:
    """How many of its own test examples each client's own model classifies correctly.

    Args:
      algorithm: One with the model ``"personal"``.
      state: The simulation's state, with the clients' states as a program gets them.
      examples: The test data.
      rows: The clients, laid out under the plan.
      plan: The execution plan.
      packing: How to read a client's state.

    Returns:
      ``int32[rows]`` under each model's name, the global one excepted.
    """
    predictors, batch = {n: f for n, f in algorithm.predict.items() if n != "global"}, EVAL_BATCH

    def one_client(shared: Any, row: Rows, block: Block, client: Any) -> Any:
        server, examples = shared
        client = client if packing is None else packing.unpack(client).clients

        def one_batch(index: jax.Array, counts: dict[str, jax.Array]) -> dict[str, jax.Array]:
            places = index * batch + jnp.arange(batch)
            picked = examples.rows[row.offsets + places % jnp.maximum(row.sizes, 1)]
            inputs, labels = examples.inputs[picked], examples.labels[picked]
            real = places < row.sizes

            def correct(predict: Any) -> jax.Array:
                hits = jnp.argmax(predict(server, client, inputs), -1) == labels
                return jnp.sum(hits & real, dtype=jnp.int32)

            return {name: counts[name] + correct(predict) for name, predict in predictors.items()}

        zeros = dict.fromkeys(predictors, jnp.zeros((), jnp.int32))
        return (jnp.asarray(True), ()), jax.lax.fori_loop(0, -(-block.longest // batch), one_batch, zeros)

    clients = jax.tree.map(lambda a: a.at[rows.at].get(mode="clip"), state.clients)
    shared = (state.server, examples)
    _, counts = map_clients(one_client, shared, rows, clients, plan)
    return counts


def evaluated_clients(number: int | None, num_clients: int) -> np.ndarray:
    """``int[n]``: the ids of the clients whose own models are evaluated, sorted.

    A sample is the same in every run, so that runs can be compared client by client.

    Args:
      number: How many; None for all.
      num_clients: Of the task.

    Raises:
      ValueError: ``number`` is out of range.

    >>> evaluated_clients(None, 3).tolist(), len(evaluated_clients(10, 1000000))
    ([0, 1, 2], 10)
    """
    if number is None:
        return np.arange(num_clients)
    if not 1 <= number <= num_clients:
        raise ValueError(f"eval_clients={number}: accepted are 1 to {num_clients}, the number of clients")
    return np.sort(np.random.default_rng(0).choice(num_clients, number, replace=False))


def make_evaluate(
    make: Callable[[Mapping[str, Any]], FederatedAlgorithm],
    algorithm: FederatedAlgorithm,
    task: Task,
    runs: Runs,
    ids: np.ndarray,
    residence: Residence,
    options: Any,
) -> Callable[[State], list[Evaluation]]:
    """Evaluation of all runs; test data go to the devices at its first use.

    Args:
      make: ``(options) -> algorithm`` of a run.
      algorithm: The algorithm of any run.
      task: Data and clients.
      runs: The layout of runs.
      ids: The clients whose personal models are evaluated, sorted.
      residence: The place of clients' states.
      options: Of every run.
    """

    @partial(jax.jit, out_shardings=runs.place)
    def on_global(state: State, options: Any, examples: Examples) -> jax.Array:
        def one(examples: Examples, run: Any) -> jax.Array:
            state, options = run
            return global_correct(make(options), state, examples, runs.plan)

        return runs.map(one, examples, (state, options))

    @partial(jax.jit, out_shardings=runs.place)
    def on_personal(state: State, options: Any, examples: Examples, rows: Rows) -> dict[str, jax.Array]:
        def one(shared: Any, run: Any) -> dict[str, jax.Array]:
            (state, options), (examples, rows) = run, shared
            return personal_correct(make(options), state, examples, rows, runs.plan, residence.packing)

        return runs.map(one, (examples, rows), (state, options))

    @cache
    def data() -> tuple[Examples, ClientIndex]:
        shuffled = with_shuffled_test(task)
        return put(test_examples(shuffled), runs.everywhere), shuffled.test

    def count(state: State) -> list[dict[str, np.ndarray]]:
        """For each run, by model ``int[len(ids)]``, in blocks of as many clients as a program can get."""
        size, blocks = min(residence.limit, len(ids)), []
        examples, index = data()
        # The last block ends with the last client, so that one program serves all blocks.
        starts = [*range(0, len(ids) - size, size), len(ids) - size]
        for start in starts:
            block = ids[start : start + size]
            rows, places = lay_out(block, index, runs.plan)
            loaded = with_clients(state, residence.load(of_clients(state), block))
            located = put(residence.point(rows, block), runs.everywhere)
            counts = runs.split(jax.device_get(on_personal(loaded, options, examples, located)))
            blocks.append([{name: values[places] for name, values in own.items()} for own in counts])
        fresh = np.diff([*starts, len(ids)])
        return [
            {name: np.concatenate([block[name][:new] for block, new in zip(own, fresh)]) for name in own[0]}
            for own in zip(*blocks)
        ]

    def evaluate(state: State) -> list[Evaluation]:
        hits = counts = repeat(None)
        if "global" in algorithm.predict:
            hits = runs.split(jax.device_get(on_global(state, options, data()[0])))
        if "personal" in algorithm.predict:
            counts = count(state)
        return [_evaluation(data()[1], ids, *run) for run in zip(hits, counts)]

    return evaluate


def _evaluation(
    index: ClientIndex, ids: np.ndarray, hits: np.ndarray | None, counts: Mapping[str, np.ndarray] | None
) -> Evaluation:
    """Accuracies of one run from what was classified correctly.

    Args:
      index: Each client's rows of the test data.
      ids: The evaluated clients.
      hits: Of :func:`global_correct`; None without a global model.
      counts: By predictor, ``int[len(ids)]``; None where clients have no models of their own.
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
    """``int64[num_clients]``: how many of each client's test rows are hits."""
    running = np.concatenate([[0], np.cumsum(hits[index.rows])])
    return running[index.offsets + index.sizes] - running[index.offsets]
