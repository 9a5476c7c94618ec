"""Loops over one client's minibatches whose results do not depend on padding.

The loop runs to ``data.longest``, the same for all clients of a block. Examples from ``data.size`` on are
padding: they have weight 0 inside a minibatch, and a step of padding alone changes nothing. The order of the
examples is drawn so that the amount of padding does not change it, to the bit.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import ClientData
from fedjax_masks.core.types import PyTree

Augment = Callable[[chex.PRNGKey, jax.Array], jax.Array]
"""``(key, inputs) -> inputs``."""

Order = Callable[[chex.PRNGKey, ClientData, int], jax.Array]
"""``(key, data, batch_size) -> rows``: the examples of an epoch, see :func:`shuffled_rows`."""

_LOSS_KEY = 0x6C6F7373  # far from the numbers of epochs, which are folded into the same key


class Batch(NamedTuple):
    """One minibatch.

    Attributes:
      inputs: ``[batch, *input_shape]``.
      labels: ``int32[batch]``.
      real: ``bool[batch]``: False for padding.
      step: ``int32[]``: the number of the step in this training, from 0.
    """

    inputs: jax.Array
    labels: jax.Array
    real: jax.Array
    step: jax.Array


def batch_like(data: ClientData, batch_size: int) -> PyTree:
    """The shapes of a minibatch: a :class:`Batch` of ``jax.ShapeDtypeStruct``."""
    return jax.eval_shape(
        lambda: Batch(
            jnp.zeros((batch_size, *data.inputs.shape[1:]), data.inputs.dtype),
            jnp.zeros(batch_size, jnp.int32),
            jnp.zeros(batch_size, bool),
            jnp.zeros((), jnp.int32),
        )
    )


def shuffled_rows(key: chex.PRNGKey, data: ClientData, batch_size: int) -> jax.Array:
    """The client's examples in random order, repeated up to a whole number of minibatches.

    Args:
      key: A PRNG key.
      data: The client's data.
      batch_size: Examples per minibatch.

    Returns:
      ``int32[ceil(capacity / batch_size) * batch_size]``: indices into ``data.inputs``, which do not depend
      on the capacity. Entries from ``data.size`` on are padding. They repeat the client's own examples, so
      that statistics over a minibatch never see another client's data.
    """
    (capacity,) = data.rows.shape
    draws = jax.random.uniform(key, (capacity,), jnp.float32)
    # A draw depends on its position alone, and 2 is larger than any draw: more padding changes no order.
    order = jnp.argsort(jnp.where(jnp.arange(capacity) < data.size, draws, 2.0))
    positions = jnp.arange(-(-capacity // batch_size) * batch_size)
    return data.rows[order[positions % jnp.maximum(data.size, 1)]]


def for_each_batch(
    key: chex.PRNGKey,
    data: ClientData,
    step: Callable[[Any, Batch, chex.PRNGKey], Any],
    carry: PyTree,
    *,
    epochs: int,
    batch_size: int,
    order: Order = shuffled_rows,
    augment: Augment | None = None,
    after_epoch: Callable[[Any], Any] | None = None,
) -> PyTree:
    """Folds ``step`` over the client's minibatches, reshuffled every epoch.

    Args:
      key: A PRNG key.
      data: The client's data.
      step: ``(carry, batch, key) -> carry``; every step gets a new key.
      carry: A pytree; a minibatch of padding alone leaves it as it is.
      epochs: Passes over the data.
      batch_size: Examples per minibatch; the last minibatch of an epoch may be smaller.
      order: ``(key, data, batch_size) -> rows``: the examples of an epoch, as :func:`shuffled_rows`
        returns them.
      augment: ``(key, inputs) -> inputs``, applied to every minibatch.
      after_epoch: ``carry -> carry``, applied after the last minibatch of every epoch.

    Returns:
      The carry at the end.
    """
    batches, most_batches = -(-data.size // batch_size), -(-data.longest // batch_size)
    loss_key = jax.random.fold_in(key, _LOSS_KEY)

    def one_epoch(epoch: jax.Array, carry: PyTree) -> PyTree:
        # Even numbers are for the order, odd ones for augmentation: without it, no key is computed for it.
        rows = order(jax.random.fold_in(key, 2 * epoch), data, batch_size)

        def one_batch(index: jax.Array, carry: PyTree) -> PyTree:
            start = index * batch_size
            batch_rows = jax.lax.dynamic_slice(rows, (start,), (batch_size,))
            inputs = data.inputs[batch_rows]
            if augment is not None:
                augment_key = jax.random.fold_in(key, 2 * epoch + 1)
                inputs = augment(jax.random.fold_in(augment_key, index), inputs)
            real = start + jnp.arange(batch_size) < data.size
            batch = Batch(inputs, data.labels[batch_rows], real, epoch * batches + index)
            result = step(carry, batch, jax.random.fold_in(loss_key, batch.step))
            if _equal(batches, most_batches):
                return result
            # Momentum and weight decay would move parameters even with a gradient of 0.
            return trees.where(start < data.size, result, carry)

        # A traced trip count for ragged cohorts: masking the steps of a static one takes 1.7 times as long.
        # A static trip count for equal sizes: an accelerator then does not ask the host after every step.
        carry = jax.lax.fori_loop(0, most_batches, one_batch, carry)
        return carry if after_epoch is None else after_epoch(carry)

    return jax.lax.fori_loop(0, epochs, one_epoch, carry)


def _equal(a: jax.typing.ArrayLike, b: jax.typing.ArrayLike) -> bool:
    """Whether two numbers are constants of the program, and equal."""
    return all(isinstance(n, int | np.integer) for n in (a, b)) and bool(a == b)
