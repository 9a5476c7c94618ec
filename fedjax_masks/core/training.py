"""Local training of one client: the trainer that algorithms share.

The loop over minibatches is :func:`fedjax_masks.core.minibatches.for_each_batch`; its names, and those of
:mod:`fedjax_masks.core.losses` and :mod:`fedjax_masks.core.optimizers`, are also importable from here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypedDict

import chex
import jax
import jax.numpy as jnp
import optax

from fedjax_masks.core import flops, target, trees
from fedjax_masks.core.algorithm import ClientData, Info, Round, Work
from fedjax_masks.core.choices import Precision
from fedjax_masks.core.losses import Loss as Loss
from fedjax_masks.core.losses import SummingLoss as SummingLoss
from fedjax_masks.core.losses import cross_entropy as cross_entropy
from fedjax_masks.core.losses import mean_cross_entropy as mean_cross_entropy
from fedjax_masks.core.losses import mean_over_real as mean_over_real
from fedjax_masks.core.minibatches import Augment as Augment
from fedjax_masks.core.minibatches import Batch as Batch
from fedjax_masks.core.minibatches import Order as Order
from fedjax_masks.core.minibatches import batch_like as batch_like
from fedjax_masks.core.minibatches import for_each_batch as for_each_batch
from fedjax_masks.core.minibatches import shuffled_rows as shuffled_rows
from fedjax_masks.core.optimizers import ScheduledRound as ScheduledRound
from fedjax_masks.core.optimizers import has_schedule as has_schedule
from fedjax_masks.core.optimizers import masked_updates as masked_updates
from fedjax_masks.core.optimizers import unit_path as unit_path
from fedjax_masks.core.optimizers import warn_of_schedule
from fedjax_masks.core.options import Count, Rate, check
from fedjax_masks.core.types import Params, PyTree
from fedjax_masks.core.work import mark_work

Gradient = Callable[[Params, Params, Params], Params]
"""``(grads, params, start) -> grads``: changes every gradient before the optimizer sees the gradient."""


class Fit(Protocol):
    """Local training with a fixed loss, for algorithms that only exchange and average parameters."""

    def __call__(
        self,
        round: Round,
        params: Params,
        data: ClientData,
        *,
        update_mask: PyTree = None,
        gradient: Gradient | None = None,
    ) -> tuple[Params, Info]: ...


class TrainingOptions(TypedDict, total=False):
    """The fields of :class:`Trainer` that an algorithm's factory also takes one by one."""

    epochs: int
    batch_size: int
    schedule: optax.Schedule | None
    clip_norm: float | None
    augment: Augment | None
    precision: Precision


@dataclass(frozen=True)
class Trainer:
    """Local training of one client, as one value: an optimizer and its surroundings.

    Attributes:
      optimizer: An optax optimizer, fresh in every round.
      epochs: Passes over the client's data.
      batch_size: Examples per step; the last minibatch of an epoch may be smaller.
      schedule: ``(round index) -> factor`` of all updates: an ``optax.Schedule`` over rounds. A schedule
        inside the optimizer counts the steps of one round, and starts again in the next round.
      clip_norm: The largest global l2 norm of a gradient; None for no limit.
      augment: ``(key, inputs) -> inputs``, applied to every minibatch.
      precision: The precision of matrix products, where a platform has several; see
        ``jax.default_matmul_precision``.

    Raises:
      UserError: A value is out of range.

    Example:
      >>> trainer = Trainer(optax.sgd(0.1), epochs=5, schedule=optax.exponential_decay(1.0, 1, 0.99))
      >>> Trainer(optax.sgd(0.1), epochs=0)
      Traceback (most recent call last):
      fedjax_masks.core.errors.UserError: epochs=0: must be an integer at least 1 and at most 2147483647
    """

    optimizer: optax.GradientTransformation
    epochs: int = 1
    batch_size: int = 10
    schedule: optax.Schedule | None = None
    clip_norm: float | None = None
    augment: Augment | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        check("epochs", self.epochs, Count)
        check("batch_size", self.batch_size, Count)
        check("clip_norm", self.clip_norm, Rate | None)
        check("precision", self.precision, Precision)

    def __call__(
        self, round: Round, params: Params, data: ClientData, loss: Loss, **options: PyTree
    ) -> tuple[Params, Info]:
        """Trains the parameters: :meth:`summing`, with the same options, and a loss without sums."""
        params, info, _ = self.summing(
            round, params, data, lambda params, batch, key: (loss(params, batch, key), ()), **options
        )
        return params, info

    def summing(
        self,
        round: Round,
        params: Params,
        data: ClientData,
        loss: SummingLoss,
        *,
        update_mask: PyTree = None,
        gradient: Gradient | None = None,
        after_epoch: Callable[[Params], Params] | None = None,
        order: Order | None = None,
        account: Callable[[Work], Work] | None = None,
    ) -> tuple[Params, Info, PyTree]:
        """Trains the parameters, and sums the second result of the loss over all steps.

        Args:
          round: The round; its key decides the order of examples, augmentation and the keys of the loss.
          params: The parameters at the start.
          data: The client's data.
          loss: ``(params, batch, key) -> (float32[], sums)``.
          update_mask: Pytree of bool like ``params``: False holds a parameter still.
          gradient: ``(grads, params, start) -> grads``: a proximal term, a control variate.
          after_epoch: ``params -> params``, applied at the end of every epoch.
          order: See :func:`for_each_batch`.
          account: ``work -> work``: the work that counts as the client's, given the computed work.

        Returns:
          The trained parameters, loss and work, and the sums.
        """
        optimizer = self._optimizer(params, update_mask)
        extra = {} if update_mask is None else {"update_mask": update_mask}
        factor = None if self.schedule is None else self.schedule(round.index)

        def step(carry: PyTree, batch: Batch, key: chex.PRNGKey) -> PyTree:
            params, opt_state, loss_sum, sums = carry
            # Here and not around the loop: the optimizer's own arithmetic keeps full precision.
            with jax.default_matmul_precision(self.precision):
                (value, terms), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
            grads = grads if gradient is None else gradient(grads, params, start)
            updates, opt_state = optimizer.update(grads, opt_state, params, **extra)
            updates = updates if factor is None else trees.scale(updates, factor)
            loss_sum += (value * jnp.sum(batch.real)).astype(jnp.float32)
            return optax.apply_updates(params, updates), opt_state, loss_sum, trees.add(sums, terms)

        def end_epoch(carry: PyTree) -> PyTree:
            params, *rest = carry
            return params if after_epoch is None else after_epoch(params), *rest

        start, batch, key = params, batch_like(data, self.batch_size), jax.random.key(0)
        _, terms = jax.eval_shape(loss, params, batch, key)
        # Under a vmap, XLA would keep the loop's copies of the start to compare the results with them.
        params = params if target.is_cpu() else jax.lax.optimization_barrier(params)
        carry = (params, optimizer.init(params), jnp.zeros((), jnp.float32), trees.zeros_like(terms))
        # One trace serves both the FLOP count and the loop, whose body jax would otherwise trace again.
        traced = flops.trace(step, carry, batch, key)
        params, _, loss_sum, sums = for_each_batch(
            round.key,
            data,
            traced.call,
            carry,
            epochs=self.epochs,
            batch_size=self.batch_size,
            order=order or shuffled_rows,
            augment=self.augment,
            after_epoch=end_epoch,
        )
        work = self._work(data, traced)
        mean_loss = loss_sum / jnp.maximum(self.epochs * data.size, 1)
        return params, report_work(mean_loss, work if account is None else account(work)), sums

    def supervised(self, apply: Callable[[Params, jax.Array], jax.Array]) -> Fit:
        """Local training on the mean cross-entropy of ``apply(params, inputs)``."""
        loss = cross_entropy(apply)
        return lambda round, params, data, **options: self(round, params, data, loss, **options)

    def steps(self, data: ClientData) -> jax.Array:
        """``float32[]``: the number of optimizer steps of a training on the data."""
        return (self.epochs * -(-data.size // self.batch_size)).astype(jnp.float32)

    def path(self, round: Round, data: ClientData) -> jax.Array:
        """``float32[]``: the optimizer's path in a round: :func:`unit_path` times the schedule's factor."""
        length = unit_path(self.optimizer, self.steps(data))
        return length if self.schedule is None else length * self.schedule(round.index)

    def _optimizer(self, params: Params, update_mask: PyTree) -> optax.GradientTransformationExtraArgs:
        if has_schedule(self.optimizer, params) and not isinstance(self.optimizer, ScheduledRound):
            warn_of_schedule(self.optimizer)
        links = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        # The mask is the last link: momentum and weight decay add to updates after a mask on gradients.
        links += [self.optimizer] if update_mask is None else [self.optimizer, masked_updates()]
        return optax.with_extra_args_support(links[0] if len(links) == 1 else optax.chain(*links))

    def _work(self, data: ClientData, step: flops.Trace) -> Work:
        steps, most_steps = self.steps(data), -(-data.longest // self.batch_size)
        examples = (self.epochs * data.size).astype(jnp.float32)
        slots = (self.epochs * most_steps * self.batch_size).astype(jnp.float32)
        return Work(steps, examples, slots, steps * step.flops, steps * step.traffic)


LocalTraining = Trainer | optax.GradientTransformation
"""The trainer argument of factories: a trainer, or an optimizer, which means a trainer with the defaults."""


def as_trainer(trainer: LocalTraining, options: TrainingOptions | None = None) -> Trainer:
    """The trainer of an algorithm's factory; a bare optimizer becomes a trainer with the defaults.

    Args:
      trainer: A trainer, or an optax optimizer.
      options: Fields that replace those of the trainer.

    Raises:
      UserError: A value is out of range.

    >>> as_trainer(optax.sgd(0.1), {"epochs": 3}).epochs
    3
    """
    base = trainer if isinstance(trainer, Trainer) else Trainer(trainer)
    return replace(base, **(options or {}))


def report_work(loss: jax.Array, work: Work) -> Info:
    """Reports the work of a loop over minibatches, which then counts as the client's or the server's.

    A trainer calls this function. An algorithm with a loop of its own calls it, too, wherever the loop is: in
    a branch, the work counts if the branch is taken; in an outer loop, it counts each time.

    Args:
      loss: The mean loss, or any other result of the work.
      work: The work.

    Returns:
      The loss and the work as facts.
    """
    return Info(*mark_work(loss, work))
