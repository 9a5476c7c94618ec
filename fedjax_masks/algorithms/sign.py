"""Sign: every weight gets one vote per client, up or down.

signSGD with majority vote (Bernstein, Wang, Azizzadenesheli, Anandkumar: "signSGD: Compressed Optimisation
for Non-Convex Problems", ICML 2018, arXiv 1802.04434), with local training in the place of one stochastic
gradient: a client sends the sign of its update, one bit per parameter and no scale, and the server moves
every parameter by one step in the direction of the majority; on a tie not at all.

A change of exactly zero has no sign and there is no third symbol: a fair coin votes. The majority counts
heads, not examples. The model goes down whole, as clients that were away have no other way to know it.
"""

from typing import Unpack

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.algorithms.fedavg import Server, fedavg
from fedjax_masks.core.aggregation import Votes, WeightedSum, vote
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round
from fedjax_masks.core.options import Rate, checks_options
from fedjax_masks.core.training import LocalTraining, TrainingOptions
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Model


@checks_options
def sign(
    model: Model,
    trainer: LocalTraining,
    *,
    step: Rate = 0.003,
    server_optimizer: optax.GradientTransformation | None = None,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """A majority vote on the signs of the clients' updates.

    Args:
      model: The model that all clients train.
      trainer: Local training, or its optimizer.
      step: The distance by which a round moves each parameter.
      server_optimizer: Applied to the negative move; None takes the move itself. SGD with momentum
        remembers votes.
      **training: Fields of the trainer.

    Returns:
      The algorithm. It has a global model and no personal ones.

    Raises:
      UserError: ``step`` is not positive.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="iid")
      >>> algorithm = fm.sign(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1))
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=4)
      >>> round(run.records[-1]["bytes_down"] / run.records[-1]["bytes_up"])
      32
    """
    average = fedavg(model, trainer, server_optimizer=server_optimizer, **training)

    def train(round: Round, message: Params, client: PyTree, data: ClientData) -> tuple[PyTree, Params, Info]:
        client, update, info = average.train(round, message, client, data)
        return client, signs(jax.random.fold_in(round.key, _COINS), update), info

    def receive(
        round: Round, server: Server, profile: PyTree, upload: Params, weight: jax.Array
    ) -> tuple[PyTree, Votes]:
        del round, server, weight
        everything = jax.tree.map(lambda leaf: jnp.ones((1,) * leaf.ndim, bool), upload)
        return profile, vote(upload, everything)

    def merge(round: Round, server: Server, total: Votes) -> tuple[Server, Info | None]:
        move = jax.tree.map(lambda ones, voters: step * jnp.sign(2.0 * ones - voters), *total)
        return average.merge(round, server, WeightedSum(move, jnp.float32(1)))

    return average._replace(train=train, receive=receive, merge=merge)


def signs(key: chex.PRNGKey, update: Params) -> Params:
    """Pytree of bool: whether each element is positive; a fair coin where it is zero."""
    leaves, treedef = jax.tree.flatten(update)
    keys = jax.random.split(key, len(leaves))
    coins = [jax.random.bernoulli(key, jnp.float32(0.5), leaf.shape) for key, leaf in zip(keys, leaves)]
    return treedef.unflatten([jnp.where(u == 0, coin, u > 0) for u, coin in zip(leaves, coins)])


_COINS = 0x636F696E  # far from the numbers of epochs, which are folded into the same key
