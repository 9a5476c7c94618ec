"""SplitFed: devices train the first layers, a server trains the rest, and they talk over every batch.

Thapa, Arachchige, Camtepe, Sun 2022, arXiv 2004.12088, version 1. For every batch a device sends its
activations and labels, and receives the gradient of the activations. The server trains a private copy of its
half for each device. At the end of the round both halves are averaged, weighted by the number of examples, so
that the result is FedAvg's.

Here the copy trains inside ``train``. Of the conversation of device and server only the size is left: a
:class:`fedjax_masks.communication.payload.Dialogue` in the upload.
"""

from collections.abc import Callable
from typing import NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.communication import size
from fedjax_masks.communication.payload import AlreadyKnown, Dialogue
from fedjax_masks.core import flops, trees
from fedjax_masks.core.aggregation import WeightedSum, weighted, weighted_mean
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Info, Round, State, Task, Work
from fedjax_masks.core.minibatches import Batch, batch_like
from fedjax_masks.core.training import (
    LocalTraining,
    Loss,
    Trainer,
    TrainingOptions,
    as_trainer,
    mean_cross_entropy,
)
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Halves, Model, cut_model

LABEL = jax.ShapeDtypeStruct((2,), jnp.int32)
"""A label on the wire: an integer of 64 bits, as in the code of EcoFed's authors."""


class Sides(NamedTuple):
    """The parameters of both halves.

    Attributes:
      device: The device's half. It travels at the beginning and the end of a round.
      server: The server's half. It never leaves the server: on the wire it is AlreadyKnown.
    """

    device: Params
    server: Params | AlreadyKnown


class Upload(NamedTuple):
    """A client's upload.

    Attributes:
      update: The trained halves less those at the beginning of the round.
      dialogue: The size of the conversation in between.
    """

    update: Sides
    dialogue: Dialogue


class Protocol(NamedTuple):
    """Rules by which a device and the server train on one batch.

    Attributes:
      loss: A loss of :class:`Sides`; its gradient moves both.
      on_device: ``(device's params, batch) -> anything``: the device's computation for a step.
      on_server: ``(server's params, activations, batch) -> anything``: the server's.
      up: ``(activation, logits) -> payload``: the device's messages about one example; arguments and result
        are shapes and dtypes.
      down: The same for the server's messages.
      messages: The number of messages about one batch.
    """

    loss: Loss
    on_device: Callable[[Params, Batch], PyTree]
    on_server: Callable[[Params, jax.Array, Batch], PyTree]
    up: Callable[[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct], PyTree]
    down: Callable[[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct], PyTree]
    messages: int


def splitfed(
    model: Model, trainer: LocalTraining, *, split: str | None = None, **training: Unpack[TrainingOptions]
) -> FederatedAlgorithm:
    """SplitFed, version 1.

    Args:
      model: The model, to be cut in two.
      trainer: Training of devices and of the server's copies, or its optimizer.
      split: The device's last stage, see :func:`fedjax_masks.models.cut_model`.
      **training: Fields of the trainer.

    Returns:
      The algorithm. It has a global model and no personal ones.

    Raises:
      UserError: The model cannot be cut there.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4)
      >>> algorithm = fm.splitfed(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1), split="dense1")
      >>> record = fm.simulate(algorithm, task, rounds=1, cohort=3).records[-1]
      >>> record["bytes_up"] - record["bytes_down"]  # three clients' labels, 8 bytes each
      8624
    """
    halves = cut_model(model, split)
    on_server = server_loss(halves)

    def loss(sides: Sides, batch: Batch, key: chex.PRNGKey) -> jax.Array:
        del key
        return on_server(sides.server, halves.activate(sides.device, batch.inputs), batch)

    def on_device(device: Params, batch: Batch) -> tuple[jax.Array, tuple[Params]]:
        activations, pull = jax.vjp(lambda device: halves.activate(device, batch.inputs), device)
        return activations, pull(activations)

    protocol = Protocol(
        loss,
        on_device,
        on_server=jax.grad(on_server, (0, 1)),
        up=lambda activation, logits: (activation, LABEL),
        down=lambda activation, logits: activation,
        messages=2,
    )
    return split_training(model, as_trainer(trainer, training), halves=halves, protocol=protocol)


def server_loss(halves: Halves) -> Callable[[Params, jax.Array, Batch], jax.Array]:
    """The loss of the server's half: ``(server's params, activations, batch) -> float32[]``."""

    def loss(server: Params, activations: jax.Array, batch: Batch) -> jax.Array:
        return mean_cross_entropy(halves.finish(server, activations), batch)

    return loss


def split_training(
    model: Model,
    trainer: Trainer,
    *,
    halves: Halves,
    protocol: Protocol,
    grow: Callable[[chex.PRNGKey, Params], Params] = lambda key, device: device,
) -> FederatedAlgorithm:
    """Split training under any protocol: what SplitFed's relatives are variants of.

    Args:
      model: The model.
      trainer: Training of both halves.
      halves: The model's halves.
      protocol: Rules by which they train on one batch.
      grow: ``(key, device's params) -> device's params``: adds what the protocol needs at the start.
    """

    def init(key: chex.PRNGKey, task: Task) -> State:
        del task
        device, server = halves.divide(model.init(key))
        return State(Sides(grow(jax.random.fold_in(key, 0), device), server))

    def send(round: Round, server: Sides, profile: PyTree) -> Sides:
        del round, profile
        return server._replace(server=AlreadyKnown(server.server))  # its copy trains at the server

    def train(round: Round, message: Sides, client: PyTree, data: ClientData) -> tuple[PyTree, Upload, Info]:
        start = message._replace(server=message.server.tree)
        batch = batch_like(data, trainer.batch_size)
        activations = jax.eval_shape(halves.activate, start.device, batch.inputs)
        logits = jax.eval_shape(halves.finish, start.server, activations)
        on_device = flops.trace(protocol.on_device, start.device, batch)
        on_server = flops.trace(protocol.on_server, start.server, activations, batch)

        def of_device(work: Work) -> Work:
            return work._replace(flops=work.steps * on_device.flops, traffic=work.steps * on_device.traffic)

        sides, info = trainer(round, start, data, protocol.loss, account=of_device)
        one = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in (activations, logits)]
        dialogue = size.dialogue(
            protocol.up(*one),
            protocol.down(*one),
            trainer.epochs * data.size,
            trainer.epochs * len(data.rows),
            messages=trainer.steps(data) * protocol.messages,
            flops=trainer.steps(data) * on_server.flops,
        )
        update = trees.sub(sides, start)
        update = update._replace(server=AlreadyKnown(update.server))  # the server has trained it
        return client, Upload(update, dialogue), info

    def receive(
        round: Round, server: Sides, profile: PyTree, upload: Upload, weight: jax.Array
    ) -> tuple[PyTree, WeightedSum]:
        del round, server
        return profile, weighted(upload.update._replace(server=upload.update.server.tree), weight)

    def merge(round: Round, server: Sides, total: WeightedSum) -> tuple[Sides, None]:
        del round
        return trees.add(server, weighted_mean(total, default=trees.zeros_like(server))), None

    def predict(server: Sides, client: PyTree, x: jax.Array) -> jax.Array:
        del client
        return halves.finish(server.server, halves.activate(server.device, x))

    return FederatedAlgorithm(init, send, train, receive, merge, {"global": predict})
