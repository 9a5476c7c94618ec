"""FedSkel's two kinds of local training: of the whole model, which finds a skeleton, and of a skeleton."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.core.algorithm import ClientData, Info, Round
from fedjax_masks.core.masks import filter_mask, top_count
from fedjax_masks.core.minibatches import Batch
from fedjax_masks.core.training import Trainer, mean_cross_entropy
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models import Kernel, Layer, Model

Skeleton = dict[str, jax.Array]
"""``bool[outputs]`` by layer."""

Training = Callable[[Round, Params, ClientData, Skeleton], tuple[Params, Info, Skeleton]]
"""``(round, params, data, skeleton) -> (params, info, skeleton)``: one client's training in a round."""


def keep_count(outputs: int, ratio: float) -> int:
    """The number of filters in a layer's skeleton: ``n - floor((1 - ratio) n)``, at least 1.

    >>> [keep_count(20, r) for r in (1.0, 0.5, 0.1, 0.01)]
    [20, 10, 2, 1]
    """
    # Without the rounding, (1 - 0.1) * 20 could fall just short of 18.
    return max(1, outputs - math.floor(round((1 - ratio) * outputs, 9)))


_CHANCE = 0x6E657572  # far from the numbers of epochs, which are folded into the same key


def train_whole(
    model: Model, trainer: Trainer, counts: Sequence[Mapping[str, int]], by_chance: Iterable[str] = ()
) -> Training:
    """Training of the whole model, after which the most active filters are the skeleton.

    Args:
      model: The model.
      trainer: Local training.
      counts: For each tier, the number of filters in each layer's skeleton.
      by_chance: The layers whose skeletons are drawn at random instead.
    """
    names, drawn = counts[0], tuple(by_chance)

    def loss(params: Params, batch: Batch, key: chex.PRNGKey) -> tuple[jax.Array, dict[str, jax.Array]]:
        del key

        def hook(layer: Layer, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = layer.linear(x)
            real = batch.real.reshape(-1, *(1,) * (y.ndim - 1))
            activity = jnp.sum(jnp.where(real, jnp.abs(y), 0), range(y.ndim - 1))
            return layer.norm(y), jax.lax.stop_gradient(activity)

        logits, activity = model.forward(params, batch.inputs, hook=hook)
        return mean_cross_entropy(logits, batch), {name: activity[name] for name in names}

    def train(
        round: Round, params: Params, data: ClientData, skeleton: Skeleton
    ) -> tuple[Params, Info, Skeleton]:
        del skeleton
        params, info, activity = trainer.summing(round, params, data, loss)
        keys = jax.random.split(jax.random.fold_in(round.key, _CHANCE), len(drawn))
        activity = activity | {n: jax.random.uniform(key, activity[n].shape) for n, key in zip(drawn, keys)}
        numbers = {name: jnp.array([tier[name] for tier in counts])[data.tier] for name in names}
        return params, info, {name: top_count(activity[name], numbers[name]) for name in names}

    return train


def train_skeleton(
    model: Model, trainer: Trainer, kernels: Iterable[Kernel], counts: Mapping[str, int]
) -> Training:
    """Training of the skeleton, in one tier; only the skeleton has gradients.

    Args:
      model: The model.
      trainer: Local training.
      kernels: The layers that have skeletons.
      counts: The number of filters in each layer's skeleton.
    """

    def train(
        round: Round, params: Params, data: ClientData, skeleton: Skeleton
    ) -> tuple[Params, Info, Skeleton]:
        indices = {name: jnp.nonzero(mask, size=counts[name])[0] for name, mask in skeleton.items()}

        def hook(layer: Layer, x: jax.Array) -> tuple[jax.Array, None]:
            return layer(x, indices.get(layer.name)), None

        def loss(params: Params, batch: Batch, key: chex.PRNGKey) -> jax.Array:
            del key
            return mean_cross_entropy(model.forward(params, batch.inputs, hook=hook)[0], batch)

        mask = skeleton_mask(kernels, params, skeleton)
        return *trainer(round, params, data, loss, update_mask=mask), skeleton

    return train


def skeleton_mask(kernels: Iterable[Kernel], params: Params, skeleton: Skeleton) -> PyTree:
    """Pytree of bool like the parameters, with axes of size 1: False outside a skeleton.

    Args:
      kernels: The layers that have skeletons.
      params: The model's parameters, for their shapes.
      skeleton: The skeleton.
    """
    return filter_mask(kernels, params, skeleton, lambda kernel: filter(None, (kernel.path, kernel.bias)))
