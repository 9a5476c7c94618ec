"""Sign: every weight gets one vote per client, up or down.

signSGD with majority vote (Bernstein, Wang, Azizzadenesheli, Anandkumar: "signSGD: Compressed Optimisation
for Non-Convex Problems", ICML 2018, arXiv 1802.04434), with local training in the place of one stochastic
gradient: a client sends the sign of its update, one bit per parameter and no scale, and the server moves
every parameter by one step in the direction of the majority; on a tie not at all.

A change of exactly zero has no sign and there is no third symbol: a fair coin votes. The majority counts
heads, not examples. The model goes down whole, as clients that were away have no other way to know it.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.algorithms.fedavg import Server, fedavg
from fedjax_masks.core import training
from fedjax_masks.core.aggregation import Votes, WeightedSum, vote
from fedjax_masks.core.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, Params
from fedjax_masks.core.options import Rate
from fedjax_masks.models import Model


def sign(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    step: Rate = 0.003,
    epochs: int = 1,
    batch_size: int = 10,
    server_optimizer: optax.GradientTransformation | None = None,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """A majority vote on the signs of the clients' updates.

    Args:
      model: The model that all clients train.
      optimizer: The clients' optimiser, fresh in every round; only the signs of what it does count.
      step: How far a round moves each parameter.
      epochs: Local epochs per round.
      batch_size: Examples per local step.
      server_optimizer: Applied to the negative move; None takes the move itself. SGD with momentum
        remembers votes.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. It has a global model and no personal ones.

    Raises:
      ValueError: ``step`` is not positive.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10, partition="iid")
      >>> algorithm = fm.sign(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1))
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=4)
      >>> round(run.records[-1]["bytes_down"] / run.records[-1]["bytes_up"])
      32
    """
    if not step > 0:
        raise ValueError(f"step={step}: accepted is above 0")
    average = fedavg(
        model,
        optimizer,
        epochs=epochs,
        batch_size=batch_size,
        server_optimizer=server_optimizer,
        augment=augment,
    )

    def train(
        key: chex.PRNGKey, common: Any, message: Params, client: Any, data: ClientData
    ) -> tuple[Any, Params, Metrics]:
        client, update, metrics = average.train(key, common, message, client, data)
        return client, signs(jax.random.fold_in(key, _COINS), update), metrics

    def reduce(upload: Params, weight: jax.Array) -> Votes:
        everything = jax.tree.map(lambda leaf: jnp.ones((1,) * leaf.ndim, bool), upload)
        return vote(upload, everything, weight > 0)

    def merge(key: chex.PRNGKey, common: Any, server: Server, uploads: Votes, cohort: Cohort) -> Server:
        move = jax.tree.map(lambda ones, voters: step * jnp.sign(2.0 * ones - voters), *uploads)
        anybody = jnp.any(cohort.weight > 0).astype(jnp.float32)
        return average.merge(key, common, server, WeightedSum(move, anybody), cohort)

    return average._replace(train=train, reduce=reduce, merge=merge)


def signs(key: chex.PRNGKey, update: Params) -> Params:
    """Pytree of bool: whether each element is positive; a fair coin where it is zero."""
    leaves, treedef = jax.tree.flatten(update)
    keys = jax.random.split(key, len(leaves))
    coins = [jax.random.bernoulli(key, jnp.float32(0.5), leaf.shape) for key, leaf in zip(keys, leaves)]
    return treedef.unflatten([jnp.where(u == 0, coin, u > 0) for u, coin in zip(leaves, coins)])


_COINS = 0x636F696E  # far from the numbers of epochs, which are folded into the same key
