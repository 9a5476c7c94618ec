"""Physical removal of what a mask has emptied: a smaller ordinary model with the same logits.

A masked model computes as much as a dense one. Where whole filters or neurons are zero, the same
function is computed by the same architecture with fewer channels, and that one is really smaller and
faster (FedMask, Li et al., 2021; MPFL; filter pruning in general).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.algorithm import Params
from fedjax_masks.models.model import Kernel, Model

Layers = list[dict[str, Any]]  # one nested dict of arrays per kernel of the model, in its order


def parameter_count(params: Params) -> int:
    """Returns the number of parameters; ``params`` may hold arrays or ``jax.ShapeDtypeStruct``."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def compact(model: Model, params: Params) -> tuple[Model, Params]:
    """Removes dead filters and neurons, and inputs that nothing reads, until none is left.

    An output is *dead* when its column of the kernel is zero: whatever the input, it emits the
    constant ``relu(bias)`` (behind batch normalisation, ``relu`` of the normalisation's bias). It is
    removed where that constant is zero, or where it can be moved into the next layer's bias exactly:
    a dense layer or an unpadded convolution. An output is *unread* when its rows of the next kernel
    are zero. Outputs that enter a residual sum stay, and so do those under group normalisation, whose
    statistics mix channels. Every layer keeps at least one output.

    Args:
      model: The model.
      params: Its parameters, with pruned weights exactly zero (``weights * mask``).

    Returns:
      The smaller model and its parameters; logits are those of ``model`` on ``params``.

    Example:
      >>> import jax
      >>> from types import SimpleNamespace
      >>> from fedjax_masks.models import mlp
      >>> model = mlp(SimpleNamespace(input_shape=(4,), num_classes=2), hidden=(8,))
      >>> params = model.init(jax.random.key(0))
      >>> params["dense1"]["kernel"] = params["dense1"]["kernel"].at[:, 3:].set(0.0)
      >>> smaller, small_params = compact(model, params)
      >>> [kernel.outputs for kernel in smaller.kernels]
      [3, 2]
      >>> parameter_count(params), parameter_count(small_params)
      (58, 23)
    """
    params = jax.tree.map(np.asarray, params)
    layers = [_layer(params, kernel) for kernel in model.kernels]
    while sum(_shrink(model.kernels, layers, index) for index in range(len(layers))):
        pass
    smaller = model.rebuild([layer["kernel"].shape[-1] for layer in layers])
    return smaller, jax.tree.map(jnp.asarray, _assemble(model.kernels, layers))


def _shrink(kernels: Sequence[Kernel], layers: Layers, index: int) -> bool:
    """Removes what can be removed of one layer's outputs, in place; returns whether anything was."""
    kernel = kernels[index]
    if kernel.successor is None or kernel.norm == "group":
        return False
    layer, reader = layers[index], layers[kernel.successor]
    constant = _constant_outputs(kernel, layer)
    rows = reader["kernel"].reshape(-1, len(constant), reader["kernel"].shape[-1])
    unread = ~rows.any(axis=(0, 2))
    foldable = kernels[kernel.successor].padding == "VALID" and "bias" in reader
    removable = unread | (np.isfinite(constant) if foldable else constant == 0)
    if removable.all():
        removable[0] = False
    if not removable.any():
        return False
    if foldable:
        emitted = np.where(removable & ~unread, constant, 0)
        reader = reader | {"bias": reader["bias"] + np.einsum("rco,c->o", rows, emitted)}
    layers[index] = jax.tree.map(lambda a: a[..., ~removable], layer)
    layers[kernel.successor] = reader | {"kernel": _take_inputs(reader["kernel"], ~removable)}
    return True


def _constant_outputs(kernel: Kernel, layer: dict[str, Any]) -> np.ndarray:
    """Returns, per output, the constant that it emits when its column is zero, else NaN."""
    alive = layer["kernel"].any(axis=tuple(range(layer["kernel"].ndim - 1)))
    shift = layer["norm"]["bias"] if kernel.norm == "batch" else layer.get("bias", np.zeros(len(alive)))
    return np.where(alive, np.nan, np.maximum(shift, 0))


def _take_inputs(array: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Keeps some channels of a kernel's input axis, on which each channel may occur once per pixel."""
    *window, inputs, outputs = array.shape
    pixels = array.reshape(*window, inputs // len(kept), len(kept), outputs)
    return pixels[..., kept, :].reshape(*window, -1, outputs)


def _layer(params: Params, kernel: Kernel) -> dict[str, Any]:
    for key in kernel.path[:-1]:
        params = params[key]
    return params


def _assemble(kernels: Sequence[Kernel], layers: Layers) -> Params:
    """Puts each layer back at its place in the nested dict of parameters."""
    params: dict[str, Any] = {}
    for kernel, layer in zip(kernels, layers, strict=True):
        *outer, name = kernel.path[:-1]
        parent = params
        for key in outer:
            parent = parent.setdefault(key, {})
        parent[name] = layer
    return params
