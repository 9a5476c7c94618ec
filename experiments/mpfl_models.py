"""The models of ``mpfl_sparsity.py``, their local optimizer, their masks and their pruned forms."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_masks as fm
from fedjax_masks.algorithms.consensus import filter_norms, keep_largest
from fedjax_masks.algorithms.masked_fedavg import survivors
from fedjax_masks.core.masks import prune
from fedjax_masks.models import Model, Problem
from fedjax_masks.models.compaction import compact

BATCH = 20

# The numbers of filters are multiples of ten, so that tenths are exact.
WIDTHS: Mapping[str, tuple[int, ...]] = {
    "lenet-half": (10, 20, 64),
    "lenet": (20, 50, 500),
    "vgg11-narrow": (10, 20, 30, 30, 60, 60, 60, 60, 60, 60),
}
"""Outputs of all layers but the last; the narrow VGG11 has about an eighth of the published filters."""

Filters = Mapping[str, Any]
"""``bool[filters]`` by layer: False = pruned."""


def make_model(problem: Problem, name: str = "lenet-half") -> Model:
    """The model of a key of :data:`WIDTHS`."""
    architecture = fm.models.vgg11 if name.startswith("vgg11") else fm.models.lenet
    return architecture(problem).rebuild((*WIDTHS[name], problem.num_classes))


def optimizer(name: str = "adam", lr: float = 2e-3, momentum: float = 0.0) -> optax.GradientTransformation:
    """The optimizer of every training: adam, or sgd with its momentum."""
    return optax.sgd(lr, momentum or None) if name == "sgd" else optax.adam(lr)


def norms_of(model: Model, params: Any) -> dict[str, jax.Array]:
    """The L2 norm of each convolution filter: ``float32[filters]`` by layer."""
    return filter_norms([kernel for kernel in model.kernels if kernel.kind == "conv"], params)


def pruned_share(scores: Mapping[str, jax.Array], share: float) -> dict[str, jax.Array]:
    """Masks that prune the share of each layer's filters with the smallest scores, 0 or more."""
    return {name: keep_largest(layer, jnp.ones(len(layer), bool), share) for name, layer in scores.items()}


def smallest_pruned(model: Model, params: Any, share: float) -> dict[str, jax.Array]:
    """Masks that prune the share of each layer's filters with the smallest norms."""
    return pruned_share(norms_of(model, params), share)


def largest_pruned(model: Model, params: Any, share: float) -> dict[str, jax.Array]:
    """Masks that prune the share of each layer's filters with the largest norms."""
    return pruned_share({name: norm.max() - norm for name, norm in norms_of(model, params).items()}, share)


def random_pruned(model: Model, share: float, seed: int) -> dict[str, jax.Array]:
    """Masks that prune a random share of each layer's filters; a larger share prunes the same ones, too."""
    rng = np.random.default_rng(seed)
    kernels = [kernel for kernel in model.kernels if kernel.kind == "conv"]
    return pruned_share({kernel.name: jnp.asarray(rng.random(kernel.outputs)) for kernel in kernels}, share)


def compacted(model: Model, params: Any, filters: Filters) -> tuple[Model, Any]:
    """The model and its parameters without the pruned filters."""
    masks = survivors(model.kernels, params, jax.tree.map(jnp.asarray, dict(filters)), prune_bias=True)
    return compact(model, prune(params, masks))


def sparsity(filters: Filters) -> float:
    """The share of all filters that is pruned."""
    return float(1 - np.concatenate([np.asarray(mask) for mask in filters.values()]).mean())


def overlap(filters: Filters, others: Filters) -> float:
    """The share of the remaining filters that remain under other masks, too."""
    pairs = [(np.asarray(mask), np.asarray(others[name])) for name, mask in filters.items()]
    return float(sum((a & b).sum() for a, b in pairs) / sum(a.sum() for a, _ in pairs))
