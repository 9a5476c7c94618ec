"""Physical removal of pruned filters and neurons: a smaller model with the same logits.

A masked model computes as much as a dense model. Where whole filters or neurons are zero, the same
architecture with fewer channels computes the same function, with less memory and time (FedMask, Li et al.,
2021; MPFL; filter pruning in general).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core.algorithm import Params
from fedjax_masks.core.errors import UserError
from fedjax_masks.models.model import Kernel, Model

Layers = list[dict[str, Any]]  # one nested dict of arrays per kernel of the model, in its order


def parameter_count(params: Params) -> int:
    """The number of parameters; ``params`` holds arrays or ``jax.ShapeDtypeStruct``."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def compact(model: Model, params: Params) -> tuple[Model, Params]:
    """Removes dead and unread outputs of layers, until none are left.

    An output is *dead* when its column of the kernel is zero: for any input, the output is the constant
    ``relu(bias)`` (after batch normalization, ``relu`` of the normalization's bias). A dead output is removed
    where the constant is zero, or where the next layer's bias can absorb the constant exactly: in a dense
    layer or an unpadded convolution. An output is *unread* when its inputs to the next kernel have zero
    weights. Outputs that enter a residual sum stay; so do outputs under group normalization, whose statistics
    mix channels, and outputs under a gate, which compete. Every layer keeps at least one output.

    Args:
      model: The model.
      params: The model's parameters, with pruned weights exactly zero (``weights * mask``).

    Returns:
      The smaller model and its parameters; the logits are those of ``model`` on ``params``.

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
    return _rebuilt(model, layers)


def keep_outputs(model: Model, params: Params, keep: Mapping[str, Any]) -> tuple[Model, Params]:
    """Removes filters and neurons by masks.

    Args:
      model: The model.
      params: The model's parameters.
      keep: ``bool[outputs]`` by layer name: the outputs to keep, at least one per layer. Missing layers keep
        all outputs; outputs that enter a residual sum or a group normalization are always kept.

    Returns:
      The smaller model and its parameters. The logits are those of ``model`` on inputs for which all removed
      outputs are zero after their activation.

    Raises:
      UserError: A layer would lose all its outputs.

    Example:
      >>> import jax
      >>> from types import SimpleNamespace
      >>> from fedjax_masks.models import cnn
      >>> model = cnn(SimpleNamespace(input_shape=(8, 8, 1), num_classes=2))
      >>> keep = {"conv1": np.arange(32) < 5}
      >>> smaller, _ = keep_outputs(model, model.init(jax.random.key(0)), keep)
      >>> [kernel.outputs for kernel in smaller.kernels]
      [5, 64, 128, 2]
    """
    params = jax.tree.map(np.asarray, params)
    layers = [_layer(params, kernel) for kernel in model.kernels]
    for index, kernel in enumerate(model.kernels):
        mask = np.asarray(keep.get(kernel.name, True))
        if not mask.any():
            raise UserError(
                f"keep={kernel.name}: must keep one or more of the layer's {kernel.outputs} outputs"
            )
        if _removable(kernel) and not mask.all():
            _keep(model.kernels, layers, index, mask)
    return _rebuilt(model, layers)


def _rebuilt(model: Model, layers: Layers) -> tuple[Model, Params]:
    smaller = model.rebuild([layer["kernel"].shape[-1] for layer in layers])
    return smaller, jax.tree.map(jnp.asarray, _assemble(model.kernels, layers))


def _removable(kernel: Kernel) -> bool:
    return kernel.successor is not None and kernel.norm != "group"


def _keep(kernels: Sequence[Kernel], layers: Layers, index: int, mask: np.ndarray) -> None:
    """Keeps a layer's outputs under True, and the next layer's inputs from them, in place."""
    reader = kernels[index].successor
    assert reader is not None
    layers[index] = jax.tree.map(lambda a: a[..., mask], layers[index])
    layer = layers[reader] | {"kernel": _take_inputs(layers[reader]["kernel"], mask)}
    if kernels[reader].gate is not None:
        weights, bias = layer["gate"]["kernel"], layer["gate"]["bias"]
        # The sigmoid of a zero channel is 0.5: the gate's bias absorbs the channel's constant contribution.
        bias = bias + kernels[reader].zero_saliency * weights[~mask].sum(0)
        layer |= {"gate": {"kernel": weights[mask], "bias": bias}}
    layers[reader] = layer


def _shrink(kernels: Sequence[Kernel], layers: Layers, index: int) -> bool:
    """Removes the dead and unread outputs of one layer, in place; returns whether there were any."""
    kernel = kernels[index]
    if not _removable(kernel) or kernel.gate is not None:
        return False
    assert kernel.successor is not None
    layer, reader = layers[index], layers[kernel.successor]
    constant = _constant_outputs(kernel, layer)
    weights = reader["kernel"].reshape(-1, len(constant), reader["kernel"].shape[-1])
    unread = ~weights.any(axis=(0, 2))
    foldable = kernels[kernel.successor].padding == "VALID" and "bias" in reader
    removable = unread | (np.isfinite(constant) if foldable else constant == 0)
    if removable.all():
        removable[0] = False
    if not removable.any():
        return False
    if foldable:
        constants = np.where(removable & ~unread, constant, 0)
        bias = reader["bias"] + np.einsum("rco,c->o", weights, constants)
        layers[kernel.successor] = reader | {"bias": bias}
    _keep(kernels, layers, index, ~removable)
    return True


def _constant_outputs(kernel: Kernel, layer: dict[str, Any]) -> np.ndarray:
    """The constant of each dead output; NaN for the other outputs."""
    alive = layer["kernel"].any(axis=tuple(range(layer["kernel"].ndim - 1)))
    shift = layer["norm"]["bias"] if kernel.norm == "batch" else layer.get("bias", np.zeros(len(alive)))
    return np.where(alive, np.nan, np.maximum(shift, 0))


def _take_inputs(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Keeps channels of a kernel's input axis, on which each channel may occur once per pixel."""
    *window, inputs, outputs = array.shape
    pixels = array.reshape(*window, inputs // len(mask), len(mask), outputs)
    return pixels[..., mask, :].reshape(*window, -1, outputs)


def _layer(params: Params, kernel: Kernel) -> dict[str, Any]:
    for key in kernel.path[:-1]:
        params = params[key]
    return params


def _assemble(kernels: Sequence[Kernel], layers: Layers) -> Params:
    """The nested dict of parameters, made of the parameters of each layer."""
    params: dict[str, Any] = {}
    for kernel, layer in zip(kernels, layers, strict=True):
        *outer, name = kernel.path[:-1]
        parent = params
        for key in outer:
            parent = parent.setdefault(key, {})
        parent[name] = layer
    return params
