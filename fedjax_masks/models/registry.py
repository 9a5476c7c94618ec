"""Models by name; building a model imports its module, and with it jax."""

from typing import TYPE_CHECKING

from fedjax_masks.core.errors import UserError, unknown_name
from fedjax_masks.core.lazy import Functions
from fedjax_masks.core.signatures import Signature, signature_of

if TYPE_CHECKING:
    from fedjax_masks.models.model import Model, Problem

MODELS = Functions(
    {
        "mlp": "fedjax_masks.models.plain:mlp",
        "lenet": "fedjax_masks.models.plain:lenet",
        "cnn": "fedjax_masks.models.plain:cnn",
        "cifar-cnn": "fedjax_masks.models.plain:cifar_cnn",
        "femnist-cnn": "fedjax_masks.models.plain:femnist_cnn",
        "vgg11": "fedjax_masks.models.plain:vgg11",
        "vgg16": "fedjax_masks.models.plain:vgg16",
        "vgg16-bn": "fedjax_masks.models.plain:vgg16_bn",
        "resnet9": "fedjax_masks.models.resnet:resnet9",
        "resnet18": "fedjax_masks.models.resnet:resnet18",
        "resnet20": "fedjax_masks.models.resnet:resnet20",
        "resnet32": "fedjax_masks.models.resnet:resnet32",
        "resnet34": "fedjax_masks.models.resnet:resnet34",
    }
)
"""The factories of models, by name."""


def model_signature(name: str) -> Signature:
    """The options and the description of a model.

    Raises:
      UserError: There is no such model.

    >>> model_signature("mlp").options["hidden"].default
    (200, 200)
    """
    if name not in MODELS:
        raise unknown_name("model.name", name, MODELS)
    return signature_of(MODELS.sources[name])


def build_model(name: str, task: "Problem", **options: object) -> "Model":
    """Builds a model by name.

    Args:
      name: A key of :data:`MODELS`.
      task: The task, for the input's shape and the number of classes.
      **options: Keyword arguments of the model's factory.

    Returns:
      The model.

    Raises:
      UserError: There is no such model or option, or the model does not take inputs of the task's shape.
    """
    names = list(model_signature(name).options)
    for option in options:
        if option not in names:
            raise UserError(
                f"model.{option}={options[option]}: must be left out; "
                f"{name} takes {', '.join(names) or 'no options'}"
            )
    return MODELS[name](task, **options)
