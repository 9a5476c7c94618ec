"""LotteryFL: every client looks for its own winning ticket, and only its weights travel.

Li, Sun, Wang, Duan, Li, Chen, Li: "LotteryFL: Personalized and Communication-Efficient Federated Learning
with Lottery Ticket Hypothesis on Non-IID Datasets", 2020, arXiv 2008.03371.

A client receives the global weights under its own mask. If they do well enough on its validation data and
more is to be pruned, it prunes those of smallest magnitude in each layer, and rewinds what is left to the
initial weights, which all devices hold. Then it trains, and uploads what its mask leaves. The server takes,
for each weight, the mean over the clients that have it.

Where the paper is silent or cannot be followed we choose: validation data are taken from the client's
training data; the last step prunes no more than what leads to the target; means are weighted by numbers
of examples; biases and normalisation are never pruned, and are rewound with the weights.
"""

from typing import NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.communication.payload import Conditional, Installed, Masked
from fedjax_masks.core import flops, trees, work
from fedjax_masks.core.aggregation import MaskedSum, masked, masked_mean
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, State, Task
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.masks import density, prune, top_count, weight_mask
from fedjax_masks.core.minibatches import Batch, batch_like, for_each_batch
from fedjax_masks.core.options import Natural, PositiveShare, Share, checks_options
from fedjax_masks.core.training import LocalTraining, TrainingOptions, as_trainer, report_work
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Model, weighted_kernels

Mask = dict[str, jax.Array]
"""Bool arrays by layer, shaped like the kernels; False = pruned for good. A client's profile is its mask."""


class Client(NamedTuple):
    """A client's state.

    Attributes:
      params: Its own model, pruned.
      mask: Its mask.
    """

    params: Params
    mask: Mask


class Server(NamedTuple):
    """The server's state.

    Attributes:
      params: The global weights, to which each mask is applied.
      initial: The initial weights, which never change.
    """

    params: Params
    initial: Params


class Message(NamedTuple):
    """The server's message.

    Attributes:
      params: The global weights under the client's mask.
      initial: The initial weights, to rewind to.
    """

    params: Masked
    initial: Installed


class Upload(NamedTuple):
    """A client's upload.

    Attributes:
      update: Its weights less those that it received, where its new mask is True.
      mask: The new mask, where the client has pruned.
    """

    update: Masked
    mask: Conditional


@checks_options
def lotteryfl(
    model: Model,
    trainer: LocalTraining,
    *,
    prune_share: Share = 0.2,
    target: PositiveShare = 0.5,
    threshold: Share = 0.2,
    held_out: Natural = 10,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """LotteryFL.

    Args:
      model: The model; its initial parameters are what every device holds, to rewind to.
      trainer: Local training, or its optimizer.
      prune_share: A step prunes this share of a layer's remaining weights.
      target: No layer is pruned below this share.
      threshold: Only a client prunes whose accuracy on its validation data, before training, is above it.
      held_out: One in so many of a client's examples is held out for validation; a client that has
        fewer never prunes. With 0, nothing is, and training data serve.
      **training: Fields of the trainer.

    Returns:
      The algorithm. Its personal model is the client's after its last local training;
      ``personal_accuracy_global`` is the global one under the client's mask; the global model has no mask.

    Raises:
      UserError: The model has no weighted layers, or an option is out of range.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4, partition="shards:2")
      >>> algorithm = fm.lotteryfl(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1))
      >>> run = fm.simulate(algorithm, task, rounds=3, cohort=4)
      >>> 0.5 <= run.records[-1]["density"] < 1.0
      True
    """
    if held_out == 1:
        raise UserError("held_out=1: must be 0, or 2 or more; with 1, no example would be left to train on")
    trainer = as_trainer(trainer, training)
    fit = trainer.supervised(model.apply)
    layers = {kernel.name: kernel.path for kernel in weighted_kernels(model)}

    def whole_mask(params: Params, mask: Mask) -> Params:
        return weight_mask(model.kernels, params, mask)

    def pruned(params: Params, mask: Mask) -> Mask:
        weights = {name: trees.get(params, path) for name, path in layers.items()}
        return {n: keep_largest(weights[n], alive, prune_share, target) for n, alive in mask.items()}

    def init(key: chex.PRNGKey, task: Task) -> State:
        params = model.init(key)
        mask = {name: jnp.ones(trees.get(params, path).shape, bool) for name, path in layers.items()}
        clients = trees.replicate(Client(params, mask), task.num_clients)
        return State(Server(params, params), clients, clients.mask)

    def send(round: Round, server: Server, profile: Mask) -> Message:
        del round
        # The client knows the mask: it has chosen it.
        return Message(Masked(server.params, whole_mask(server.params, profile)), Installed(server.initial))

    def train(
        round: Round, message: Message, client: Client, data: ClientData
    ) -> tuple[Client, Upload, Info]:
        initial = message.initial.tree
        received = prune(message.params.values, whole_mask(initial, client.mask))
        training_data, validation = split(data, held_out) if held_out else (data, data)
        accuracy = evaluate(round.key, model, received, validation, trainer.batch_size)
        smaller = pruned(received, client.mask)
        changes = (accuracy > threshold) & _differ(smaller, client.mask)
        mask = trees.where(changes, smaller, client.mask)
        trainable = whole_mask(initial, mask)
        start = prune(trees.where(changes, initial, received), trainable)
        params, info = fit(round, start, training_data, update_mask=trainable)
        # The server knows the mask: it was told when it changed, now or before.
        upload = Upload(Masked(trees.sub(params, received), trainable), Conditional(changes, mask))
        extra = {"density": density(mask), "validation_accuracy": accuracy}
        return Client(params, mask), upload, info._replace(extra=extra)

    def personal(server: Server, client: Client, x: jax.Array) -> jax.Array:
        del server
        return model.apply(client.params, x)

    def from_global(server: Server, client: Client, x: jax.Array) -> jax.Array:
        return model.apply(prune(server.params, whole_mask(server.params, client.mask)), x)

    def globally(server: Server, client: PyTree, x: jax.Array) -> jax.Array:
        del client
        return model.apply(server.params, x)

    models = {"global": globally, "personal": personal, "personal_accuracy_global": from_global}
    return FederatedAlgorithm(init, send, train, _receive, _merge, models)


def _receive(
    round: Round, server: Server, profile: Mask, upload: Upload, weight: jax.Array
) -> tuple[Mask, MaskedSum]:
    del round, server
    mask = trees.where(upload.mask.flag, upload.mask.tree, profile)
    return mask, masked(upload.update.values, upload.update.mask, weight)


def _merge(round: Round, server: Server, total: MaskedSum) -> tuple[Server, None]:
    del round
    update = masked_mean(total, trees.zeros_like(server.params))
    return server._replace(params=trees.add(server.params, update)), None


def _differ(a: Mask, b: Mask) -> jax.Array:
    return jnp.any(jnp.stack([jnp.any(a[name] != b[name]) for name in a]))


def keep_largest(weights: jax.Array, alive: jax.Array, share: float, target: float) -> jax.Array:
    """Prunes a share of a layer's living weights, those of smallest magnitude, but not below a target.

    Args:
      weights: float32, any shape.
      alive: bool, of the same shape.
      share: The share of living weights to prune.
      target: The smallest share of all weights that stays; one weight always stays.

    >>> alive = jnp.array([True, False, True, True])
    >>> keep_largest(jnp.array([3.0, 9.0, -1.0, 2.0]), alive, 0.34, 0.5).tolist()
    [True, False, False, True]
    """
    living = jnp.sum(alive, dtype=jnp.int32)
    least = jnp.minimum(max(1, round(target * weights.size)), living)
    number = jnp.maximum(jnp.round((1 - share) * living).astype(jnp.int32), least)
    return top_count(jnp.where(alive, jnp.abs(weights), -1.0), number)


def split(data: ClientData, period: int) -> tuple[ClientData, ClientData]:
    """Training data, and every ``period``-th example of them as validation data.

    Spread over the client's rows, since these may lie in the order of their labels.
    """
    places = jnp.arange(len(data.rows))
    held = places % period == period - 1
    order = jnp.argsort(jnp.where(places < data.size, held, 2))
    size = data.size // period
    rest = data.size - size
    rows = data.rows[order]
    # Both sizes grow with the client's, so that the longest client has the longest parts.
    training = data._replace(rows=rows, size=rest, longest=data.longest - data.longest // period)
    validation = data._replace(rows=jnp.roll(rows, -rest), size=size, longest=data.longest // period)
    return training, validation


def evaluate(key: chex.PRNGKey, model: Model, params: Params, data: ClientData, batch_size: int) -> jax.Array:
    """``float32[]``: the accuracy, 0 where there is no example; its FLOPs count as the client's."""

    def count(correct: jax.Array, batch: Batch, key: chex.PRNGKey) -> jax.Array:
        del key
        hits = jnp.argmax(model.apply(params, batch.inputs), -1) == batch.labels
        return correct + jnp.sum(hits & batch.real, dtype=jnp.int32)

    start = jnp.zeros((), jnp.int32)
    step = flops.trace(count, start, batch_like(data, batch_size), key)
    correct = for_each_batch(key, data, count, start, epochs=1, batch_size=batch_size)
    accuracy, batches = correct / jnp.maximum(data.size, 1), -(-data.size // batch_size)
    report_work(accuracy, work.no_work()._replace(flops=(batches * step.flops).astype(jnp.float32)))
    return accuracy
