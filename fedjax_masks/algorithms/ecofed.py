"""EcoFed: devices run the first layers, frozen; a server trains the rest on what it has cached.

Wu et al. 2024, arXiv 2304.05495. The device's part is pre-trained and never moves, so no
gradient comes down and no weights travel. Every ``period``-th round the cohort sends the activations
of all its examples, 8 bits each; the server keeps them, by client, and in the rounds between it
replays clients of earlier cohorts; of one that was lost then it has nothing, and skips it. It trains a
private copy of its part on each client's activations and averages the copies. Where activations can be
negative, the quantiser's scale is of their magnitude.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_masks.communication.payload import Known, Masked, When
from fedjax_masks.core import flops, training, trees
from fedjax_masks.core.aggregation import WeightedSum, weighted, weighted_mean
from fedjax_masks.core.algorithm import (
    ClientData,
    Cohort,
    Draw,
    FederatedAlgorithm,
    Metrics,
    Params,
    State,
    Task,
)
from fedjax_masks.core.masks import prune
from fedjax_masks.core.options import Count
from fedjax_masks.models import Model, cut_model

_LEVELS = 127


class Activations(NamedTuple):
    """What a device makes of its examples, in batches; without quantisation, the scale is 1.

    Attributes:
      values: int8 or float32 ``[batches, batch, *shape]``: in units of the scale.
      scale: ``float32[batches]``.
      labels: ``int32[batches, batch, 2]``: as the authors' code sends them, integers of 64 bits,
        low word first.
    """

    values: jax.Array
    scale: jax.Array
    labels: jax.Array


class Server(NamedTuple):
    """The server's state.

    Attributes:
      params: The parameters behind the split.
      round: ``int32[]``.
      loss: ``float32[]``: mean training loss over the last round's examples.
      flops: ``float32[]``: FLOPs of the last round's training.
    """

    params: Params
    round: jax.Array
    loss: jax.Array
    flops: jax.Array


class Kept(NamedTuple):
    """What the server keeps of a client, for replays.

    Attributes:
      activations: What came last.
      size: ``int32[]``: of how many examples; 0 before anything came.
    """

    activations: Activations
    size: jax.Array


class Copies(NamedTuple):
    """The sum over some of the server's copies.

    Attributes:
      params: Their parameters, each copy of weight 1.
      loss: ``float32[]``: losses of all examples.
      examples: ``float32[]``.
      flops: ``float32[]``.
    """

    params: WeightedSum
    loss: jax.Array
    examples: jax.Array
    flops: jax.Array


def ecofed(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 1,
    batch_size: int = 10,
    split: str | None = None,
    period: Count = 2,
    quantized: bool = True,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """EcoFed.

    Args:
      model: The model, to be cut in two. Its device's part should be trained already: see
        :func:`fedjax_masks.experiment.pretraining.start_from`.
      optimizer: Of the server's copies, fresh in every round.
      epochs: The server's passes over a client's activations, per round.
      batch_size: Examples per step and per scale.
      split: The device's last stage, one of ``model.splits``; None is the second, or the first of
        a model that has no other.
      period: Every how many rounds devices send activations, from round 0 on; the paper's rho.
      quantized: Whether activations are sent in 8 bits, else in 32.
      augment: ``(key, inputs) -> inputs`` on every batch that a device reads.

    Returns:
      The algorithm. It has a global model and no personal ones.

    Raises:
      UserError: The model cannot be cut there.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10)
      >>> algorithm = fm.ecofed(fm.models.cnn(task), optax.sgd(0.1), split="conv1")
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3, eval_every=1)
      >>> [record["bytes_up"] > 0 for record in run.records]  # activations, then a replay
      [True, False]
    """
    _, apart, activate, finish = cut_model(model, split)

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
        nothing = jnp.zeros((), jnp.float32)
        kept = trees.replicate(Kept(none, jnp.int32(0)), task.num_clients)
        return State(device, Server(params, jnp.int32(0), nothing, nothing), (), kept)

    def send(server: Server, client_id: jax.Array) -> Known:
        del client_id
        return Known(server.round % period == 0)  # devices count the rounds

    def train(
        key: chex.PRNGKey, common: Params, message: Known, client: Any, data: ClientData
    ) -> tuple[Any, When, Metrics]:
        rows = training.shuffled_rows(jax.random.fold_in(key, 0), data, batch_size).reshape(-1, batch_size)
        real = (jnp.arange(rows.size) < data.size).reshape(rows.shape)

        def look(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            inputs = data.inputs[rows[index]]
            if augment is not None:
                inputs = augment(jax.random.fold_in(jax.random.fold_in(key, 1), index), inputs)
            values = activate(common, inputs)
            return quantize(values, real[index]) if quantized else (values, jnp.float32(1))

        counted = flops.trace(look, jnp.int32(0))
        labels = jnp.stack([data.labels[rows], jnp.zeros_like(rows)], -1)

        def activations() -> Activations:
            values, scale = jax.lax.map(counted.call, jnp.arange(len(rows), dtype=jnp.int32))
            return Activations(values, scale, labels)

        fresh = message.tree
        shapes = jax.eval_shape(activations)
        sent = jax.lax.cond(fresh, activations, lambda: trees.zeros_like(shapes))
        mask = Activations(
            real.reshape(*real.shape, *(1,) * (sent.values.ndim - 2)), real.any(1), real[..., None]
        )
        batches = -(-data.size // batch_size)
        metrics = {
            "examples": jnp.where(fresh, data.size, 0).astype(jnp.float32),
            "slots": jnp.where(fresh, rows.size, 0).astype(jnp.float32),
            "flops": jnp.where(fresh, batches * counted.flops, 0).astype(jnp.float32),
            "traffic": jnp.where(fresh, batches * counted.traffic, 0).astype(jnp.float32),
        }
        # The server knows how many examples each client has: it weighs clients by them.
        return client, When(fresh, Masked(sent, mask)), metrics

    def serve(
        key: chex.PRNGKey, common: Params, server: Server, kept: Kept, upload: When
    ) -> tuple[Kept, Copies]:
        """Trains a copy of the server's part on one client's activations, those that came or those kept."""
        del common
        values, mask = upload.tree
        room = kept.activations.scale.shape[0]  # a device may lay its examples out in more batches
        news = jax.tree.map(lambda a: a[:room], prune(values, mask))
        kept = trees.where(upload.flag, Kept(news, jnp.sum(mask.labels, dtype=jnp.int32)), kept)
        values, scale, labels = kept.activations
        places = jnp.arange(room * batch_size)
        data = ClientData(places, labels[..., 0].ravel(), places, kept.size, kept.size, jnp.int32(0))

        def loss(params: Params, batch: training.Batch) -> jax.Array:
            at = jnp.divmod(batch.inputs, batch_size)
            scales = scale[at[0]].reshape(-1, *(1,) * (values.ndim - 2))
            return training.mean_cross_entropy(finish(params, values[at] * scales), batch)

        params, metrics = training.train(
            key,
            server.params,
            data,
            loss=loss,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            order=_stored_order,
        )
        copy = weighted(params, (kept.size > 0).astype(jnp.float32))
        return kept, Copies(copy, metrics.loss * metrics.examples, metrics.examples, metrics.flops)

    def reduce(copy: Copies, weight: jax.Array) -> Copies:
        del weight  # zeros are all that is left of a client that counts for nothing
        return copy

    def merge(key: chex.PRNGKey, common: Params, server: Server, copies: Copies, cohort: Cohort) -> Server:
        del key, common, cohort
        params = weighted_mean(copies.params, default=server.params)
        loss = copies.loss / jnp.maximum(copies.examples, 1)
        return Server(params, server.round + 1, loss, copies.flops)

    def select(index: int, draw: Draw) -> np.ndarray:
        if index % period == 0:
            return draw(index)
        return draw(index, np.unique([draw(earlier) for earlier in range(0, index, period)]))

    def predict_global(common: Params, server: Server, x: jax.Array) -> jax.Array:
        return finish(server.params, activate(common, x))

    def report(server: Server) -> Metrics:
        return {"loss": server.loss, "flops": server.flops}

    return FederatedAlgorithm(
        init,
        send,
        train,
        merge,
        serve=serve,
        reduce=reduce,
        predict_global=predict_global,
        select=select,
        report=report,
    )


def quantize(values: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A batch in 8 bits: symmetric, with one scale, no value off by more than half of it.

    Args:
      values: ``float32[batch, *shape]``.
      real: ``bool[batch]``: whose magnitude counts; False for padding.

    Returns:
      ``int8`` codes of the same shape, -127 to 127, and the scale, ``float32[]``.

    >>> codes, scale = quantize(jnp.array([[-1.0, 0.5], [0.0, 9.0]]), jnp.array([True, False]))
    >>> codes[0].tolist(), round(127 * float(scale), 6)
    ([-127, 64], 1.0)
    """
    real = real.reshape(-1, *(1,) * (values.ndim - 1))
    largest = jnp.max(jnp.where(real, jnp.abs(values), 0))
    scale = jnp.where(largest == 0, 1, largest) / _LEVELS  # NaN stays NaN, and is noticed
    return jnp.clip(jnp.round(values / scale), -_LEVELS, _LEVELS).astype(jnp.int8), scale


def _stored_order(key: chex.PRNGKey, data: ClientData, batch_size: int) -> jax.Array:
    """The rows as they came; what was not sent is not read: padding repeats what was."""
    del key, batch_size
    return data.rows % jnp.maximum(data.size, 1)
