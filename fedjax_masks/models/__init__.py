"""Models, and what the algorithms need to know of them."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType

from fedjax_masks.models.layers import Hook, Layer
from fedjax_masks.models.model import Kernel, Model, Problem, make_model
from fedjax_masks.models.plain import cifar_cnn, cnn, femnist_cnn, lenet, mlp, vgg11, vgg16
from fedjax_masks.models.resnet import resnet18, resnet20, resnet32, resnet34

MODELS: Mapping[str, Callable[..., Model]] = MappingProxyType(
    {
        "mlp": mlp,
        "lenet": lenet,
        "cnn": cnn,
        "cifar-cnn": cifar_cnn,
        "femnist-cnn": femnist_cnn,
        "vgg11": vgg11,
        "vgg16": vgg16,
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
      ValueError: No such model or option, or inputs of a shape that the model does not take.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.0)
        raise ValueError(f"model {name!r} is unknown; did you mean {near[0]!r}? Known: {', '.join(MODELS)}")
    accepted = list(inspect.signature(MODELS[name]).parameters)[1:]
    for option in options:
        if option not in accepted:
            raise ValueError(f"model {name!r} has no option {option!r}; it takes {', '.join(accepted) or 'none'}")
    return MODELS[name](task, **options)


__all__ = [
    "MODELS",
    "Hook",
    "Kernel",
    "Layer",
    "Model",
    "Problem",
    "build_model",
    "cifar_cnn",
    "cnn",
    "femnist_cnn",
    "lenet",
    "make_model",
    "mlp",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "vgg11",
    "vgg16",
]
