"""Slices of a model: the same architecture with fewer outputs in every hidden layer."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core import trees
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.models.layers import Layer
from fedjax_masks.models.model import Model

Slices = PyTree
"""Like the parameters, with a tuple in the place of each array: for each of its axes ``bool[tiers, n]``,
the indices, among ``n``, that a tier owns."""


def scaled(model: Model, ratio: float) -> Callable[[Params, jax.Array], jax.Array]:
    """``model.apply`` of a slice that makes up for its missing channels.

    Args:
      model: The slice.
      ratio: The share of every hidden layer's outputs that it has.

    Returns:
      ``(params, x) -> logits``: the output of a hidden layer, before normalisation and activation, is
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


def ownership(model: Model, models: Sequence[Model]) -> Slices:
    """The parts of a model's parameters that its slices have.

    Args:
      model: The whole model.
      models: Narrower ones of the same architecture, one per tier.

    Returns:
      See :data:`Slices`.
    """
    pixels = {
        model.kernels[kernel.successor].path: kernel.repeats
        for kernel in model.kernels
        if kernel.successor is not None
    }
    whole, *narrow = (jax.eval_shape(m.init, jax.random.key(0)) for m in (model, *models))

    def axes(path: PyTree, leaf: PyTree, *parts: PyTree) -> tuple[np.ndarray, ...]:
        def axis(index: int) -> np.ndarray:
            # Behind a flattened image, every channel feeds one row per pixel: row p * channels + c.
            is_input = index == len(leaf.shape) - 2
            copies = pixels.get(tuple(entry.key for entry in path), 1) if is_input else 1
            channel = np.arange(leaf.shape[index]) % (leaf.shape[index] // copies)
            return np.stack([channel < part.shape[index] // copies for part in parts])

        return tuple(map(axis, range(len(leaf.shape))))

    return jax.tree_util.tree_map_with_path(axes, whole, *narrow)


def take(params: Params, slices: Slices, tier: int) -> Params:
    """A tier's slice of the parameters, as its model has them."""
    return jax.tree.map(lambda leaf, axes: leaf[_places(axes, tier)], params, slices)


def put_back(part: Params, shapes: Params, slices: Slices, tier: int) -> Params:
    """Values of a slice, at their places in the whole model, among zeros."""
    return jax.tree.map(
        lambda leaf, values, axes: jnp.zeros(leaf.shape, values.dtype).at[_places(axes, tier)].set(values),
        shapes,
        part,
        slices,
    )


def _places(axes: tuple[np.ndarray, ...], tier: int) -> tuple[np.ndarray, ...]:
    return np.ix_(*(np.flatnonzero(axis[tier]) for axis in axes))


def slice_mask(model: Model, slices: Slices, tier: jax.Array, classes: jax.typing.ArrayLike) -> PyTree:
    """Pytree of bool like the parameters: True in a tier's slice, in the last layer for some classes.

    Args:
      model: The whole model.
      slices: See :data:`Slices`.
      tier: ``int32[]``.
      classes: ``bool[num_classes]``.
    """

    def outer(axes: tuple[np.ndarray, ...]) -> jax.Array:
        along = [jnp.asarray(axis)[tier] for axis in axes]
        return jnp.all(jnp.stack(jnp.meshgrid(*along, indexing="ij")), axis=0)

    mask = jax.tree.map(outer, slices, is_leaf=lambda node: isinstance(node, tuple))
    for path in filter(None, (model.kernels[-1].path, model.kernels[-1].bias)):
        mask = trees.put(mask, path, trees.get(mask, path) & classes)
    return mask
