"""Models: networks as records of pure functions. Names are imported at first use."""

from typing import TYPE_CHECKING

from fedjax_masks.core.lazy import exports

if TYPE_CHECKING:
    from fedjax_masks.models.gating import Gate, gated
    from fedjax_masks.models.layers import Hook, Layer
    from fedjax_masks.models.model import (
        Kernel,
        Model,
        Problem,
        make_model,
        prunable_kernels,
        weighted_kernels,
    )
    from fedjax_masks.models.plain import cifar_cnn, cnn, femnist_cnn, lenet, mlp, vgg11, vgg16, vgg16_bn
    from fedjax_masks.models.registry import MODELS, build_model
    from fedjax_masks.models.resnet import resnet9, resnet18, resnet20, resnet32, resnet34
    from fedjax_masks.models.split import Halves, cut_model

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
    "vgg16_bn",
    "weighted_kernels",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "gating": ("Gate", "gated"),
        "layers": ("Hook", "Layer"),
        "model": ("Kernel", "Model", "Problem", "make_model", "prunable_kernels", "weighted_kernels"),
        "plain": ("cifar_cnn", "cnn", "femnist_cnn", "lenet", "mlp", "vgg11", "vgg16", "vgg16_bn"),
        "registry": ("MODELS", "build_model"),
        "resnet": ("resnet9", "resnet18", "resnet20", "resnet32", "resnet34"),
        "split": ("Halves", "cut_model"),
    },
)
