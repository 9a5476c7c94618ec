"""EcoFed: devices run the first layers, frozen; a server trains the rest on what it has cached.

Wu et al. 2024, arXiv 2304.05495. The device's part is pre-trained and never moves, so no
gradient comes down and no weights travel. Every ``period``-th round the cohort sends the activations
of all its examples, 8 bits each; the server keeps them, by client, and in the rounds between it
replays clients that it has kept. It trains a private copy of its part on each client's activations
and averages the copies. Where activations can be negative, the quantiser's scale is of their
magnitude.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks import flops, local, trees
from fedjax_masks.aggregation import noted
from fedjax_masks.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, Params, State, Task
from fedjax_masks.masks import prune
from fedjax_masks.models import Model, cut_model
from fedjax_masks.payload import Known, Masked, When
from fedjax_masks.values import Count

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
      cached: Activations by client: every leaf ``[num_clients, ...]``.
      sizes: ``int32[num_clients]``: how many examples are cached; 0 where none ever came.
      round: ``int32[]``.
      loss: ``float32[]``: mean training loss over the last round's examples.
      flops: ``float32[]``: FLOPs of the last round's training.
    """

    params: Params
    cached: Activations
    sizes: jax.Array
    round: jax.Array
    loss: jax.Array
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
    copies: Count = 1,
    augment: local.Augment | None = None,
) -> FederatedAlgorithm:
    """EcoFed.

    Args:
      model: The model, to be cut in two. Its device's part should be trained already: see
        :func:`fedjax_masks.pretraining.start_from`.
      optimizer: Of the server's copies, fresh in every round.
      epochs: The server's passes over a client's activations, per round.
      batch_size: Examples per step and per scale.
      split: The device's last stage, one of ``model.splits``; None is the second, or the first of
        a model that has no other.
      period: Every how many rounds devices send activations, from round 0 on; the paper's rho.
      quantized: Whether activations are sent in 8 bits, else in 32.
      copies: How many of the server's copies train in step: more use an accelerator better, and each
        takes the memory of its own training.
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
        cached = Activations(
            jnp.zeros((batches, *shape), jnp.int8 if quantized else jnp.float32),
            jnp.zeros(batches),
            jnp.zeros((batches, batch_size, 2), jnp.int32),
        )
        nothing = jnp.zeros(())
        sizes = jnp.zeros(task.num_clients, jnp.int32)
        cached = trees.replicate(cached, task.num_clients)
        return State(device, Server(params, cached, sizes, jnp.int32(0), nothing, nothing), ())

    def send(server: Server, client_id: jax.Array) -> Known:
        del client_id
        return Known(server.round % period == 0)  # devices count the rounds

    def train(
        key: chex.PRNGKey, common: Params, message: Known, client: Any, data: ClientData
    ) -> tuple[Any, When, Metrics]:
        rows = local.shuffled_rows(jax.random.fold_in(key, 0), data, batch_size).reshape(-1, batch_size)
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
            values, scale = jax.lax.map(counted.call, jnp.arange(len(rows)))
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

    def fit(key: chex.PRNGKey, server: Server, client: jax.Array) -> tuple[Params, local.LocalMetrics]:
        """Trains a copy of the server's part on one client's cached activations."""
        values, scale, labels = jax.tree.map(lambda leaf: leaf[client], server.cached)
        places = jnp.arange(labels.shape[0] * batch_size)
        size = server.sizes[client]
        data = ClientData(places, labels[..., 0].ravel(), places, size, size, jnp.int32(0))

        def loss(params: Params, batch: local.Batch) -> jax.Array:
            at = jnp.divmod(batch.inputs, batch_size)
            scales = scale[at[0]].reshape(-1, *(1,) * (values.ndim - 2))
            return local.mean_cross_entropy(finish(params, values[at] * scales), batch)

        return local.train(
            key,
            server.params,
            data,
            loss=loss,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            order=_stored_order,
        )

    def merge(key: chex.PRNGKey, common: Params, server: Server, uploads: When, cohort: Cohort) -> Server:
        del common
        draw_key, fit_key = jax.random.split(key)
        fresh, arrived = server.round % period == 0, cohort.weight > 0
        room = server.cached.scale.shape[1]  # a device may lay its examples out in more batches
        sent = jax.tree.map(lambda a: a[:, :room], prune(uploads.tree.values, uploads.tree.mask))
        news = sent, cohort.weight.astype(jnp.int32)
        cached, sizes = noted((server.cached, server.sizes), news, cohort.ids, fresh & arrived)
        server = server._replace(cached=cached, sizes=sizes, round=server.round + 1)
        drawn = draw(draw_key, sizes > 0, len(cohort.ids))
        wanted = (jnp.arange(len(cohort.ids)) < jnp.sum(arrived)) & (sizes[drawn] > 0)
        clients, takes_part = jnp.where(fresh, cohort.ids, drawn), jnp.where(fresh, arrived, wanted)

        def one(index: jax.Array) -> Any:
            client = clients.at[index].get(mode="clip")

            def copy() -> Any:
                params, metrics = fit(jax.random.fold_in(fit_key, client), server, client)
                return (
                    params,
                    jnp.float32(1),
                    metrics.loss * metrics.examples,
                    metrics.examples,
                    metrics.flops,
                )

            there = takes_part.at[index].get(mode="fill", fill_value=False)
            return jax.lax.cond(there, copy, lambda: nobody)

        def block(number: jax.Array, sums: Any) -> Any:
            parts = jax.lax.map(one, number * copies + jnp.arange(copies), batch_size=copies)
            return trees.add(sums, jax.tree.map(lambda a: a.sum(0), parts))

        nothing = jnp.zeros(())
        nobody = (trees.zeros_like(server.params), nothing, nothing, nothing, nothing)
        total, number, loss, examples, spent = jax.lax.fori_loop(0, -(-len(clients) // copies), block, nobody)
        mean = trees.scale(total, 1 / jnp.maximum(number, 1))
        return server._replace(
            params=trees.where(number > 0, mean, server.params),
            loss=loss / jnp.maximum(examples, 1),
            flops=spent,
        )

    def predict_global(common: Params, server: Server, x: jax.Array) -> jax.Array:
        return finish(server.params, activate(common, x))

    def report(server: Server) -> Metrics:
        return {"loss": server.loss, "flops": server.flops}

    return FederatedAlgorithm(init, send, train, merge, predict_global=predict_global, report=report)


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


def draw(key: chex.PRNGKey, among: jax.Array, num: int) -> jax.Array:
    """``num`` numbers of elements, in random order, without repetition; those under True come first.

    >>> draw(jax.random.key(0), jnp.array([False, True, False, True]), 2).sort().tolist()
    [1, 3]
    """
    order = jnp.argsort(jnp.where(among, jax.random.uniform(key, among.shape), 2.0))
    return order[jnp.minimum(jnp.arange(num), len(among) - 1)]


def _stored_order(key: chex.PRNGKey, data: ClientData, batch_size: int) -> jax.Array:
    """The rows as they came; what was not sent is not read: padding repeats what was."""
    del key, batch_size
    return data.rows % jnp.maximum(data.size, 1)
