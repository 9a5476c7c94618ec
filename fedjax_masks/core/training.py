"""Minibatch training of one client, which padding cannot touch.

A client's loop over minibatches runs to ``data.longest``, the same for all clients of a
block. What lies beyond ``data.size`` is padding: it has weight 0 inside a batch, and a step
that holds nothing else changes neither parameters nor optimiser state. The order of the
examples is drawn so that the amount of padding does not change it, to the bit.
"""

import logging
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.core import flops, trees, work
from fedjax_masks.core.algorithm import ClientData, Params

_LOGGER = logging.getLogger(__name__)
_SCHEDULES = {"ScaleByScheduleState", "WrappedScheduleState", "WeightDecaySchedule", "ReduceLROnPlateauState"}
"""States of optax that count steps for a schedule. Adam's count is none: it corrects a bias."""

Augment = Callable[[chex.PRNGKey, jax.Array], jax.Array]
Order = Callable[[chex.PRNGKey, ClientData, int], jax.Array]


class Batch(NamedTuple):
    """One minibatch.

    Attributes:
      inputs: ``[batch, *input_shape]``.
      labels: ``int32[batch]``.
      real: ``bool[batch]``: False for padding.
    """

    inputs: jax.Array
    labels: jax.Array
    real: jax.Array


class LocalMetrics(NamedTuple):
    """What a client reports of its local training.

    Attributes:
      loss: ``float32[]``: mean loss over all examples of all epochs, as met in training.
      steps: ``float32[]``: optimiser steps taken.
      examples: ``float32[]``: examples seen, over all epochs.
      slots: ``float32[]``: places for examples in the batches that were computed; what
        exceeds ``examples`` was padding.
      flops: ``float32[]``: FLOPs of the steps taken; see :mod:`fedjax_masks.core.flops`.
      traffic: ``float32[]``: bytes that these move through memory.
    """

    loss: jax.Array
    steps: jax.Array
    examples: jax.Array
    slots: jax.Array
    flops: jax.Array
    traffic: jax.Array


def count(metrics: LocalMetrics) -> LocalMetrics:
    """Counts work as a client's, beside all other that it counts in its round.

    :func:`train` and :func:`train_with_sums` do so by themselves. A loop of an algorithm's own does it by
    this call, wherever the loop is: in a branch, it counts if the branch is taken, in a loop each time.

    Args:
      metrics: Of the work; ``loss`` may be any result of it.

    Returns:
      The same.
    """
    loss, *counts = metrics
    loss, counts = work.counted_work(loss, work.Work(*counts))
    return LocalMetrics(loss, *counts)


def nothing_done() -> LocalMetrics:
    """The metrics of no training at all."""
    return LocalMetrics(*[jnp.zeros((), jnp.float32)] * len(LocalMetrics._fields))


Loss = Callable[[Params, Batch], jax.Array]

Fit = Callable[..., tuple[Params, LocalMetrics]]
"""``(key, params, data, **options) -> (params, metrics)``: :func:`train` with its choices made, all
but ``proximal``, ``update_mask`` and ``correction``. Algorithms that only exchange and average take
one, whatever it trains by."""


def mean_over_real(values: jax.Array, real: jax.Array) -> jax.Array:
    """Mean of ``values[batch]`` over the real examples; 0 where there is none."""
    return jnp.sum(jnp.where(real, values, 0.0)) / jnp.maximum(jnp.sum(real), 1)


def mean_cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
    """The mean softmax cross-entropy of ``logits[batch, num_classes]`` over the real examples."""
    return mean_over_real(optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels), batch.real)


def cross_entropy(apply: Callable[[Params, jax.Array], jax.Array]) -> Loss:
    """The mean softmax cross-entropy of ``apply(params, inputs)`` over the real examples."""

    def loss(params: Params, batch: Batch) -> jax.Array:
        return mean_cross_entropy(apply(params, batch.inputs), batch)

    return loss


def shuffled_rows(key: chex.PRNGKey, data: ClientData, batch_size: int) -> jax.Array:
    """The client's rows in random order, over and over, up to a number of whole batches.

    Args:
      key: A PRNG key.
      data: The client's data.
      batch_size: Examples per batch.

    Returns:
      ``int32[ceil(capacity / batch_size) * batch_size]``. Entries do not depend on the
      capacity. Those behind ``data.size`` are padding, made of the client's own rows, so that
      statistics over a batch never see another client's data.
    """
    (capacity,) = data.rows.shape
    draws = jax.random.uniform(key, (capacity,), jnp.float32)
    order = jnp.argsort(jnp.where(jnp.arange(capacity) < data.size, draws, 2.0))
    places = jnp.arange(-(-capacity // batch_size) * batch_size)
    return data.rows[order[places % jnp.maximum(data.size, 1)]]


def for_each_batch(
    key: chex.PRNGKey,
    data: ClientData,
    step: Callable[[Any, Batch], Any],
    carry: Any,
    *,
    epochs: int,
    batch_size: int,
    order: Order = shuffled_rows,
    augment: Augment | None = None,
    after_epoch: Callable[[Any], Any] | None = None,
) -> Any:
    """Folds ``step`` over the client's minibatches, reshuffled every epoch.

    Args:
      key: A PRNG key.
      data: The client's data.
      step: ``(carry, batch) -> carry``.
      carry: A pytree; a batch of padding alone leaves it as it is.
      epochs: Passes over the data.
      batch_size: Examples per batch; the last batch of an epoch may be smaller.
      order: ``(key, data, batch_size) -> rows``: an epoch's rows, as :func:`shuffled_rows` gives them.
      augment: ``(key, inputs) -> inputs``, applied to every batch.
      after_epoch: ``carry -> carry``, behind the last batch of every epoch.

    Returns:
      The carry at the end.
    """

    def one_epoch(epoch: jax.Array, carry: Any) -> Any:
        # Even numbers order, odd ones augment: where nothing does, no key is computed for it.
        rows = order(jax.random.fold_in(key, 2 * epoch), data, batch_size)

        def one_batch(index: jax.Array, carry: Any) -> Any:
            start = index * batch_size
            picked = jax.lax.dynamic_slice(rows, (start,), (batch_size,))
            inputs = data.inputs[picked]
            if augment is not None:
                augment_key = jax.random.fold_in(key, 2 * epoch + 1)
                inputs = augment(jax.random.fold_in(augment_key, index), inputs)
            real = start + jnp.arange(batch_size) < data.size
            new = step(carry, Batch(inputs, data.labels[picked], real))
            return trees.where(start < data.size, new, carry)

        carry = jax.lax.fori_loop(0, -(-data.longest // batch_size), one_batch, carry)
        return carry if after_epoch is None else after_epoch(carry)

    return jax.lax.fori_loop(0, epochs, one_epoch, carry)


def masked_updates() -> optax.GradientTransformationExtraArgs:
    """Holds parameters still where ``update_mask`` is False.

    The last link of a chain, so that momentum and weight decay cannot move them either.
    ``optax.masked`` does not serve: its mask must be static.
    """

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del params
        return jax.tree.map(lambda u, m: jnp.where(m, u, 0), updates, extra["update_mask"]), state

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def train(
    key: chex.PRNGKey, params: Params, data: ClientData, *, loss: Loss, **options: Any
) -> tuple[Params, LocalMetrics]:
    """Trains one client with a fresh optimiser: :func:`train_with_sums`, with its options, without sums."""
    params, metrics, _ = train_with_sums(
        key, params, data, loss=lambda params, batch: (loss(params, batch), ()), **options
    )
    return params, metrics


def train_with_sums(
    key: chex.PRNGKey,
    params: Params,
    data: ClientData,
    *,
    loss: Callable[[Params, Batch], tuple[jax.Array, Any]],
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch_size: int,
    order: Order = shuffled_rows,
    augment: Augment | None = None,
    after_epoch: Callable[[Params], Params] | None = None,
    proximal: float = 0.0,
    update_mask: Any = None,
    correction: Any = None,
    account: Callable[[LocalMetrics], LocalMetrics] | None = None,
) -> tuple[Params, LocalMetrics, Any]:
    """Trains one client with a fresh optimiser.

    A schedule of the optimiser's own counts the steps of one round, and starts again in the next; a warning
    says so.

    Args:
      key: A PRNG key; decides the order of examples and their augmentation.
      params: Where training starts.
      data: The client's data.
      loss: ``(params, batch) -> (float32[], sums)``: ``sums`` is any pytree of arrays, added up
        over all steps; it has to leave out what is not ``batch.real``.
      optimizer: Any optax optimiser.
      epochs: Local epochs.
      batch_size: Examples per step.
      order: See :func:`for_each_batch`.
      augment: ``(key, inputs) -> inputs``.
      after_epoch: ``params -> params``, applied at the end of every epoch.
      proximal: The factor mu of FedProx's term ``mu / 2 * ||w - w_start||^2``
        (Li et al. 2020, arXiv 1812.06127, eq. 2).
      update_mask: Pytree of bool like ``params``: False holds a parameter still.
      correction: Pytree like ``params`` that is added to every gradient.
      account: ``metrics -> metrics``: changes what counts as the client's work, where that is not all
        that is computed. The engine adds up the work of all trainings in a round.

    Returns:
      The trained parameters, metrics, and the sums.
    """
    start = params
    if has_schedule(optimizer, params):
        _warn_of_schedule(optimizer)
    if update_mask is not None:
        optimizer = optax.chain(optimizer, masked_updates())
    optimizer = optax.with_extra_args_support(optimizer)
    extra = {} if update_mask is None else {"update_mask": update_mask}

    def step(carry: Any, batch: Batch) -> Any:
        params, opt_state, loss_sum, sums = carry
        (value, terms), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        if proximal:
            grads = jax.tree.map(lambda g, w, w0: g + proximal * (w - w0), grads, params, start)
        if correction is not None:
            grads = trees.add(grads, correction)
        updates, opt_state = optimizer.update(grads, opt_state, params, **extra)
        loss_sum += (value * jnp.sum(batch.real)).astype(jnp.float32)
        return optax.apply_updates(params, updates), opt_state, loss_sum, trees.add(sums, terms)

    def end_epoch(carry: Any) -> Any:
        params, *rest = carry
        return params if after_epoch is None else after_epoch(params), *rest

    batch = batch_like(data, batch_size)
    _, terms = jax.eval_shape(loss, params, batch)
    carry = (params, optimizer.init(params), jnp.zeros((), jnp.float32), trees.zeros_like(terms))
    traced_step = flops.trace(step, carry, batch)
    params, _, loss_sum, sums = for_each_batch(
        key,
        data,
        traced_step.call,
        carry,
        epochs=epochs,
        batch_size=batch_size,
        order=order,
        augment=augment,
        after_epoch=end_epoch,
    )
    steps, examples = epochs * -(-data.size // batch_size), epochs * data.size
    slots = epochs * -(-data.longest // batch_size) * batch_size
    mean_loss = loss_sum / jnp.maximum(examples, 1)
    counts = (steps, examples, slots, steps * traced_step.flops, steps * traced_step.traffic)
    metrics = LocalMetrics(mean_loss, *(number.astype(jnp.float32) for number in counts))
    return params, count(metrics if account is None else account(metrics)), sums


def has_schedule(optimizer: optax.GradientTransformation, params: Params) -> bool:
    """Whether an optimiser of optax changes its rate, or its weight decay, from step to step.

    >>> falling = optax.cosine_decay_schedule(0.1, 9)
    >>> [has_schedule(optax.adam(rate), jnp.zeros(2)) for rate in (0.1, falling)]
    [False, True]
    """
    found = False

    def look(state: Any) -> bool:
        nonlocal found
        found |= type(state).__name__ in _SCHEDULES
        return False

    jax.tree.leaves(jax.eval_shape(optimizer.init, params), is_leaf=look)
    return found


@lru_cache(maxsize=64)  # once for an optimiser, however often training is traced
def _warn_of_schedule(optimizer: optax.GradientTransformation) -> None:
    del optimizer
    _LOGGER.warning(
        "optimizer: its schedule counts the steps of one round, and starts again in the next with a fresh "
        "optimizer; choose a constant rate, unless every round is to repeat the schedule"
    )


def supervised(
    apply: Callable[[Params, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    *,
    epochs: int,
    batch_size: int,
    augment: Augment | None,
) -> Fit:
    """Training on the cross-entropy of ``apply(params, inputs)``: :func:`train` with these choices."""
    return partial(
        train,
        loss=cross_entropy(apply),
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
        augment=augment,
    )


def unit_path(optimizer: optax.GradientTransformation, steps: jax.Array) -> jax.Array:
    """How far an optimiser moves a parameter against a gradient that is always 1.

    Divided by it, a parameter's change becomes a mean of the gradients that caused it: exactly so,
    with the optimiser's own weights, where its updates are linear in the gradients, as those of SGD
    with any momentum and schedule are (weight decay then counts as part of the gradient). With
    momentum rho, ``steps`` steps of learning rate lr give ``lr * (steps - rho * (1 - rho**steps) /
    (1 - rho)) / (1 - rho)`` (Wang et al. 2020, arXiv 2007.07481, section 4). An adaptive optimiser
    scales each parameter for itself, of which this sees nothing.

    Args:
      optimizer: Any optax optimiser that treats all parameters alike.
      steps: ``[]``, any numeric dtype; counts as 1 where it is less.

    Returns:
      ``float32[]``.

    >>> float(unit_path(optax.sgd(0.1, momentum=0.5), jnp.int32(3))) # 0.1 * (1 + 1.5 + 1.75)
    0.425...
    """
    still = jnp.zeros((), jnp.float32)

    def step(_: Any, carry: Any) -> Any:
        moved, opt_state = carry
        update, opt_state = optimizer.update(jnp.ones_like(still), opt_state, still)
        return moved - update, opt_state

    steps = jnp.maximum(steps, 1).astype(jnp.int32)
    return jax.lax.fori_loop(0, steps, step, (still, optimizer.init(still)))[0]


def batch_like(data: ClientData, batch_size: int) -> Any:
    """A minibatch's shapes."""
    return jax.eval_shape(
        lambda: Batch(
            jnp.zeros((batch_size, *data.inputs.shape[1:]), data.inputs.dtype),
            jnp.zeros(batch_size, jnp.int32),
            jnp.zeros(batch_size, bool),
        )
    )
