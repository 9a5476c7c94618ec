"""The networks that the papers measure on, and their published sizes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from fedjax_masks.claims.claim import Claim, counted
from fedjax_masks.core import trees
from fedjax_masks.models import Model, build_model


class Net(NamedTuple):
    """A network, and how many parameters it is published to have.

    Attributes:
      system: Whose paper it is in.
      name: Of the model, among :data:`fedjax_masks.models.MODELS`.
      input_shape: Of one example.
      num_classes: Number of classes.
      parameters: The published number.
      options: Of the model.
    """

    system: str
    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    parameters: int
    options: Mapping[str, Any] = {}

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.input_shape))
        return f"{self.name} on inputs of {shape}, {self.num_classes} classes"

    def build(self) -> Model:
        """The model."""
        return build_model(self.name, self, **self.options)


_CIFAR, _MNIST = (32, 32, 3), (28, 28, 1)

NETS = (
    Net("fedmask", "vgg16", _CIFAR, 10, 134_301_514),
    Net("fedmask", "vgg16", _CIFAR, 64, 134_522_752),
    Net("fedmask", "mlp", (561,), 6, 1_103_366, {"hidden": (1024, 512)}),
    Net("fedskel", "lenet", _MNIST, 10, 431_080),
    Net("fedskel", "cifar-cnn", _CIFAR, 10, 64_102),
    Net("fedskel", "resnet18", _CIFAR, 10, 11_173_962),
    Net("adp", "resnet20", _CIFAR, 10, 269_722),
    Net("adp", "resnet32", _CIFAR, 10, 464_154),
    Net("ecofed", "vgg11", _CIFAR, 10, 34_440_970),
    Net("ecofed", "resnet9", _CIFAR, 10, 9_395_722),
)


def sizes(system: str) -> list[Claim]:
    """The rows of one system's networks."""
    return [
        counted(
            system,
            f"parameters of {net}",
            net.parameters,
            parameter_count(net.build()),
            "",
        )
        for net in NETS
        if net.system == system
    ]


def parameter_count(model: Model) -> int:
    """The number of a model's parameters."""
    return trees.size(jax.eval_shape(model.init, jax.random.key(0)))
