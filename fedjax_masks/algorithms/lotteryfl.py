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

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.communication.payload import Masked, When
from fedjax_masks.core import flops, training, trees
from fedjax_masks.core.aggregation import masked_mean, noted
from fedjax_masks.core.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, Params, State, Task
from fedjax_masks.core.masks import density, prune, top_count, weight_mask
from fedjax_masks.core.options import Natural, PositiveShare, Share
from fedjax_masks.models import Model, weighted_kernels

Mask = dict[str, jax.Array]


class Client(NamedTuple):
    """A client's state.

    Attributes:
      params: Its own model, pruned.
      mask: By layer: bool, shaped like the kernel; False = pruned for good.
    """

    params: Params
    mask: Mask


class Server(NamedTuple):
    """The server's state.

    Attributes:
      params: The global weights, to which each mask is applied.
      masks: By layer: ``bool[num_clients, *kernel]``: what clients have told.
    """

    params: Params
    masks: Mask


class Upload(NamedTuple):
    """What a client sends.

    Attributes:
      update: Its weights less those that it received, where its new mask is True.
      mask: The new mask, where it has pruned.
    """

    update: Masked
    mask: When


def lotteryfl(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 10,
    batch_size: int = 10,
    prune_share: Share = 0.2,
    target: PositiveShare = 0.5,
    threshold: Share = 0.2,
    held_out: Natural = 10,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """LotteryFL.

    Args:
      model: The model; its initial parameters are what every device holds, to rewind to.
      optimizer: The clients' optimiser, fresh in every round.
      epochs: Local epochs per round.
      batch_size: Examples per local step.
      prune_share: A step prunes this share of a layer's remaining weights.
      target: No layer is pruned below this share.
      threshold: Only a client prunes whose accuracy on its validation data, before training, is above it.
      held_out: One in so many of a client's examples is held out for validation; a client that has
        fewer never prunes. With 0, nothing is, and training data serve.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. ``predict`` is the client's model after its last local training; the probe
      ``personal_accuracy_global`` is the global one under the client's mask, ``predict_global`` the same
      under none.

    Raises:
      UserError: The model has no weighted layers.
      ValueError: An option is out of range.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10, partition="shards:2")
      >>> algorithm = fm.lotteryfl(fm.models.mlp(task, hidden=(32,)), optax.sgd(0.1))
      >>> run = fm.simulate(algorithm, task, rounds=6, cohort=10)
      >>> 0.5 <= run.records[-1]["density"] < 1.0
      True
    """
    for name, value in (("prune_share", prune_share), ("target", target), ("threshold", threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: accepted is at least 0 and at most 1")
    if held_out < 0 or held_out == 1:
        raise ValueError(f"held_out={held_out}: accepted is 0, or 2 or more")
    layers = {kernel.name: kernel.path for kernel in weighted_kernels(model)}
    fit = training.supervised(model.apply, optimizer, epochs=epochs, batch_size=batch_size, augment=augment)

    def kept_of(params: Params, mask: Mask) -> Params:
        return weight_mask(model.kernels, params, mask)

    def pruned(params: Params, mask: Mask) -> Mask:
        weights = {name: trees.get(params, path) for name, path in layers.items()}
        return {n: keep_largest(weights[n], alive, prune_share, target) for n, alive in mask.items()}

    def init(key: chex.PRNGKey, task: Task) -> State:
        params = model.init(key)
        mask = {name: jnp.ones(trees.get(params, path).shape, bool) for name, path in layers.items()}
        clients = trees.replicate(Client(params, mask), task.num_clients)
        return State(params, Server(params, clients.mask), clients)

    def send(server: Server, client_id: jax.Array) -> Masked:
        # The client knows the mask: it has chosen it.
        mask = {name: rows[client_id] for name, rows in server.masks.items()}
        return Masked(server.params, kept_of(server.params, mask))

    def train(
        key: chex.PRNGKey, common: Params, message: Masked, client: Client, data: ClientData
    ) -> tuple[Client, Upload, Metrics]:
        received = prune(message.values, kept_of(common, client.mask))
        training, validation = split(data, held_out) if held_out else (data, data)
        accuracy, spent = evaluate(key, model, received, validation, batch_size)

        smaller = pruned(received, client.mask)
        changes = jnp.any(jnp.stack([jnp.any(smaller[n] != m) for n, m in client.mask.items()]))
        changes &= accuracy > threshold
        mask = trees.where(changes, smaller, client.mask)
        kept = kept_of(common, mask)
        start = prune(trees.where(changes, common, received), kept)
        params, metrics = fit(key, start, training, update_mask=kept)

        report = metrics._replace(flops=metrics.flops + spent)._asdict()
        report |= {"density": density(mask), "validation_accuracy": accuracy}
        # The server knows the mask: it was told when it changed, now or before.
        upload = Upload(Masked(trees.sub(params, received), kept), When(changes, mask))
        return Client(params, mask), upload, report

    def merge(key: chex.PRNGKey, common: Params, server: Server, uploads: Upload, cohort: Cohort) -> Server:
        del key, common

        def told(known: jax.Array, news: jax.Array) -> jax.Array:
            flags = uploads.mask.flag.reshape(-1, *(1,) * (news.ndim - 1))
            return jnp.where(flags, news, known[cohort.ids])

        masks = jax.tree.map(told, server.masks, uploads.mask.tree)
        kept = jax.vmap(lambda mask: kept_of(server.params, mask))(masks)
        update = masked_mean(uploads.update.values, kept, cohort.weight, trees.zeros_like(server.params))
        known = noted(server.masks, masks, cohort.ids, cohort.weight > 0)
        return Server(trees.add(server.params, update), known)

    def predict(common: Params, server: Server, client: Client, x: jax.Array) -> jax.Array:
        del common, server
        return model.apply(client.params, x)

    def predict_from_global(common: Params, server: Server, client: Client, x: jax.Array) -> jax.Array:
        return model.apply(prune(server.params, kept_of(common, client.mask)), x)

    def predict_global(common: Params, server: Server, x: jax.Array) -> jax.Array:
        del common
        return model.apply(server.params, x)

    return FederatedAlgorithm(
        init,
        send,
        train,
        merge,
        predict=predict,
        predict_global=predict_global,
        probes={"personal_accuracy_global": predict_from_global},
    )


def keep_largest(weights: jax.Array, alive: jax.Array, share: float, target: float) -> jax.Array:
    """Prunes a share of a layer's living weights, those of smallest magnitude, but not below a target.

    Args:
      weights: float32, any shape.
      alive: bool, of the same shape.
      share: Of the living ones.
      target: The share of all that stays at least; one always stays.

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


def evaluate(
    key: chex.PRNGKey, model: Model, params: Params, data: ClientData, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """``float32[]``: the accuracy, 0 where there is no example; and the FLOPs it took."""

    def count(correct: jax.Array, batch: training.Batch) -> jax.Array:
        hits = jnp.argmax(model.apply(params, batch.inputs), -1) == batch.labels
        return correct + jnp.sum(hits & batch.real, dtype=jnp.int32)

    start = jnp.zeros((), jnp.int32)
    step = flops.trace(count, start, training.batch_like(data, batch_size))
    correct = training.for_each_batch(key, data, count, start, epochs=1, batch_size=batch_size)
    accuracy, batches = correct / jnp.maximum(data.size, 1), -(-data.size // batch_size)
    spent = (batches * step.flops).astype(jnp.float32)
    training.count(training.nothing_done()._replace(loss=accuracy, flops=spent))
    return accuracy, spent
