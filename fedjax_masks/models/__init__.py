"""Models, and what the algorithms need to know of them."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType

from fedjax_masks.core.errors import UserError, unknown
from fedjax_masks.models.gated import Gate, gated
from fedjax_masks.models.layers import Hook, Layer
from fedjax_masks.models.model import Kernel, Model, Problem, make_model, prunable_kernels, weighted_kernels
from fedjax_masks.models.plain import cifar_cnn, cnn, femnist_cnn, lenet, mlp, vgg11, vgg16
from fedjax_masks.models.resnet import resnet9, resnet18, resnet20, resnet32, resnet34
from fedjax_masks.models.split import Halves, cut_model

MODELS: Mapping[str, Callable[..., Model]] = MappingProxyType(
    {
        "mlp": mlp,
        "lenet": lenet,
        "cnn": cnn,
        "cifar-cnn": cifar_cnn,
        "femnist-cnn": femnist_cnn,
        "vgg11": vgg11,
        "vgg16": vgg16,
        "resnet9": resnet9,
        "resnet18": resnet18,
        "resnet20": resnet20,
        "resnet32": resnet32,
        "resnet34": resnet34,
    }
)


def build_model(name: str, task: Problem, **options) -> Model:
    """Builds a model by name.

    Args:
      name: A key of ``MODELS``.
      task: Gives the input's shape and the number of classes.
      **options: Keyword arguments of the model's function.

    Returns:
      The model.

    Raises:
      UserError: No such model or option, or inputs of a shape that the model does not take.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    accepted = list(inspect.signature(MODELS[name]).parameters)[1:]
    for option in options:
        if option not in accepted:
            raise UserError(f"model option {option!r}: {name!r} takes {', '.join(accepted) or 'no options'}")
    return MODELS[name](task, **options)


__all__ = [
    "MODELS",
    "Gate",
    "Halves",
    "Hook",
    "Kernel",
    "Layer",
    "Model",
    "Problem",
    "build_model",
    "cifar_cnn",
    "cnn",
    "cut_model",
    "femnist_cnn",
    "gated",
    "lenet",
    "make_model",
    "mlp",
    "prunable_kernels",
    "resnet9",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "vgg11",
    "vgg16",
    "weighted_kernels",
]
