"""Properties of optax optimizers, and a link that holds parameters still."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import optax

from fedjax_masks.core.algorithm import Params
from fedjax_masks.core.messages import warn
from fedjax_masks.core.types import PyTree

_SCHEDULES = {"ScaleByScheduleState", "WrappedScheduleState", "WeightDecaySchedule", "ReduceLROnPlateauState"}
"""States of optax that count steps for a schedule. Adam's count corrects a bias, and is none of them."""


class ScheduledRound(optax.GradientTransformation):
    """An optimizer whose schedule is meant for the steps of one round; training does not warn of it.

    >>> rate = optax.cosine_decay_schedule(0.1, 9)
    >>> has_schedule(ScheduledRound(*optax.sgd(rate)), jnp.zeros(2))
    True
    """


def masked_updates() -> optax.GradientTransformationExtraArgs:
    """Sets updates to 0 where the extra argument ``update_mask`` is False.

    The link must be the last of a chain, so that momentum and weight decay cannot move a parameter either.
    ``optax.masked`` does not serve, because its mask must be static.
    """

    def init(params: PyTree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: PyTree) -> PyTree:
        del params
        return jax.tree.map(lambda u, m: jnp.where(m, u, 0), updates, extra["update_mask"]), state

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def has_schedule(optimizer: optax.GradientTransformation, params: Params) -> bool:
    """Whether an optax optimizer changes its rate, or its weight decay, from step to step.

    >>> falling = optax.cosine_decay_schedule(0.1, 9)
    >>> [has_schedule(optax.adam(rate), jnp.zeros(2)) for rate in (0.1, falling)]
    [False, True]
    """
    names: set[str] = set()

    def note(state: PyTree) -> bool:
        names.add(type(state).__name__)
        return False

    jax.tree.leaves(jax.eval_shape(optimizer.init, params), is_leaf=note)
    return not names.isdisjoint(_SCHEDULES)


@lru_cache(maxsize=64)  # once per optimizer, however often its training is traced
def warn_of_schedule(optimizer: optax.GradientTransformation) -> None:
    """Logs a warning that the schedule of an optimizer starts again in every round."""
    del optimizer
    warn(
        "optimizer: its schedule counts the steps of one round, and starts again in the next with a fresh "
        "optimizer; choose a constant rate, unless every round is to repeat the schedule"
    )


def unit_path(optimizer: optax.GradientTransformation, steps: jax.Array) -> jax.Array:
    """The distance that an optimizer moves a parameter against a gradient that is always 1.

    Divided by this distance, a parameter's change becomes a mean of the gradients that caused it. The mean is
    exact, with the optimizer's own weights, where updates are linear in the gradients, as those of SGD with
    any momentum and schedule are (weight decay then counts as part of the gradient). With momentum rho,
    ``steps`` steps of learning rate lr give ``lr * (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)``
    (Wang et al. 2020, arXiv 2007.07481, section 4). An adaptive optimizer scales each parameter by its own
    gradients, which this distance leaves out.

    Args:
      optimizer: Any optax optimizer that treats all parameters alike.
      steps: ``[]``, any numeric dtype; counts as 1 where it is less.

    Returns:
      ``float32[]``.

    >>> float(unit_path(optax.sgd(0.1, momentum=0.5), jnp.int32(3))) # 0.1 * (1 + 1.5 + 1.75)
    0.425...
    """
    still = jnp.zeros((), jnp.float32)

    def step(_: PyTree, carry: PyTree) -> PyTree:
        length, opt_state = carry
        update, opt_state = optimizer.update(jnp.ones_like(still), opt_state, still)
        return length - update, opt_state

    steps = jnp.maximum(steps, 1).astype(jnp.int32)
    return jax.lax.fori_loop(0, steps, step, (still, optimizer.init(still)))[0]
