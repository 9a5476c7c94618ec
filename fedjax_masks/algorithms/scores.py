"""Binary masks of frozen weights, trained by real scores: first scores, loss and metrics, for FedMask."""

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.core import trees
from fedjax_masks.core.masks import (
    Gradient,
    binarize,
    binarize_straight_through,
    density,
    group_norms,
    mask_params,
)
from fedjax_masks.core.minibatches import Batch
from fedjax_masks.core.training import Loss, cross_entropy
from fedjax_masks.core.types import Params
from fedjax_masks.models import Model

Mask = dict[str, jax.Array]
"""Bool arrays by layer, shaped like the kernels, or of size 1 along axes where they do not vary."""

Scores = dict[str, jax.Array]
"""Float32 arrays by layer, shaped like the kernels."""

_HARD_MASKS = {"sigmoid": binarize, "straight_through": binarize_straight_through}


def scale_kernels(
    params: Params, layers: Mapping[str, tuple[str, ...]], *, constant: bool, scale: float
) -> Params:
    """Scales a model's kernels, which are then frozen.

    Args:
      params: The model's parameters.
      layers: The paths of its kernels.
      constant: Whether a kernel is replaced by its signs times ``sqrt(2 / fan_in)`` first.
      scale: The factor.
    """
    for path in layers.values():
        kernel = trees.get(params, path)
        if constant:
            fan_in = kernel.size // kernel.shape[-1]
            kernel = jnp.where(kernel < 0, -1, jnp.ones_like(kernel)) * (2.0 / fan_in) ** 0.5
        params = trees.put(params, path, kernel * scale)
    return params


def first_scores(bits: Mask, scale: float, old: Scores | None = None) -> Scores:
    """The scores that training starts from: ``+-scale`` by the bit, or an old score that agrees with it.

    >>> bits = {"layer": jnp.array([True, True, False])}
    >>> first_scores(bits, 1.0, {"layer": jnp.array([0.25, -0.25, 0.25])})["layer"].tolist()
    [0.25, 1.0, -1.0]
    """
    magnitude = jnp.asarray(scale, jnp.float32)
    scores = {name: jnp.where(bit, magnitude, -magnitude) for name, bit in bits.items()}
    agreeing = {name: jnp.where((r > 0) == bits[name], r, scores[name]) for name, r in (old or {}).items()}
    return {**scores, **agreeing}


def score_loss(
    model: Model,
    weights: Params,
    structure: Mask,
    *,
    soft: bool,
    gradient: Gradient,
    sparsity: float,
) -> Loss:
    """The loss of scores: the cross-entropy of the masked model, and the regularizer of eq. 10.

    Args:
      model: The architecture.
      weights: The frozen parameters.
      structure: The device's structure.
      soft: Whether the mask is ``sigmoid(scores)``, else ``[sigmoid(scores) > 0.5]``.
      gradient: The derivative of the hard mask.
      sparsity: Factor of the regularizer.
    """
    to_mask = jax.nn.sigmoid if soft else _HARD_MASKS[gradient]

    def masks(scores: Scores, to_mask: Callable[[jax.Array], jax.Array]) -> dict[str, jax.Array]:
        return {name: to_mask(r) * structure[name] for name, r in scores.items()}

    def apply(scores: Scores, x: jax.Array) -> jax.Array:
        return model.apply(mask_params(model.kernels, weights, masks(scores, to_mask)), x)

    data_loss = cross_entropy(apply)

    def loss(scores: Scores, batch: Batch, key: chex.PRNGKey) -> jax.Array:
        value = data_loss(scores, batch, key)
        if not sparsity:
            return value
        norms = [group_norms(mask) for mask in masks(scores, jax.nn.sigmoid).values()]
        return value + sparsity * sum(norms)

    return loss


def mask_metrics(before: Mask, value: Mask, structure: Mask) -> dict[str, jax.Array]:
    """The share of bits that training has flipped, and the density of the mask and of each layer.

    Args:
      before: The bits before training.
      value: The bits after training.
      structure: False where pruned; pruned bits do not count as bits that could flip.
    """
    flips = [jnp.sum(value[n] != before[n], dtype=jnp.int32) for n in value]
    alive = [jnp.sum(jnp.broadcast_to(structure[n], value[n].shape), dtype=jnp.int32) for n in value]
    return {
        "flip_fraction": jnp.sum(jnp.stack(flips)) / jnp.sum(jnp.stack(alive)),
        "density": density(value),
        **{f"density/{name}": jnp.mean(bit, dtype=jnp.float32) for name, bit in value.items()},
    }
