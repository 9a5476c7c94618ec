"""A model in two halves: the device's, up to a stage, and the server's, behind it."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from fedjax_masks.core.algorithm import Params
from fedjax_masks.core.errors import unknown
from fedjax_masks.models.model import Model


class Halves(NamedTuple):
    """What split training needs of a model.

    Attributes:
      cut: The device's last stage.
      apart: ``params -> (device's, server's)``, nested dicts keyed by stage.
      activate: ``(device's params, inputs) -> activations[batch, ...]``.
      finish: ``(server's params, activations) -> logits[batch, num_classes]``.
    """

    cut: str
    apart: Callable[[Params], tuple[Params, Params]]
    activate: Callable[[Params, jax.Array], jax.Array]
    finish: Callable[[Params, jax.Array], jax.Array]


def cut_model(model: Model, split: str | None = None) -> Halves:
    """Cuts a model in two.

    Args:
      model: The model.
      split: The device's last stage, one of ``model.splits``; None is the second, or the first of
        a model that has no other.

    Raises:
      UserError: The model cannot be cut there.

    Example:
      >>> from types import SimpleNamespace
      >>> from fedjax_masks.models import cnn
      >>> halves = cut_model(cnn(SimpleNamespace(input_shape=(8, 8, 1), num_classes=2)), "conv1")
      >>> device, server = halves.apart({"conv1": 1, "conv2": 2, "dense1": 3, "dense2": 4})
      >>> device, sorted(server)
      ({'conv1': 1}, ['conv2', 'dense1', 'dense2'])
    """
    if not model.splits:
        raise unknown("model", model.name, ["one with hidden layers"])
    cut = model.splits[:2][-1] if split is None else split
    if cut not in model.splits:
        raise unknown("split", cut, model.splits)
    on_device = model.splits[: model.splits.index(cut) + 1]

    def apart(params: Params) -> tuple[Params, Params]:
        device = {name: params[name] for name in on_device}
        return device, {name: stage for name, stage in params.items() if name not in device}

    def activate(device: Params, inputs: jax.Array) -> jax.Array:
        return model.forward(device, inputs, stop=cut)[0]

    def finish(params: Params, activations: jax.Array) -> jax.Array:
        return model.forward(params, activations, start=cut)[0]

    return Halves(cut, apart, activate, finish)
