"""Algorithms of the registry, built from their options."""

from collections.abc import Mapping
from typing import Any, Unpack

import optax

from fedjax_masks.algorithms.registry import get, optimizer_options
from fedjax_masks.core.algorithm import FederatedAlgorithm
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.training import Trainer, TrainingOptions
from fedjax_masks.models import Model

_WITH_MOMENTUM = ("sgd", "rmsprop")


def make_optimizer(
    name: str, lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0, **options: Any
) -> optax.GradientTransformation:
    """An optimizer of optax by its name.

    Args:
      name: One of :data:`~fedjax_masks.algorithms.registry.OptimizerName`.
      lr: Learning rate.
      momentum: Only for those that have it: sgd and rmsprop.
      weight_decay: Decoupled for adamw; for the others, added to the gradient.
      **options: Passed on to optax.

    Raises:
      UserError: Momentum for an optimizer that has none.
    """
    if momentum and name not in _WITH_MOMENTUM:
        raise UserError(f"momentum={momentum}: must go with {' or '.join(_WITH_MOMENTUM)}; {name} has none")
    if momentum:
        options["momentum"] = momentum
    if name == "adamw":
        return optax.adamw(lr, weight_decay=weight_decay, **options)
    optimizer = getattr(optax, name)(lr, **options)
    if not weight_decay:
        return optimizer
    return optax.chain(optax.add_decayed_weights(weight_decay), optimizer)


def build(
    name: str,
    model: Model,
    *,
    options: Mapping[str, Any],
    server_optimizer: optax.GradientTransformation | None = None,
    **training: Unpack[TrainingOptions],
) -> FederatedAlgorithm:
    """Builds an algorithm by name.

    Args:
      name: One of :func:`~fedjax_masks.algorithms.registry.names`.
      model: The model.
      options: The factory's keyword-only arguments and the keys of the clients' optimizer.
      server_optimizer: For algorithms that have one.
      **training: Fields of :class:`~fedjax_masks.core.training.Trainer`, without the optimizer.

    Raises:
      UserError: The algorithm does not have what was asked for, or an option is out of range.
    """
    entry = get(name)
    keys = {key: key.removeprefix(entry.prefix) for key in optimizer_options(name)}
    others = {key: value for key, value in options.items() if key not in keys}
    chosen = {keys[key]: value for key, value in options.items() if key in keys}
    if server_optimizer is not None:
        others["server_optimizer"] = server_optimizer
    optimizer = make_optimizer(chosen.pop("optimizer", entry.optimizer), chosen.pop("lr", entry.lr), **chosen)
    return entry.factory(model, Trainer(optimizer, **training), **others)
