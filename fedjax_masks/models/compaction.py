"""Physical removal of what a mask has emptied: a smaller ordinary model with the same logits.

A masked model computes as much as a dense one. Where whole filters or neurons are zero, the same
function is computed by the same architecture with fewer channels, and that one is really smaller and
faster (FedMask, Li et al., 2021; MPFL; filter pruning in general).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core.algorithm import Params
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
    statistics mix channels, and those under a gate, which compete. Every layer keeps at least one
    output.

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
    return _rebuilt(model, layers)


def keep_outputs(model: Model, params: Params, keep: Mapping[str, Any]) -> tuple[Model, Params]:
    """Removes given filters and neurons, and with them whatever they emitted.

    Args:
      model: The model.
      params: Its parameters.
      keep: By layer name: ``bool[outputs]``, at least one of them True. Layers that are not named are
        left as they are, and so are outputs that enter a residual sum or a group normalisation.

    Returns:
      The smaller model and its parameters. On inputs for which all that was removed is zero behind
      its activation, its logits are those of the model.

    Raises:
      ValueError: A layer would lose all its outputs.

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
        kept = np.asarray(keep.get(kernel.name, True))
        if not kept.any():
            raise ValueError(f"keep: {kernel.name} would lose all its {kernel.outputs} outputs")
        if _removable(kernel) and not kept.all():
            _keep(model.kernels, layers, index, kept)
    return _rebuilt(model, layers)


def _rebuilt(model: Model, layers: Layers) -> tuple[Model, Params]:
    smaller = model.rebuild([layer["kernel"].shape[-1] for layer in layers])
    return smaller, jax.tree.map(jnp.asarray, _assemble(model.kernels, layers))


def _removable(kernel: Kernel) -> bool:
    return kernel.successor is not None and kernel.norm != "group"


def _keep(kernels: Sequence[Kernel], layers: Layers, index: int, kept: np.ndarray) -> None:
    """Keeps some of a layer's outputs, and what the next layer does with them, in place."""
    reader = kernels[index].successor
    assert reader is not None
    layers[index] = jax.tree.map(lambda a: a[..., kept], layers[index])
    layer = layers[reader] | {"kernel": _take_inputs(layers[reader]["kernel"], kept)}
    if kernels[reader].gate is not None:
        weights, bias = layer["gate"]["kernel"], layer["gate"]["bias"]
        # The sigmoid of a silent channel is not zero: what it gave to the gate goes on in the bias.
        bias = bias + kernels[reader].silence * weights[~kept].sum(0)
        layer |= {"gate": {"kernel": weights[kept], "bias": bias}}
    layers[reader] = layer


def _shrink(kernels: Sequence[Kernel], layers: Layers, index: int) -> bool:
    """Removes what can be removed of one layer's outputs, in place; returns whether anything was."""
    kernel = kernels[index]
    if not _removable(kernel) or kernel.gate is not None:
        return False
    assert kernel.successor is not None
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
        layers[kernel.successor] = reader | {"bias": reader["bias"] + np.einsum("rco,c->o", rows, emitted)}
    _keep(kernels, layers, index, ~removable)
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
