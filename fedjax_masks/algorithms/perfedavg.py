"""Per-FedAvg: a global model that one step on a client's own data makes the client's.

Fallah, Mokhtari, Ozdaglar: "Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
Meta-Learning Approach", NeurIPS 2020, arXiv 2002.07948, algorithm 1, in its first-order variant FO: with
independent batches D and D' a local step is ``w <- w - beta grad f(w - alpha grad f(w; D); D')``, whose
derivative through the inner gradient is left out. All else is FedAvg.

D and D' are the two halves of a minibatch. A client's model is the *newest* global one after one step of
size ``alpha`` on examples of its own, drawn when it last took part: these are its state, far less than a
model, and never travel. A client that has not yet taken part has none, and uses the global model.
"""

from typing import NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.algorithms.fedavg import Server, averaging
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, State, Task
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.minibatches import Batch, shuffled_rows
from fedjax_masks.core.options import Count, Decay, checks_options
from fedjax_masks.core.training import LocalTraining, TrainingOptions, as_trainer, cross_entropy
from fedjax_masks.core.types import Params
from fedjax_masks.models import Model


class Support(NamedTuple):
    """A client's state: the examples that it adapts to before it predicts.

    Attributes:
      inputs: ``[support, *input_shape]``.
      labels: ``int32[support]``.
      real: ``bool[support]``: False for padding.
    """

    inputs: jax.Array
    labels: jax.Array
    real: jax.Array


@checks_options
def perfedavg(
    model: Model,
    trainer: LocalTraining,
    *,
    alpha: Decay = 0.03,
    support: Count = 40,
    server_optimizer: optax.GradientTransformation | None = None,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """Per-FedAvg with first-order meta-gradients.

    Args:
      model: The model that all clients train.
      trainer: Local training of the meta-objective, or its optimizer; its learning rate is the paper's beta.
        Of every minibatch, the even examples are D', the odd ones D.
      alpha: Step size of the adaptation; 0 is FedAvg on every other example of each batch.
      support: Examples that a client adapts to before it predicts; all of them where it has fewer.
      server_optimizer: Applied to the negative mean update; None takes the mean itself.
      **training: Fields of the trainer.

    Returns:
      The algorithm. It has personal models and the global one that they start from; the reported loss
      is that of adapted parameters on D'.

    Raises:
      UserError: ``batch_size`` is 1, or an option is out of range.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="shards:2")
      >>> algorithm = fm.perfedavg(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1), alpha=0.1)
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["personal_accuracy_mean"] > run.records[-1]["global_accuracy"]
      True
    """
    trainer = as_trainer(trainer, training)
    if trainer.batch_size < 2:
        raise UserError(
            f"batch_size={trainer.batch_size}: must be 2 or more for perfedavg, which adapts to half a batch"
        )
    loss = cross_entropy(model.apply)

    def adapt(params: Params, batch: Batch, key: chex.PRNGKey) -> Params:
        gradient = jax.grad(loss)(jax.lax.stop_gradient(params), batch, key)
        return jax.tree.map(lambda w, g: w - alpha * g, params, gradient)

    def meta_loss(params: Params, batch: Batch, key: chex.PRNGKey) -> jax.Array:
        # A last batch of one example has it in D', and adapts to nothing.
        even, odd = (
            Batch(batch.inputs[start::2], batch.labels[start::2], batch.real[start::2], batch.step)
            for start in (0, 1)
        )
        return loss(adapt(params, odd, key), even, key)

    average = averaging(
        model,
        lambda round, params, data, **options: trainer(round, params, data, meta_loss, **options),
        server_optimizer=server_optimizer,
    )

    def init(key: chex.PRNGKey, task: Task) -> State:
        nothing = Support(
            jnp.zeros((support, *task.input_shape), task.inputs.dtype),
            jnp.zeros(support, jnp.int32),
            jnp.zeros(support, bool),
        )
        return average.init(key, task)._replace(clients=trees.replicate(nothing, task.num_clients))

    def train(
        round: Round, message: Params, client: Support, data: ClientData
    ) -> tuple[Support, Params, Info]:
        del client
        _, update, info = average.train(round, message, (), data)
        rows = shuffled_rows(jax.random.fold_in(round.key, _SUPPORT), data, support)[:support]
        real = jnp.arange(support) < data.size
        return Support(data.inputs[rows], data.labels[rows], real), update, info

    def personal(server: Server, client: Support, x: jax.Array) -> jax.Array:
        batch = Batch(*client, jnp.int32(0))
        return model.apply(adapt(server.params, batch, jax.random.key(0)), x)

    models = {**average.predict, "personal": personal}
    return average._replace(init=init, train=train, predict=models)


_SUPPORT = 0x73757070  # far from the numbers of epochs, which are folded into the same key
