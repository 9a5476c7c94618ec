"""The model of ``mpfl_sparsity.py``, its local optimizer and its pruned forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_masks as fm
from fedjax_masks.algorithms.consensus import filter_norms, keep_largest
from fedjax_masks.algorithms.masked_fedavg import survivors
from fedjax_masks.core.masks import prune
from fedjax_masks.models import Model
from fedjax_masks.models.compaction import compact

BATCH = 20


def make_model(task: fm.Task) -> Model:
    """LeNet of half its width; the numbers of filters are multiples of ten, so tenths are exact."""
    return fm.models.lenet(task).rebuild((10, 20, 64, task.num_classes))


def optimizer() -> optax.GradientTransformation:
    """The optimizer of every training."""
    return optax.adam(2e-3)


def smallest_pruned(model: Model, params: Any, share: float) -> dict[str, jax.Array]:
    """Masks that prune the share of each layer's filters with the smallest norms."""
    kernels = [kernel for kernel in model.kernels if kernel.kind == "conv"]
    norms = filter_norms(kernels, params)
    return {name: keep_largest(norm, jnp.ones(len(norm), bool), share) for name, norm in norms.items()}


def compacted(model: Model, params: Any, filters: Any) -> tuple[Model, Any]:
    """The model and its parameters without the pruned filters."""
    masks = survivors(model.kernels, params, jax.tree.map(jnp.asarray, filters), prune_bias=True)
    return compact(model, prune(params, masks))


def sparsity(filters: Any) -> float:
    """The share of all filters that is pruned."""
    return float(1 - np.concatenate([np.asarray(mask) for mask in filters.values()]).mean())
