"""Networks of the papers, with their numbers of parameters.

The numbers of FedSkel, ADP and EcoFed follow from the networks of the authors' code; those of FedMask we
derived from the size of a dense VGG16 (table 5) and from the layers (table 4).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from fedjax_masks.claims.claim import Basis, Claim
from fedjax_masks.claims.counts import exact_claim
from fedjax_masks.core import trees
from fedjax_masks.models import Model, build_model


class Net(NamedTuple):
    """A network of a paper.

    Attributes:
      system: The algorithm that the paper presents.
      name: The model's name, a key of :data:`fedjax_masks.models.MODELS`.
      input_shape: The shape of one example.
      num_classes: The number of classes.
      parameters: The number of parameters.
      options: Options of the model.
      basis: The origin of the number.
    """

    system: str
    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    parameters: int
    options: Mapping[str, Any] = {}
    basis: Basis = "authors' code"

    def build(self) -> Model:
        """The model."""
        return build_model(self.name, self, **self.options)


_CIFAR, _MNIST = (32, 32, 3), (28, 28, 1)

NETS = (
    Net("fedmask", "vgg16", _CIFAR, 10, 134_301_514, basis="derived here"),
    Net("fedmask", "vgg16", _CIFAR, 64, 134_522_752, basis="derived here"),
    Net("fedmask", "mlp", (561,), 6, 1_103_366, {"hidden": (1024, 512)}, basis="derived here"),
    Net("fedskel", "lenet", _MNIST, 10, 431_080),
    Net("fedskel", "cifar-cnn", _CIFAR, 10, 64_102),
    Net("fedskel", "resnet18", _CIFAR, 10, 11_173_962),
    Net("adp", "resnet20", _CIFAR, 10, 269_722),
    Net("adp", "resnet32", _CIFAR, 10, 464_154),
    Net("ecofed", "vgg11", _CIFAR, 10, 34_440_970),
    Net("ecofed", "resnet9", _CIFAR, 10, 9_395_722),
)


def sizes(system: str) -> list[Claim]:
    """Claims on the sizes of one system's networks."""
    return [
        exact_claim(
            system,
            f"parameters of {net.name}, {net.num_classes} classes",
            net.parameters,
            parameter_count(net.build()),
            "",
            conditions=f"inputs of shape {' x '.join(map(str, net.input_shape))}",
            basis=net.basis,
        )
        for net in NETS
        if net.system == system
    ]


def parameter_count(model: Model) -> int:
    """The number of a model's parameters."""
    return trees.size(jax.eval_shape(model.init, jax.random.key(0)))
