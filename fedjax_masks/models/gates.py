"""Statistics of channel gates: activity on a client's data, and savings of inference.

The models are those of :func:`fedjax_masks.models.gated`. A program under ``jit`` still computes suppressed
channels; the counts here are those of a device that skips them. To remove channels for one client and all
its examples, use :func:`fedjax_masks.models.compaction.keep_outputs`::

    keep = channels_in_use(channel_activity(model, params, inputs), 0.05)
    smaller, small_params = keep_outputs(model, params, keep)
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core.algorithm import Params
from fedjax_masks.models import Gate, Model

Activity = dict[str, jax.Array]


def count_active(gates: Mapping[str, Gate], real: jax.Array) -> Activity:
    """Counts the examples in which each channel is active.

    Args:
      gates: Gates by layer.
      real: ``bool[batch]``: the examples that count.

    Returns:
      ``float32[outputs]`` by layer.
    """
    return {name: jnp.sum(gate.active & real[:, None], 0, dtype=jnp.float32) for name, gate in gates.items()}


def count_distinct(active: jax.Array) -> jax.Array:
    """Counts the different selections of channels among examples, exactly.

    The comparison of all pairs takes one matrix product, ``batch * batch * outputs`` multiply-accumulates.

    Args:
      active: ``bool[batch, outputs]``: the selection of each example.

    Returns:
      ``int32[]``: the number, from 1 to ``batch``.

    >>> count_distinct(jnp.array([[True, False], [False, True], [True, False]])).item()
    2
    """
    vectors = active.astype(jnp.float32)
    sizes = jnp.sum(vectors, -1)
    overlaps = vectors @ vectors.T
    same = (overlaps == sizes) & (overlaps == sizes[:, None])
    repeats = jnp.any(jnp.tril(same, -1), -1)
    return jnp.sum(~repeats, dtype=jnp.int32)


def distinct_selections(
    model: Model, params: Params, inputs: jax.Array, *, batch_size: int = 100
) -> dict[str, int]:
    """The number of different selections of channels among a data set's examples, by gated layer.

    A layer with one selection prunes the same channels for every example, as a smaller net without gates
    does.

    Args:
      model: A gated model.
      params: The model's parameters.
      inputs: ``[examples, *input_shape]``, at least one.
      batch_size: Examples per forward pass; the last examples fill up with the first ones.

    Returns:
      The number by layer, from 1 to the number of examples.

    Example:
      >>> from types import SimpleNamespace
      >>> from fedjax_masks.models import cnn, gated
      >>> model = gated(cnn(SimpleNamespace(input_shape=(8, 8, 1), num_classes=2)), ratio=0.5)
      >>> distinct_selections(model, model.init(jax.random.key(0)), jnp.ones((3, 8, 8, 1)))
      {'conv1': 1, 'conv2': 1}
    """
    num = len(inputs)
    indices = jnp.arange(-(-num // batch_size) * batch_size).reshape(-1, batch_size) % num

    @jax.jit
    def selections(params: Params, inputs: jax.Array) -> dict[str, jax.Array]:
        _, gates = model.forward(params, inputs)
        return {name: gate.active for name, gate in gates.items()}

    batches = [jax.device_get(selections(params, jnp.asarray(inputs[rows]))) for rows in np.asarray(indices)]
    return {
        name: len(np.unique(np.concatenate([np.packbits(batch[name], -1) for batch in batches]), axis=0))
        for name in batches[0]
    }


def channel_activity(model: Model, params: Params, inputs: jax.Array, *, batch_size: int = 100) -> Activity:
    """The share of a client's examples in which each channel is active.

    Args:
      model: A gated model.
      params: The model's parameters.
      inputs: ``[examples, *input_shape]``, at least one.
      batch_size: Examples per forward pass.

    Returns:
      ``float32[outputs]`` by gated layer.

    Example:
      >>> from types import SimpleNamespace
      >>> from fedjax_masks.models import cnn, gated
      >>> model = gated(cnn(SimpleNamespace(input_shape=(8, 8, 1), num_classes=2)), ratio=0.5)
      >>> activity = channel_activity(model, model.init(jax.random.key(0)), jnp.ones((3, 8, 8, 1)))
      >>> {name: float(share.mean()) for name, share in activity.items()}
      {'conv1': 0.5, 'conv2': 0.5}
    """
    num = len(inputs)
    indices = jnp.arange(-(-num // batch_size) * batch_size).reshape(-1, batch_size)

    def one_batch(indices: jax.Array) -> Activity:
        _, gates = model.forward(params, jnp.asarray(inputs)[indices % num])
        return count_active(gates, indices < num)

    return jax.tree.map(lambda counts: jnp.sum(counts, 0) / num, jax.lax.map(one_batch, indices))


def channels_in_use(activity: Mapping[str, Any], share: float) -> dict[str, np.ndarray]:
    """The channels that are active in at least a share of a client's examples.

    Args:
      activity: Shares of examples by layer, see :func:`channel_activity`.
      share: The smallest share, in [0, 1]; a layer's most active channel is always in use.

    Returns:
      ``bool[outputs]`` by layer.

    >>> channels_in_use({"conv1": np.array([0.0, 0.5, 0.25])}, 0.5)["conv1"].tolist()
    [False, True, False]
    """
    shares = {name: np.asarray(values) for name, values in activity.items()}
    return {name: values >= min(share, values.max()) for name, values in shares.items()}


class Macs(NamedTuple):
    """Multiply-accumulates of inference, ``int64[batch]`` each.

    Attributes:
      conv: MACs of convolutions, gated or not: ``positions * window * active inputs * active outputs``.
      dense: MACs of dense layers.
      gates: MACs of gates: ``active inputs * outputs`` for their values, and ``outputs * positions`` for
        their products.
    """

    conv: np.ndarray
    dense: np.ndarray
    gates: np.ndarray


def inference_macs(model: Model, active: Mapping[str, Any]) -> Macs:
    """Counts the MACs of inference on a device that skips suppressed channels.

    An input of a layer is active unless a gate of the preceding layer suppresses it; the inputs from a
    residual sum are all active.

    Args:
      model: A gated model.
      active: ``bool[batch, outputs]`` by gated layer; see :class:`fedjax_masks.models.Gate`.

    Returns:
      The counts for each example.

    Example:
      >>> from types import SimpleNamespace
      >>> from fedjax_masks.models import cnn, gated
      >>> model = gated(cnn(SimpleNamespace(input_shape=(8, 8, 1), num_classes=2)))
      >>> inference_macs(model, {"conv1": np.arange(32)[None] < 22, "conv2": np.arange(64)[None] < 45})
      Macs(conv=array([155232]), dense=array([23296]), gates=array([4512]))
    """
    counts = {name: np.asarray(mask).sum(-1, dtype=np.int64) for name, mask in active.items()}
    macs = Macs(*[np.zeros_like(next(iter(counts.values())))] * len(Macs._fields))._asdict()
    num_inputs: dict[int, np.ndarray] = {}
    for index, kernel in enumerate(model.kernels):
        *window, inputs, outputs = kernel.shape
        active_inputs = num_inputs.get(index, np.int64(inputs))
        active_outputs = counts.get(kernel.name, np.int64(outputs))
        products = kernel.positions * math.prod(window) * active_inputs * active_outputs
        macs[kernel.kind] = macs[kernel.kind] + products
        if kernel.gate is not None:
            macs["gates"] = macs["gates"] + active_inputs * outputs + outputs * kernel.positions
        if kernel.successor is not None:
            num_inputs[kernel.successor] = kernel.repeats * active_outputs
    return Macs(**macs)
