"""Losses over minibatches; padding has no weight."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.core.minibatches import Batch
from fedjax_masks.core.types import Params, PyTree

Loss = Callable[[Params, Batch, chex.PRNGKey], jax.Array]
"""``(params, batch, key) -> float32[]``: the mean over real examples; every step gets a new ``key``."""

SummingLoss = Callable[[Params, Batch, chex.PRNGKey], tuple[jax.Array, PyTree]]
"""A loss with a second result, any pytree of arrays, which a training sums over all its steps. The second
result must leave out padding, the examples that are not ``batch.real``."""


def mean_over_real(values: jax.Array, real: jax.Array) -> jax.Array:
    """The mean of ``values[batch]`` over the real examples; 0 where there are none."""
    return jnp.sum(jnp.where(real, values, 0.0)) / jnp.maximum(jnp.sum(real), 1)


def mean_cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
    """The mean softmax cross-entropy of ``logits[batch, num_classes]`` over the real examples."""
    return mean_over_real(optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels), batch.real)


def cross_entropy(apply: Callable[[Params, jax.Array], jax.Array]) -> Loss:
    """The mean softmax cross-entropy of ``apply(params, inputs)`` over the real examples."""

    def loss(params: Params, batch: Batch, key: chex.PRNGKey) -> jax.Array:
        del key
        return mean_cross_entropy(apply(params, batch.inputs), batch)

    return loss
