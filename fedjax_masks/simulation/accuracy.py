"""Traced programs that count the correct predictions of the global model and of clients' own models.

The last batch is padded with examples of the same set: the test set, or the client's part of it.
"""

import jax
import jax.numpy as jnp

from fedjax_masks.core.algorithm import FederatedAlgorithm, Predict, PyTree, State
from fedjax_masks.simulation.arrays import Examples
from fedjax_masks.simulation.lanes import Lanes
from fedjax_masks.simulation.mapping import REPLICA_SPEC, SHARD_SPEC, Block, map_clients, map_devices
from fedjax_masks.simulation.plan import Plan
from fedjax_masks.simulation.states import Packing

EVAL_BATCH = 100
"""Examples per forward pass."""


def global_correct(
    algorithm: FederatedAlgorithm, state: State, examples: Examples[jax.Array], plan: Plan
) -> jax.Array:
    """The test examples that the global model classifies correctly, ``bool[num_test]``.

    The plan's devices divide the batches.
    """
    predict = algorithm.predict["global"]
    num = len(examples.labels)
    batches = -(-num // (EVAL_BATCH * plan.devices)) * plan.devices

    def on_device(shared: tuple[PyTree, jax.Array, jax.Array], starts: jax.Array) -> jax.Array:
        server, inputs, labels = shared

        def one_batch(start: jax.Array) -> jax.Array:
            # The remainder repeats test examples, so that the last batch has the size of the others.
            rows = (start + jnp.arange(EVAL_BATCH)) % num
            return jnp.argmax(predict(server, None, inputs[rows]), -1) == labels[rows]

        # One batch after the other: memory does not grow with the test set.
        return jax.lax.map(one_batch, starts)

    shared = (state.server, examples.inputs, examples.labels)
    starts = EVAL_BATCH * jnp.arange(batches)
    return map_devices(on_device, plan, (REPLICA_SPEC, SHARD_SPEC), SHARD_SPEC)(shared, starts).ravel()[:num]


def personal_correct(
    algorithm: FederatedAlgorithm,
    state: State,
    examples: Examples[jax.Array],
    lanes: Lanes[jax.Array],
    plan: Plan,
    packing: Packing | None = None,
) -> dict[str, jax.Array]:
    """The number of each client's test examples that the client's own model classifies correctly.

    Args:
      algorithm: An algorithm with the model ``"personal"``.
      state: The simulation's state, with the clients' states of a program.
      examples: The test data.
      lanes: The clients, laid out under the plan.
      plan: The execution plan.
      packing: The packing of a client's state, if any.

    Returns:
      ``int32[lanes]`` by the name of each model but the global one.
    """
    predictors, batch = {n: f for n, f in algorithm.predict.items() if n != "global"}, EVAL_BATCH
    # Blocks take their clients from all states, unless devices share these out.
    all_clients, lane_clients = state.clients, ()
    if plan.devices > 1:
        all_clients, lane_clients = (), _take(state.clients, lanes)

    def one_client(
        shared: tuple[PyTree, PyTree, Examples[jax.Array]],
        lane: Lanes[jax.Array],
        block: Block,
        client: PyTree,
    ) -> tuple[tuple[jax.Array, tuple[()]], dict[str, jax.Array]]:
        server, clients, examples = shared
        client = client if plan.devices > 1 else _take(clients, lane)
        client = client if packing is None else packing.unpack(client).clients

        def one_batch(index: jax.Array, counts: dict[str, jax.Array]) -> dict[str, jax.Array]:
            # The remainder repeats the client's own examples: batch statistics must not see other clients.
            positions = index * batch + jnp.arange(batch)
            rows = examples.rows[lane.offsets + positions % jnp.maximum(lane.sizes, 1)]
            inputs, labels = examples.inputs[rows], examples.labels[rows]
            real = positions < lane.sizes

            def correct(predict: Predict) -> jax.Array:
                hits = jnp.argmax(predict(server, client, inputs), -1) == labels
                return jnp.sum(hits & real, dtype=jnp.int32)

            return {name: counts[name] + correct(predict) for name, predict in predictors.items()}

        zeros = dict.fromkeys(predictors, jnp.zeros((), jnp.int32))
        return (jnp.asarray(True), ()), jax.lax.fori_loop(0, -(-block.longest // batch), one_batch, zeros)

    shared = (state.server, all_clients, examples)
    _, counts = map_clients(one_client, shared, lanes, lane_clients, plan)
    return counts


def _take(clients: PyTree, lanes: Lanes[jax.Array]) -> PyTree:
    """The states of the clients in lanes; padding reads any client's."""
    return jax.tree.map(lambda a: a.at[lanes.positions].get(mode="clip"), clients)
