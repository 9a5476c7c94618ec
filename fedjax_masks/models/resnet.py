"""Residual networks for small images (He et al., 2016): 3 x 3 stem, basic blocks, global pooling."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from fedjax_masks.models.functional import global_average_pool, identity, relu_max_pool
from fedjax_masks.models.layers import BasicBlock, Chain, Conv, Dense, Norm
from fedjax_masks.models.model import Model, Problem, check_image, make_model


def resnet9(task: Problem, *, norm: Norm = "batch", channels: Sequence[int] = (64, 128, 256, 512)) -> Model:
    """ResNet-9 of EcoFed (Wu et al., 2024): two pooled convolutions, three blocks; 9,395,722 parameters.

    Convolutions have a bias beside their normalization; shortcuts have a bias and no normalization.
    """
    check_image("resnet9", task.input_shape)

    def network(widths: Sequence[int]) -> Chain:
        first, second, *rest, classes = widths
        conv = functools.partial(Conv, size=3, norm=norm, activation=relu_max_pool)
        stages = {
            "conv1": functools.partial(conv, first),
            "conv2": functools.partial(conv, second, removable=False),
        }
        blocks = _blocks((2, 2, 1), (True, True, False), rest, norm=norm, biased=True)
        return Chain(stages | blocks | _output(classes))

    one, two, three, four = channels
    widths = (one, two, three, three, three, four, four, four, four, four, task.num_classes)
    return make_model("resnet9", task, network, widths)


def resnet18(task: Problem, *, norm: Norm = "batch", channels: Sequence[int] = (64, 128, 256, 512)) -> Model:
    """ResNet-18 with a CIFAR stem and projection shortcuts; 11,173,962 parameters on CIFAR-10."""
    return _resnet("resnet18", task, (2, 2, 2, 2), channels, project=True, norm=norm)


def resnet34(task: Problem, *, norm: Norm = "batch", channels: Sequence[int] = (64, 128, 256, 512)) -> Model:
    """ResNet-34 with a CIFAR stem and projection shortcuts; 21,282,122 parameters on CIFAR-10."""
    return _resnet("resnet34", task, (3, 4, 6, 3), channels, project=True, norm=norm)


def resnet20(task: Problem, *, norm: Norm = "batch", channels: Sequence[int] = (16, 32, 64)) -> Model:
    """ResNet-20 with parameter-free shortcuts (option A); 269,722 parameters on CIFAR-10."""
    return _resnet("resnet20", task, (3, 3, 3), channels, project=False, norm=norm)


def resnet32(task: Problem, *, norm: Norm = "batch", channels: Sequence[int] = (16, 32, 64)) -> Model:
    """ResNet-32 with parameter-free shortcuts (option A); 464,154 parameters on CIFAR-10."""
    return _resnet("resnet32", task, (5, 5, 5), channels, project=False, norm=norm)


def _resnet(
    name: str, task: Problem, depths: Sequence[int], channels: Sequence[int], *, project: bool, norm: Norm
) -> Model:
    check_image(name, task.input_shape)
    strides = [
        2 if block == 0 and stage > 0 else 1 for stage, depth in enumerate(depths) for block in range(depth)
    ]
    widths = [channels[0]]
    for width, depth, stage in zip(channels, depths, range(len(depths))):
        projections = [project and block == 0 and stage > 0 for block in range(depth)]
        widths += [width for projection in projections for _ in range(3 if projection else 2)]
    network = functools.partial(_residual_chain, strides, project, norm)
    return make_model(name, task, network, (*widths, task.num_classes))


def _residual_chain(strides: Sequence[int], project: bool, norm: Norm, widths: Sequence[int]) -> Chain:
    """Makes the network: stem, blocks and output layer."""
    first, *rest, classes = widths
    stem = functools.partial(Conv, norm=norm, use_bias=norm is None, removable=False, role="stem")
    projections = [project and stride > 1 for stride in strides]
    blocks = _blocks(strides, projections, rest, norm=norm)
    return Chain({"conv1": functools.partial(stem, first, 3)} | blocks | _output(classes))


def _blocks(
    strides: Sequence[int], projections: Sequence[bool], widths: Sequence[int], **options: Any
) -> dict[str, Callable]:
    """Makes blocks; each takes an inner width, an outer width, and a width for its projection if any."""
    remaining = iter(widths)
    stages = {}
    for i, (stride, projection) in enumerate(zip(strides, projections, strict=True), start=1):
        inner, outer, *_ = (next(remaining) for _ in range(3 if projection else 2))
        stages[f"block{i}"] = functools.partial(BasicBlock, inner, outer, stride, projection, **options)
    return stages


def _output(classes: int) -> dict[str, Callable]:
    layer = functools.partial(Dense, reduce=global_average_pool, activation=identity, removable=False)
    return {"dense": functools.partial(layer, classes)}
