"""Per-FedAvg: a global model that one step on a client's own data makes the client's.

Fallah, Mokhtari, Ozdaglar: "Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
Meta-Learning Approach", NeurIPS 2020, arXiv 2002.07948, algorithm 1, in its first-order variant FO: with
independent batches D and D' a local step is ``w <- w - beta grad f(w - alpha grad f(w; D); D')``, whose
derivative through the inner gradient is left out. All else is FedAvg.

D and D' are the two halves of a minibatch. A client's model is the *newest* global one after one step of
size ``alpha`` on examples of its own, drawn when it last took part: these are its state, far less than a
model, and never travel. A client that has not yet taken part has none, and uses the global model.
"""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.algorithms.fedavg import Server, averaging
from fedjax_masks.core import training, trees
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Metrics, Params, State, Task
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.options import Count, Decay
from fedjax_masks.models import Model


def perfedavg(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    alpha: Decay = 0.03,
    support: Count = 40,
    epochs: int = 1,
    batch_size: int = 10,
    server_optimizer: optax.GradientTransformation | None = None,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """Per-FedAvg with first-order meta-gradients.

    Args:
      model: The model that all clients train.
      optimizer: The clients' optimiser of the meta-objective, fresh in every round; its learning rate
        is the paper's beta.
      alpha: Step size of the adaptation; 0 is FedAvg on every other example of each batch.
      support: Examples that a client adapts to before it predicts; all of them where it has fewer.
      epochs: Local epochs per round.
      batch_size: Examples per local step: the even ones for D', the odd ones for D.
      server_optimizer: Applied to the negative mean update; None takes the mean itself.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. It has personal models and the global one that they start from; the reported loss
      is that of adapted parameters on D'.

    Raises:
      UserError: ``batch_size`` is 1.
      ValueError: ``alpha`` is negative.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10, partition="shards:2")
      >>> algorithm = fm.perfedavg(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1), alpha=0.1)
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["round"]
      2
    """
    if batch_size < 2:
        raise UserError(
            f"batch_size={batch_size}: must be 2 or more for perfedavg, which adapts to half a batch"
        )
    if not alpha >= 0:
        raise ValueError(f"alpha={alpha}: accepted is at least 0")
    loss = training.cross_entropy(model.apply)

    def adapt(params: Params, batch: training.Batch) -> Params:
        gradient = jax.grad(loss)(jax.lax.stop_gradient(params), batch)
        return jax.tree.map(lambda w, g: w - alpha * g, params, gradient)

    def meta_loss(params: Params, batch: training.Batch) -> jax.Array:
        # A last batch of one example has it in D', and adapts to nothing.
        even, odd = (jax.tree.map(lambda a, start=start: a[start::2], batch) for start in (0, 1))
        return loss(adapt(params, odd), even)

    fit = {"optimizer": optimizer, "epochs": epochs, "batch_size": batch_size, "augment": augment}
    average = averaging(
        model, partial(training.train, loss=meta_loss, **fit), server_optimizer=server_optimizer
    )

    def init(key: chex.PRNGKey, task: Task) -> State:
        nothing = training.Batch(
            jnp.zeros((support, *task.input_shape), task.inputs.dtype),
            jnp.zeros(support, jnp.int32),
            jnp.zeros(support, bool),
        )
        return average.init(key, task)._replace(clients=trees.replicate(nothing, task.num_clients))

    def train(
        key: chex.PRNGKey, common: Any, message: Params, client: training.Batch, data: ClientData
    ) -> tuple[training.Batch, Params, Metrics]:
        _, update, metrics = average.train(key, common, message, (), data)
        rows = training.shuffled_rows(jax.random.fold_in(key, _SUPPORT), data, support)[:support]
        real = jnp.arange(support) < data.size
        return training.Batch(data.inputs[rows], data.labels[rows], real), update, metrics

    def predict(common: Any, server: Server, client: training.Batch, x: jax.Array) -> jax.Array:
        del common
        return model.apply(adapt(server.params, client), x)

    return average._replace(init=init, train=train, predict=predict)


_SUPPORT = 0x73757070  # far from the numbers of epochs, which are folded into the same key
