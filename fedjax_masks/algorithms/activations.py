"""Activations of a device's examples, in batches and in 8 bits, for EcoFed."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_masks.core import flops, trees
from fedjax_masks.core.algorithm import ClientData, Info, Round, Work
from fedjax_masks.core.minibatches import Augment, shuffled_rows
from fedjax_masks.core.training import report_work
from fedjax_masks.core.types import Params

_LEVELS = 127


class Activations(NamedTuple):
    """A device's activations of its examples, in batches; without quantization, the scale is 1.

    Attributes:
      values: int8 or float32 ``[batches, batch, *shape]``: in units of the scale.
      scale: ``float32[batches]``.
      labels: ``int32[batches, batch, 2]``: integers of 64 bits, low word first, as in the authors' code.
    """

    values: jax.Array
    scale: jax.Array
    labels: jax.Array


def activations_of(
    activate: Callable[[Params, jax.Array], jax.Array],
    batch_size: int,
    augment: Augment | None,
    quantized: bool,
    round: Round,
    device: Params,
    data: ClientData,
    fresh: jax.Array,
) -> tuple[Activations, Activations, Info]:
    """A device's activations of all its examples, in random order.

    Args:
      activate: ``(device, inputs) -> activations``.
      batch_size: Examples per scale.
      augment: ``(key, inputs) -> inputs``.
      quantized: Whether activations get 8 bits.
      round: The round; its key decides the order of examples and their augmentation.
      device: The device's parameters.
      data: The client's data.
      fresh: ``bool[]``: False computes nothing.

    Returns:
      The activations, zeros where nothing is computed; a mask, True for real examples; and the work.
    """
    order_key, augment_key = (jax.random.fold_in(round.key, number) for number in range(2))
    rows = shuffled_rows(order_key, data, batch_size).reshape(-1, batch_size)
    real = (jnp.arange(rows.size) < data.size).reshape(rows.shape)

    def look(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs = data.inputs[rows[index]]
        if augment is not None:
            inputs = augment(jax.random.fold_in(augment_key, index), inputs)
        values = activate(device, inputs)
        return quantize(values, real[index]) if quantized else (values, jnp.float32(1))

    step = flops.trace(look, jnp.int32(0))
    labels = jnp.stack([data.labels[rows], jnp.zeros_like(rows)], -1)

    def activations() -> Activations:
        values, scale = jax.lax.map(step.call, jnp.arange(len(rows), dtype=jnp.int32))
        return Activations(values, scale, labels)

    shapes = jax.eval_shape(activations)
    sent = jax.lax.cond(fresh, activations, lambda: trees.zeros_like(shapes))
    mask = Activations(
        real.reshape(*real.shape, *(1,) * (sent.values.ndim - 2)), real.any(1), real[..., None]
    )
    batches = -(-data.size // batch_size)
    numbers = (0, data.size, rows.size, batches * step.flops, batches * step.traffic)
    work = Work(*(jnp.where(fresh, number, 0).astype(jnp.float32) for number in numbers))
    return sent, mask, Info(work=report_work(sent.scale[0], work).work)


def quantize(values: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Quantizes a minibatch to 8 bits, symmetrically and with one scale; errors are at most half the scale.

    Args:
      values: ``float32[batch, *shape]``.
      real: ``bool[batch]``: False for padding, whose magnitude does not count.

    Returns:
      ``int8`` codes of the same shape, -127 to 127, and the scale, ``float32[]``.

    >>> codes, scale = quantize(jnp.array([[-1.0, 0.5], [0.0, 9.0]]), jnp.array([True, False]))
    >>> codes[0].tolist(), round(127 * float(scale), 6)
    ([-127, 64], 1.0)
    """
    real = real.reshape(-1, *(1,) * (values.ndim - 1))
    largest = jnp.max(jnp.where(real, jnp.abs(values), 0))
    scale = jnp.where(largest == 0, 1, largest) / _LEVELS  # NaN stays NaN, and is noticed
    return jnp.clip(jnp.round(values / scale), -_LEVELS, _LEVELS).astype(jnp.int8), scale
