"""SplitFed: devices train the first layers, a server the rest, and they talk over every batch.

Thapa, Arachchige, Camtepe, Sun 2022, arXiv 2004.12088, version 1. For every batch a device sends its
activations and labels, and gets the gradient of the activations. The server trains a private copy of
its half beside each device; both halves are averaged at the end of the round, weighted by the
number of examples, so that the result is FedAvg's. The copy trains inside ``train``; of what device
and server say to each other there the size is left, :class:`fedjax_masks.communication.payload.Passed`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.communication.payload import Known, Passed, messages
from fedjax_masks.core import flops, training, trees
from fedjax_masks.core.aggregation import WeightedSum, weighted, weighted_mean
from fedjax_masks.core.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, Params, State, Task
from fedjax_masks.models import Halves, Model, cut_model

LABEL = jax.ShapeDtypeStruct((2,), jnp.int32)
"""A label on the wire: an integer of 64 bits, as in the code of EcoFed's authors."""


class Sides(NamedTuple):
    """Parameters by who trains them.

    Attributes:
      device: They travel at the beginning and the end of a round.
      server: The server's half. On the wire it is Known, as it never leaves the server.
    """

    device: Params
    server: Any


class Upload(NamedTuple):
    """What is left of a client's round.

    Attributes:
      update: Of both sides.
      passed: The size of all that was said in between.
    """

    update: Sides
    passed: Passed


class Protocol(NamedTuple):
    """How a device and the server train on one batch.

    Attributes:
      loss: ``(sides, batch) -> float32[]``: its gradient moves both sides.
      on_device: ``(device's params, batch) -> anything``: what the device computes per step.
      on_server: ``(server's params, activations, batch) -> anything``: what the server does.
      up: ``(activation, logits) -> payload`` per example, all of them shapes and dtypes.
      down: The same, towards the device.
      messages: How many messages that takes per batch.
    """

    loss: Callable[[Sides, training.Batch], jax.Array]
    on_device: Callable[[Params, training.Batch], Any]
    on_server: Callable[[Params, jax.Array, training.Batch], Any]
    up: Callable[[Any, Any], Any]
    down: Callable[[Any, Any], Any]
    messages: int


def splitfed(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 1,
    batch_size: int = 10,
    split: str | None = None,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """SplitFed, version 1.

    Args:
      model: The model, to be cut in two.
      optimizer: Of devices and of the server's copies, fresh in every round.
      epochs: Local epochs per round.
      batch_size: Examples per step.
      split: The device's last stage, see :func:`fedjax_masks.models.cut_model`.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. It has a global model and no personal ones.

    Raises:
      UserError: The model cannot be cut there.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10)
      >>> algorithm = fm.splitfed(fm.models.cnn(task), optax.sgd(0.1), split="conv1")
      >>> record = fm.simulate(algorithm, task, rounds=1, cohort=3).records[-1]
      >>> record["bytes_up"] - record["bytes_down"]  # three clients' labels, 8 bytes each
      3448
    """
    halves = cut_model(model, split)

    def answer(server: Params, activations: jax.Array, batch: training.Batch) -> jax.Array:
        return training.mean_cross_entropy(halves.finish(server, activations), batch)

    def loss(sides: Sides, batch: training.Batch) -> jax.Array:
        return answer(sides.server, halves.activate(sides.device, batch.inputs), batch)

    def on_device(device: Params, batch: training.Batch) -> Any:
        activations, pull = jax.vjp(lambda device: halves.activate(device, batch.inputs), device)
        return activations, pull(activations)

    protocol = Protocol(
        loss,
        on_device,
        on_server=jax.grad(answer, (0, 1)),
        up=lambda activation, logits: (activation, LABEL),
        down=lambda activation, logits: activation,
        messages=2,
    )
    return split_training(model, halves, optimizer, protocol, epochs, batch_size, augment)


def split_training(
    model: Model,
    halves: Halves,
    optimizer: optax.GradientTransformation,
    protocol: Protocol,
    epochs: int,
    batch_size: int,
    augment: training.Augment | None,
    grow: Callable[[chex.PRNGKey, Params], Params] = lambda key, device: device,
) -> FederatedAlgorithm:
    """Split training under any protocol: what SplitFed's relatives are variants of.

    Args:
      model: The model.
      halves: Its halves.
      optimizer: Of both sides.
      protocol: How they train on one batch.
      epochs: Local epochs.
      batch_size: Examples per step.
      augment: On every batch.
      grow: ``(key, device's params) -> device's params``: adds what the protocol needs at the start.
    """

    def init(key: chex.PRNGKey, task: Task) -> State:
        del task
        device, server = halves.apart(model.init(key))
        return State((), Sides(grow(jax.random.fold_in(key, 0), device), server), ())

    def send(server: Sides, client_id: jax.Array) -> Sides:
        del client_id
        return server._replace(server=Known(server.server))  # it meets its copy at the server

    def train(
        key: chex.PRNGKey, common: Any, message: Sides, client: Any, data: ClientData
    ) -> tuple[Any, Upload, Metrics]:
        del common
        start = message._replace(server=message.server.tree)
        batch = training.batch_like(data, batch_size)
        activations = jax.eval_shape(halves.activate, start.device, batch.inputs)
        logits = jax.eval_shape(halves.finish, start.server, activations)
        one = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in (activations, logits)]
        at_most = epochs * len(data.rows)
        passed = messages(protocol.up(*one), protocol.down(*one), epochs * data.size, at_most)
        on_device = flops.trace(protocol.on_device, start.device, batch)
        on_server = flops.trace(protocol.on_server, start.server, activations, batch)

        def on_client(metrics: training.LocalMetrics) -> training.LocalMetrics:
            costs = {"flops": on_device.flops, "traffic": on_device.traffic}
            return metrics._replace(**{name: metrics.steps * cost for name, cost in costs.items()})

        sides, metrics = training.train(
            key,
            start,
            data,
            loss=protocol.loss,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            augment=augment,
            account=on_client,
        )
        per_step = {"server_flops": on_server.flops, "messages": float(protocol.messages)}
        costs = {name: metrics.steps * cost for name, cost in per_step.items()}
        update = trees.sub(sides, start)
        update = update._replace(server=Known(update.server))  # which is where it is
        return client, Upload(update, passed), metrics._asdict() | costs

    def reduce(upload: Upload, weight: jax.Array) -> WeightedSum:
        return weighted(upload.update._replace(server=upload.update.server.tree), weight)

    def merge(key: chex.PRNGKey, common: Any, server: Sides, uploads: WeightedSum, cohort: Cohort) -> Sides:
        del key, common, cohort
        return trees.add(server, weighted_mean(uploads, default=trees.zeros_like(server)))

    def predict_global(common: Any, server: Sides, x: jax.Array) -> jax.Array:
        del common
        return halves.finish(server.server, halves.activate(server.device, x))

    return FederatedAlgorithm(init, send, train, merge, reduce=reduce, predict_global=predict_global)
