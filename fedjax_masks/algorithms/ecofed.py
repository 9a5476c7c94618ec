"""EcoFed: devices run the first layers, frozen; a server trains the rest on what it has cached.

Wu et al. 2024, arXiv 2304.05495. The device's part is pre-trained and never moves, so no
gradient comes down and no weights travel. Every ``period``-th round the cohort sends the activations
of all its examples, 8 bits each; the server keeps them, by client, and in the rounds between it
replays clients of earlier cohorts; of one that was lost then it has nothing, and skips it. It trains a
private copy of its part on each client's activations and averages the copies. Where activations can be
negative, the quantiser's scale is of their magnitude.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.algorithms.activations import Activations, activations_of
from fedjax_masks.communication.payload import AlreadyKnown, Conditional, Installed, Masked
from fedjax_masks.core import trees
from fedjax_masks.core.aggregation import WeightedSum, weighted, weighted_mean
from fedjax_masks.core.algorithm import (
    ClientData,
    Draw,
    FederatedAlgorithm,
    Info,
    Round,
    Schedule,
    State,
    Task,
)
from fedjax_masks.core.masks import prune
from fedjax_masks.core.minibatches import Batch
from fedjax_masks.core.options import Count, checks_options
from fedjax_masks.core.training import LocalTraining, Trainer, TrainingOptions, as_trainer, mean_cross_entropy
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Model, cut_model


class Server(NamedTuple):
    """The server's state.

    Attributes:
      device: The parameters up to the split, which never change.
      params: The parameters behind it.
    """

    device: Params
    params: Params


class Profile(NamedTuple):
    """A client's profile: activations for replays.

    Attributes:
      activations: The last that arrived.
      size: ``int32[]``: the number of their examples; 0 before anything arrived.
    """

    activations: Activations
    size: jax.Array


class Message(NamedTuple):
    """The server's message.

    Attributes:
      device: The parameters up to the split.
      fresh: Whether activations are to be sent in this round: devices count the rounds.
    """

    device: Installed
    fresh: AlreadyKnown


class Copies(NamedTuple):
    """The sum over some of the server's copies.

    Attributes:
      params: Their parameters, each copy of weight 1.
      loss: ``float32[]``: losses of all examples.
      examples: ``float32[]``.
    """

    params: WeightedSum
    loss: jax.Array
    examples: jax.Array


@checks_options
def ecofed(
    model: Model,
    trainer: LocalTraining,
    *,
    split: str | None = None,
    period: Count = 2,
    quantized: bool = True,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """EcoFed.

    Args:
      model: The model, to be cut in two. Its device's part should be trained already: see
        :func:`fedjax_masks.experiment.pretraining.start_from`.
      trainer: Training of the server's copies, or its optimizer. Its minibatch is also what has one scale,
        and its augmentation changes what devices read.
      split: The device's last stage, one of ``model.splits``; None is the second, or the first of
        a model that has no other.
      period: Every how many rounds devices send activations, from round 0 on; the paper's rho.
      quantized: Whether activations are sent in 8 bits, else in 32.
      **training: Fields of the trainer.

    Returns:
      The algorithm. It has a global model and no personal ones.

    Raises:
      UserError: The model cannot be cut there, or ``period`` is not 1 or more.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4)
      >>> algorithm = fm.ecofed(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1), split="dense1")
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3, eval_every=1)
      >>> [record["bytes_up"] > 0 for record in run.records]  # activations, then a replay
      [True, False]
    """
    _, apart, activate, finish = cut_model(model, split)
    trainer = as_trainer(trainer, training)
    batch_size = trainer.batch_size
    run_device = partial(activations_of, activate, batch_size, trainer.augment, quantized)
    train_copy = partial(_train_copy, replace(trainer, augment=None), finish)

    def init(key: chex.PRNGKey, task: Task) -> State:
        device, params = apart(model.init(key))
        batches = -(-max(1, int(task.train.sizes.max())) // batch_size)
        inputs = jax.ShapeDtypeStruct((batch_size, *task.input_shape), task.inputs.dtype)
        shape = jax.eval_shape(activate, device, inputs).shape
        none = Activations(
            jnp.zeros((batches, *shape), jnp.int8 if quantized else jnp.float32),
            jnp.zeros(batches, jnp.float32),
            jnp.zeros((batches, batch_size, 2), jnp.int32),
        )
        profiles = trees.replicate(Profile(none, jnp.int32(0)), task.num_clients)
        return State(Server(device, params), profiles=profiles)

    def send(round: Round, server: Server, profile: Profile) -> Message:
        del profile
        return Message(Installed(server.device), AlreadyKnown(round.index % period == 0))

    def train(
        round: Round, message: Message, client: PyTree, data: ClientData
    ) -> tuple[PyTree, Conditional, Info]:
        fresh = message.fresh.tree
        activations, mask, info = run_device(round, message.device.tree, data, fresh)
        # The server knows how many examples each client has: it weighs clients by them.
        upload = Conditional(fresh, Masked(activations, mask))
        return client, upload, info

    def receive(
        round: Round, server: Server, profile: Profile, upload: Conditional, weight: jax.Array
    ) -> tuple[Profile, Copies]:
        """Trains a copy of the server's part on a client's activations, new ones or those of its profile."""
        del weight  # all copies count alike
        values, mask = upload.tree
        room = profile.activations.scale.shape[0]  # a device may lay its examples out in more batches
        news = jax.tree.map(lambda a: a[:room], prune(values, mask))
        news = Profile(news, jnp.sum(mask.labels, dtype=jnp.int32))
        profile = trees.where(upload.flag, news, profile)
        return profile, train_copy(round, server.params, profile)

    def merge(round: Round, server: Server, total: Copies) -> tuple[Server, Info]:
        del round
        params = weighted_mean(total.params, default=server.params)
        return server._replace(params=params), Info(total.loss / jnp.maximum(total.examples, 1))

    def predict(server: Server, client: PyTree, x: jax.Array) -> jax.Array:
        del client
        return finish(server.params, activate(server.device, x))

    schedule = Schedule(partial(_select, period))
    return FederatedAlgorithm(init, send, train, receive, merge, {"global": predict}, schedule)


def _train_copy(
    trainer: Trainer,
    finish: Callable[[Params, jax.Array], jax.Array],
    round: Round,
    params: Params,
    profile: Profile,
) -> Copies:
    """Trains a copy of the server's part on a client's activations."""
    values, scale, labels = profile.activations
    batch_size = labels.shape[1]
    places = jnp.arange(scale.shape[0] * batch_size)
    data = ClientData(places, labels[..., 0].ravel(), places, profile.size, profile.size, jnp.int32(0))

    def loss(params: Params, batch: Batch, key: chex.PRNGKey) -> jax.Array:
        del key
        place = jnp.divmod(batch.inputs, batch_size)
        scales = scale[place[0]].reshape(-1, *(1,) * (values.ndim - 2))
        return mean_cross_entropy(finish(params, values[place] * scales), batch)

    params, info = trainer(round, params, data, loss, order=_stored_order)
    assert info.loss is not None
    examples = (trainer.epochs * profile.size).astype(jnp.float32)
    return Copies(weighted(params, (profile.size > 0).astype(jnp.float32)), info.loss * examples, examples)


def _select(period: int, index: int, draw: Draw) -> np.ndarray:
    """A new cohort in every ``period``-th round; in the rounds between, clients of earlier cohorts."""
    if index % period == 0:
        return draw(index)
    return draw(index, np.unique([draw(earlier) for earlier in range(0, index, period)]))


def _stored_order(key: chex.PRNGKey, data: ClientData, batch_size: int) -> jax.Array:
    """The rows in their stored order; padding repeats rows of real examples."""
    del key, batch_size
    return data.rows % jnp.maximum(data.size, 1)
