"""Models cut in two: a device's half up to a stage, and the server's half after the stage."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from fedjax_masks.core.algorithm import Params
from fedjax_masks.core.errors import UserError, unknown_name
from fedjax_masks.models.model import Model


class Halves(NamedTuple):
    """The two halves of a model, for split training.

    Attributes:
      cut: The device's last stage.
      divide: ``params -> (device, server)``: the parameters of the halves, nested dicts keyed by stage.
      activate: ``(device, inputs) -> activations[batch, ...]``.
      finish: ``(server, activations) -> logits[batch, num_classes]``.
    """

    cut: str
    divide: Callable[[Params], tuple[Params, Params]]
    activate: Callable[[Params, jax.Array], jax.Array]
    finish: Callable[[Params, jax.Array], jax.Array]


def cut_model(model: Model, split: str | None = None) -> Halves:
    """Cuts a model in two.

    Args:
      model: The model.
      split: The device's last stage, one of ``model.splits``; None is the second stage, or the only one.

    Raises:
      UserError: The model has no hidden layers, or no such stage.

    Example:
      >>> from types import SimpleNamespace
      >>> from fedjax_masks.models import cnn
      >>> halves = cut_model(cnn(SimpleNamespace(input_shape=(8, 8, 1), num_classes=2)), "conv1")
      >>> device, server = halves.divide({"conv1": 1, "conv2": 2, "dense1": 3, "dense2": 4})
      >>> device, sorted(server)
      ({'conv1': 1}, ['conv2', 'dense1', 'dense2'])
    """
    if not model.splits:
        raise UserError(f"model={model.name!r}: must have hidden layers to be cut; choose another model")
    cut = model.splits[:2][-1] if split is None else split
    if cut not in model.splits:
        raise unknown_name("split", cut, model.splits)
    on_device = model.splits[: model.splits.index(cut) + 1]

    def divide(params: Params) -> tuple[Params, Params]:
        device = {name: params[name] for name in on_device}
        return device, {name: stage for name, stage in params.items() if name not in device}

    def activate(device: Params, inputs: jax.Array) -> jax.Array:
        return model.forward(device, inputs, stop=cut)[0]

    def finish(server: Params, activations: jax.Array) -> jax.Array:
        return model.forward(server, activations, start=cut)[0]

    return Halves(cut, divide, activate, finish)
