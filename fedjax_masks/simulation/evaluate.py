"""Accuracy of the global model and of every client's own, as traced programs."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_masks.algorithm import FederatedAlgorithm, State
from fedjax_masks.simulation.arrays import Examples
from fedjax_masks.simulation.layout import Block, Rows, map_clients
from fedjax_masks.simulation.plan import Plan


def global_correct(algorithm: FederatedAlgorithm, state: State, examples: Examples, batch: int) -> jax.Array:
    """``bool[num_test]``: which test examples the global model classifies correctly."""
    predict = algorithm.predict_global
    assert predict is not None
    num = len(examples.labels)
    starts = jnp.arange(0, num, batch)

    def one_batch(start: jax.Array) -> jax.Array:
        rows = jnp.minimum(start + jnp.arange(batch), num - 1)
        logits = predict(state.common, state.server, examples.inputs[rows])
        return jnp.argmax(logits, -1) == examples.labels[rows]

    return jax.lax.map(one_batch, starts).ravel()[:num]


def personal_correct(
    algorithm: FederatedAlgorithm, state: State, examples: Examples, rows: Rows, batch: int, plan: Plan
) -> dict[str, jax.Array]:
    """How many of its own test examples each client's own model classifies correctly.

    Args:
      algorithm: One with ``predict``.
      state: The simulation's state.
      examples: The test data.
      rows: The clients, laid out under the plan.
      batch: Examples per forward pass.
      plan: The execution plan.

    Returns:
      ``int32[rows]`` under ``""`` for ``predict`` and under each probe's name.
    """
    predictors = {"": algorithm.predict, **algorithm.probes}

    def one_client(shared: Any, row: Rows, block: Block, client: Any) -> Any:
        common, server, examples = shared

        def one_batch(index: jax.Array, counts: dict[str, jax.Array]) -> dict[str, jax.Array]:
            start = index * batch
            picked = jax.lax.dynamic_slice(examples.rows, (row.offsets + start,), (batch,))
            inputs, labels = examples.inputs[picked], examples.labels[picked]
            real = start + jnp.arange(batch) < row.sizes

            def correct(predict: Any) -> jax.Array:
                hits = jnp.argmax(predict(common, server, client, inputs), -1) == labels
                return jnp.sum(hits & real, dtype=jnp.int32)

            return {name: counts[name] + correct(predict) for name, predict in predictors.items()}

        zeros = dict.fromkeys(predictors, jnp.zeros((), jnp.int32))
        return (), jax.lax.fori_loop(0, -(-block.longest // batch), one_batch, zeros)

    clients = jax.tree.map(lambda a: a.at[rows.ids].get(mode="clip"), state.clients)
    shared = (state.common, state.server, examples)
    _, counts = map_clients(one_client, shared, rows, clients, plan)
    return counts
