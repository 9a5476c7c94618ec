"""HeteroFL: every device trains the first channels of the global model, as many as it can afford.

Diao, Ding, Tarokh: "HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous
Clients", ICLR 2021, arXiv 2010.02264, algorithm 1. A client of ratio r trains the model whose hidden layers
have the first ``ceil(r n)`` of their ``n`` outputs: a smaller ordinary model, computed as such. Slices are
nested; each parameter becomes the mean of its owners' (eq. 2 to 4), here weighted by their examples.

The layers of a slice have fewer inputs than their weights were drawn for. The paper's scaler makes up for
it: what a hidden layer of a slice passes on is divided, here by the root of the ratio, which keeps the
variance of fresh weights from layer to layer. The ratio itself, as in the paper, enlarges it; there, batch
normalisation follows and cancels either. Ours has no running statistics, which is the paper's static one.

Under label skew a client trains and sends, of the last layer, only its own classes, and the logits of all
others are 0 in its loss and in its predictions: the paper's masked cross-entropy.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_masks.algorithms import fedavg
from fedjax_masks.algorithms.fedskel import ratio_tiers
from fedjax_masks.communication.payload import Known, Masked
from fedjax_masks.core import training, trees
from fedjax_masks.core.aggregation import WeightedSum
from fedjax_masks.core.algorithm import ClientData, Cohort, FederatedAlgorithm, Metrics, Params, State, Task
from fedjax_masks.core.options import PositiveShare
from fedjax_masks.models import Layer, Model, weighted_kernels

Owned = Any
"""Like the parameters, with a tuple in the place of each array: for each of its axes ``bool[tiers, n]``,
which of the ``n`` indices a tier owns."""


class Client(NamedTuple):
    """A client's state.

    Attributes:
      tier: ``int32[]``.
      classes: ``bool[num_classes]``: those that it has examples of; all until it first takes part.
    """

    tier: jax.Array
    classes: jax.Array


class Server(NamedTuple):
    """The server's state.

    Attributes:
      average: FedAvg's; its model is the widest.
      tiers: ``int32[num_clients]``: every client's tier, as its device announced it.
    """

    average: fedavg.Server
    tiers: jax.Array


class Upload(NamedTuple):
    """What a client sends.

    Attributes:
      update: The update of its slice, in the place that the slice has in the whole model.
      classes: ``bool[num_classes]``: those of which the last layer has an update; known where it is all.
    """

    update: Masked
    classes: jax.Array | Known


class Partial(NamedTuple):
    """Of several uploads.

    Attributes:
      total: Like the parameters: the sum of updates, each times its weight.
      weight: Like the parameters: the sum of their owners' weights.
    """

    total: Params
    weight: Params


def heterofl(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 1,
    batch_size: int = 10,
    ratios: Sequence[PositiveShare] | Literal["devices"] = (1.0, 0.5, 0.25, 0.125, 0.0625),
    capability: np.ndarray | None = None,
    scaler: bool = True,
    own_classes: bool = True,
    server_optimizer: optax.GradientTransformation | None = None,
    augment: training.Augment | None = None,
) -> FederatedAlgorithm:
    """HeteroFL.

    Args:
      model: The widest model.
      optimizer: The clients' optimiser, fresh in every round.
      epochs: Local epochs per round.
      batch_size: Examples per local step.
      ratios: Share of every hidden layer's outputs, in (0, 1]; client ``i`` has
        ``ratios[i % len(ratios)]``. Each is a program of its own. ``"devices"``: as capable as its
        device is, see :func:`~fedjax_masks.algorithms.fedskel.ratios_of`.
      capability: ``float[num_clients]``, in any unit, for ``"devices"``.
      scaler: Whether a slice makes up for its missing channels.
      own_classes: Whether a client leaves the classes alone of which it has no examples.
      server_optimizer: Applied to the negative mean update; None takes the mean itself.
      augment: ``(key, inputs) -> inputs`` on every training batch.

    Returns:
      The algorithm. A client's own model is its slice of the global one, which is the widest.

    Raises:
      UserError: The model has no weighted layers, or the ratios are those of devices, and there are none.
      ValueError: A ratio is out of range.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10, partition="iid")
      >>> algorithm = fm.heterofl(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1), ratios=(0.5,))
      >>> run = fm.simulate(algorithm, task, rounds=2, cohort=3)
      >>> run.records[-1]["bytes_down"]  # of three clients, (64 + 1) * 8 + (8 + 1) * 10 floats each
      7320
    """
    *_, last = weighted_kernels(model)
    ratios, tiers = ratio_tiers(ratios, capability)
    models = [sliced(model, ratio) for ratio in ratios]
    applies = [scaled(m, ratio) if scaler else m.apply for m, ratio in zip(models, ratios)]
    everything = np.ones(last.outputs, bool)
    owned = ownership(model, models)
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def judge(tier: int, classes: jax.typing.ArrayLike) -> Callable[[Params, jax.Array], jax.Array]:
        return lambda params, x: jnp.where(classes, applies[tier](params, x), 0.0)

    def fit(tier: int, classes: jax.typing.ArrayLike) -> training.Fit:
        apply = judge(tier, classes)
        return training.supervised(apply, optimizer, epochs=epochs, batch_size=batch_size, augment=augment)

    average = fedavg.averaging(model, fit(0, everything), server_optimizer=server_optimizer)

    def slice_mask(tier: jax.Array | int, classes: jax.typing.ArrayLike) -> Any:
        """Pytree of bool like the parameters: what a tier owns, of the last layer for some classes."""

        def mask(axes: tuple[np.ndarray, ...]) -> jax.Array:
            along = [jnp.asarray(axis)[tier] for axis in axes]
            return jnp.all(jnp.stack(jnp.meshgrid(*along, indexing="ij")), axis=0)

        whole = jax.tree.map(lambda _, axes: mask(axes), shapes, owned)
        for path in filter(None, (last.path, last.bias)):
            whole = trees.put(whole, path, trees.get(whole, path) & classes)
        return whole

    def init(key: chex.PRNGKey, task: Task) -> State:
        tier_of = jnp.asarray(tiers.of(np.arange(task.num_clients)), jnp.int32)
        classes = trees.replicate(jnp.asarray(everything), task.num_clients)
        return State((), Server(average.init(key, task).server, tier_of), Client(tier_of, classes))

    def send(server: Server, client_id: jax.Array) -> Masked:
        # The client knows its slice: it depends on its tier alone.
        return Masked(server.average.params, slice_mask(server.tiers[client_id], everything))

    def train(
        key: chex.PRNGKey, common: Any, message: Masked, client: Client, data: ClientData
    ) -> tuple[Client, Upload, Metrics]:
        del common
        classes = present(data, last.outputs) if own_classes else client.classes

        def train_slice(params: Params, tier: int) -> tuple[Params, training.LocalMetrics]:
            start = take(params, owned, tier)
            trained, metrics = fit(tier, classes)(key, start, data)
            return put_back(trees.sub(trained, start), shapes, owned, tier), metrics

        branches = [lambda params, t=t: train_slice(params, t) for t in range(len(ratios))]
        update, metrics = jax.lax.switch(data.tier, branches, message.values)
        mask = slice_mask(data.tier, classes)
        share = jnp.asarray(sum(map(jnp.sum, jax.tree.leaves(mask))) / trees.size(shapes))
        # The server knows the slice, by the tier and the classes beside it.
        upload = Upload(Masked(update, mask), classes if own_classes else Known(classes))
        return client._replace(classes=classes), upload, {**metrics._asdict(), "density": share}

    def reduce(upload: Upload, weight: jax.Array) -> Partial:
        values, mask = upload.update
        total = jax.tree.map(lambda value, sent: jnp.where(sent, value, 0) * weight, values, mask)
        return Partial(total, trees.scale(mask, weight))

    def merge(key: chex.PRNGKey, common: Any, server: Server, uploads: Partial, cohort: Cohort) -> Server:
        mean = jax.tree.map(lambda total, weight: total / jnp.where(weight > 0, weight, 1), *uploads)
        anybody = jnp.any(cohort.weight > 0).astype(jnp.float32)
        update = WeightedSum(mean, anybody)
        return server._replace(average=average.merge(key, common, server.average, update, cohort))

    def predict(common: Any, server: Server, client: Client, x: jax.Array) -> jax.Array:
        del common
        branches = [
            lambda params, x, t=t: judge(t, client.classes)(take(params, owned, t), x)
            for t in range(len(ratios))
        ]
        return jax.lax.switch(client.tier, branches, server.average.params, x)

    def predict_global(common: Any, server: Server, x: jax.Array) -> jax.Array:
        del common
        return model.apply(server.average.params, x)

    return FederatedAlgorithm(
        init, send, train, merge, reduce=reduce, predict=predict, predict_global=predict_global, tiers=tiers
    )


def present(data: ClientData, num_classes: int) -> jax.Array:
    """``bool[num_classes]``: the classes that a client has examples of."""
    real = jnp.arange(len(data.rows)) < data.size
    return jnp.zeros(num_classes, bool).at[data.labels[data.rows]].max(real)


def scaled(model: Model, ratio: float) -> Callable[[Params, jax.Array], jax.Array]:
    """``model.apply`` of a slice that makes up for its missing channels.

    Args:
      model: The slice.
      ratio: The share of every hidden layer's outputs that it has.

    Returns:
      ``(params, x) -> logits``: what a hidden layer passes to its normalisation, or to its activation, is
      divided by the root of the ratio.
    """
    last = model.kernels[-1].name

    def hook(layer: Layer, x: jax.Array) -> tuple[jax.Array, None]:
        return (layer(x) if layer.name == last else layer.norm(layer.linear(x) / ratio**0.5)), None

    return lambda params, x: model.forward(params, x, hook=hook)[0]


def sliced(model: Model, ratio: float) -> Model:
    """The same architecture with the share ``ratio`` of every hidden layer's outputs, rounded up."""
    # Without the rounding, 0.1 * 30 would exceed 3.
    *hidden, last = (kernel.outputs for kernel in model.kernels)
    return model.rebuild([*(math.ceil(round(ratio * outputs, 9)) for outputs in hidden), last])


def ownership(model: Model, models: Sequence[Model]) -> Owned:
    """Which part of a model's parameters each of its slices is.

    Args:
      model: The whole model.
      models: Narrower ones of the same architecture, one per tier.

    Returns:
      See :data:`Owned`.
    """
    pixels = {
        model.kernels[kernel.successor].path: kernel.repeats
        for kernel in model.kernels
        if kernel.successor is not None
    }
    whole, *narrow = (jax.eval_shape(m.init, jax.random.key(0)) for m in (model, *models))

    def axes(path: Any, leaf: Any, *parts: Any) -> tuple[np.ndarray, ...]:
        def axis(index: int) -> np.ndarray:
            # Behind a flattened image, every channel feeds one row per pixel: row p * channels + c.
            is_input = index == len(leaf.shape) - 2
            copies = pixels.get(tuple(entry.key for entry in path), 1) if is_input else 1
            channel = np.arange(leaf.shape[index]) % (leaf.shape[index] // copies)
            return np.stack([channel < part.shape[index] // copies for part in parts])

        return tuple(map(axis, range(len(leaf.shape))))

    return jax.tree_util.tree_map_with_path(axes, whole, *narrow)


def take(params: Params, owned: Owned, tier: int) -> Params:
    """A tier's slice of the parameters, as its model has them."""
    return jax.tree.map(lambda leaf, axes: leaf[_places(axes, tier)], params, owned)


def put_back(part: Params, shapes: Params, owned: Owned, tier: int) -> Params:
    """Values of a slice, at their places in the whole model, among zeros."""
    return jax.tree.map(
        lambda leaf, values, axes: jnp.zeros(leaf.shape, values.dtype).at[_places(axes, tier)].set(values),
        shapes,
        part,
        owned,
    )


def _places(axes: tuple[np.ndarray, ...], tier: int) -> Any:
    return np.ix_(*(np.flatnonzero(axis[tier]) for axis in axes))
