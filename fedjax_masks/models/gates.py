"""What channel gates say of a client's data, and what they save.

The models are those of :func:`fedjax_masks.models.gated`. Under ``jit`` a suppressed channel is still
computed: what is counted here is what a device would save that skips it. What is really removed, for
one client and all its examples, is the business of :func:`fedjax_masks.models.compaction.keep_outputs`::

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
    """In how many examples each channel is active.

    Args:
      gates: By layer.
      real: ``bool[batch]``: the examples that count.

    Returns:
      By layer: ``float32[outputs]``.
    """
    return {name: jnp.sum(gate.active & real[:, None], 0, dtype=jnp.float32) for name, gate in gates.items()}


def channel_activity(model: Model, params: Params, inputs: jax.Array, *, batch_size: int = 100) -> Activity:
    """The share of a client's examples in which each channel is active.

    Args:
      model: A gated model.
      params: Its parameters.
      inputs: ``[examples, *input_shape]``, at least one.
      batch_size: Examples per forward pass.

    Returns:
      By gated layer: ``float32[outputs]``.

    Example:
      >>> from types import SimpleNamespace
      >>> from fedjax_masks.models import cnn, gated
      >>> model = gated(cnn(SimpleNamespace(input_shape=(8, 8, 1), num_classes=2)), ratio=0.5)
      >>> activity = channel_activity(model, model.init(jax.random.key(0)), jnp.ones((3, 8, 8, 1)))
      >>> {name: float(share.mean()) for name, share in activity.items()}
      {'conv1': 0.5, 'conv2': 0.5}
    """
    num = len(inputs)
    places = jnp.arange(-(-num // batch_size) * batch_size).reshape(-1, batch_size)

    def one_batch(places: jax.Array) -> Activity:
        _, gates = model.forward(params, jnp.asarray(inputs)[places % num])
        return count_active(gates, places < num)

    return jax.tree.map(lambda counts: jnp.sum(counts, 0) / num, jax.lax.map(one_batch, places))


def channels_in_use(activity: Mapping[str, Any], share: float) -> dict[str, np.ndarray]:
    """The channels that are active in at least a share of a client's examples.

    Args:
      activity: By layer, as :func:`channel_activity` gives it.
      share: In [0, 1]; a layer's most active channel is always in use.

    Returns:
      By layer: ``bool[outputs]``.

    >>> channels_in_use({"conv1": np.array([0.0, 0.5, 0.25])}, 0.5)["conv1"].tolist()
    [False, True, False]
    """
    shares = {name: np.asarray(values) for name, values in activity.items()}
    return {name: values >= min(share, values.max()) for name, values in shares.items()}


class Macs(NamedTuple):
    """Multiply-accumulates of inference, ``int64[batch]`` each.

    Attributes:
      conv: Of convolutions, gated or not: ``positions * window * active inputs * active outputs``.
      dense: Of dense layers.
      gates: Of the gates: ``active inputs * outputs`` for their values and ``outputs * positions`` for
        the products.
    """

    conv: np.ndarray
    dense: np.ndarray
    gates: np.ndarray


def inference_macs(model: Model, active: Mapping[str, Any]) -> Macs:
    """Counts what inference takes if nothing is computed of, or for, a suppressed channel.

    A layer's inputs are active where the one layer that they come from has a gate which lets them
    through; what comes from a residual sum is active altogether.

    Args:
      model: A gated model.
      active: By gated layer: ``bool[batch, outputs]``: see :class:`fedjax_masks.models.Gate`.

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
    arriving: dict[int, np.ndarray] = {}
    for index, kernel in enumerate(model.kernels):
        *window, inputs, outputs = kernel.shape
        read = arriving.get(index, np.int64(inputs))
        emitted = counts.get(kernel.name, np.int64(outputs))
        macs[kernel.kind] = macs[kernel.kind] + kernel.positions * math.prod(window) * read * emitted
        if kernel.gate is not None:
            macs["gates"] = macs["gates"] + read * outputs + outputs * kernel.positions
        if kernel.successor is not None:
            arriving[kernel.successor] = kernel.repeats * emitted
    return Macs(**macs)
