"""Networks without shortcuts: multi-layer perceptron, LeNet, small convolutional networks, and VGG."""

import functools
from collections.abc import Callable, Sequence

import jax

from fedjax_masks.core.options import Count, Rate
from fedjax_masks.models.functional import adaptive_average_pool, flatten, identity, relu_max_pool
from fedjax_masks.models.layers import Activation, Chain, Conv, Dense, Norm
from fedjax_masks.models.model import Model, Problem, check_image, make_model


def mlp(task: Problem, *, hidden: Sequence[Count] = (200, 200), norm: Norm = None) -> Model:
    """A multi-layer perceptron on the flattened input.

    Args:
      task: The task, for the input's shape and the number of classes.
      hidden: Widths of the hidden layers.
      norm: ``"batch"``, ``"group"`` or None.
    """

    def network(widths: Sequence[int]) -> Chain:
        return Chain(_dense_layers(widths, norm=norm))

    return make_model("mlp", task, network, (*hidden, task.num_classes))


def lenet(task: Problem, *, width: Rate = 1.0) -> Model:
    """LeNet 20-50-500 (LeCun et al., 1998, in its Caffe version); 431,080 parameters on MNIST.

    Args:
      task: The task, for the input's shape and the number of classes.
      width: Factor of the widths of all hidden layers.
    """
    return _lenet("lenet", task, (20, 50, 500), width)


def cifar_cnn(task: Problem, *, width: Rate = 1.0) -> Model:
    """The small CIFAR network 6-16-120-100 of LG-FedAvg (Liang et al., 2020); 64,102 parameters.

    Args:
      task: The task, for the input's shape and the number of classes.
      width: Factor of the widths of all hidden layers.
    """
    return _lenet("cifar-cnn", task, (6, 16, 120, 100), width)


def femnist_cnn(task: Problem) -> Model:
    """The FEMNIST network of Reddi et al. (2021), without dropout; 1,206,590 parameters on 62 classes."""
    check_image("femnist-cnn", task.input_shape)

    def network(widths: Sequence[int]) -> Chain:
        first, second, *dense = widths
        conv = functools.partial(Conv, size=3, padding="VALID")
        conv1 = functools.partial(conv, first)
        conv2 = functools.partial(conv, second, activation=relu_max_pool)
        return Chain({"conv1": conv1, "conv2": conv2} | _dense_layers(dense))

    return make_model("femnist-cnn", task, network, (32, 64, 128, task.num_classes))


def cnn(task: Problem, *, norm: Norm = None) -> Model:
    """A small network for images of any size: 3 x 3 convolutions 32-64, each pooled by 2, and dense 128.

    Args:
      task: The task, for the input's shape and the number of classes.
      norm: ``"batch"``, ``"group"`` or None, after the convolutions.
    """
    check_image("cnn", task.input_shape)

    def network(widths: Sequence[int]) -> Chain:
        first, second, *dense = widths
        conv = functools.partial(Conv, size=3, norm=norm, activation=relu_max_pool)
        convs = {"conv1": functools.partial(conv, first), "conv2": functools.partial(conv, second)}
        return Chain(convs | _dense_layers(dense))

    return make_model("cnn", task, network, (32, 64, 128, task.num_classes))


def vgg11(
    task: Problem,
    *,
    norm: Norm = "batch",
    channels: Sequence[Count] = (64, 128, 256, 256, 512, 512, 512, 512),
    hidden: Sequence[Count] = (4096, 4096),
) -> Model:
    """VGG11 (Simonyan & Zisserman, 2015) for small images; 34,440,970 parameters on CIFAR-10.

    The last pooling is left out, so that the classifier reads 2 x 2 x 512 features of a
    32 x 32 image.

    Args:
      task: The task, for the input's shape and the number of classes.
      norm: ``"batch"``, ``"group"`` or None, after the convolutions, which keep their bias.
      channels: Widths of the eight convolutions.
      hidden: Widths of the two hidden dense layers.
    """
    return _vgg("vgg11", task, (*channels, *hidden), pools=(1, 2, 4, 6), norm=norm)


def vgg16(
    task: Problem,
    *,
    norm: Norm = None,
    channels: Sequence[Count] = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
    hidden: Sequence[Count] = (4096, 4096),
) -> Model:
    """VGG16 (Simonyan & Zisserman, 2015); 134,301,514 parameters on CIFAR-10.

    The classifier reads 7 x 7 x 512 features, as on ImageNet: adaptive average pooling
    replicates the single remaining pixel of a 32 x 32 image.

    Args:
      task: The task, for the input's shape and the number of classes.
      norm: ``"batch"``, ``"group"`` or None, after the convolutions, which keep their bias.
      channels: Widths of the thirteen convolutions.
      hidden: Widths of the two hidden dense layers.
    """
    return _vgg("vgg16", task, (*channels, *hidden), pools=(2, 4, 7, 10, 13), norm=norm, reduce=_flatten_7x7)


def vgg16_bn(
    task: Problem,
    *,
    channels: Sequence[Count] = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
    hidden: Sequence[Count] = (4096, 4096),
) -> Model:
    """VGG16 with batch normalization, as ADP has it (Yu et al., 2021); 33,642,442 parameters on CIFAR-10.

    Convolutions have no bias, and the classifier reads the single remaining pixel of a 32 x 32 image.
    :func:`~fedjax_masks.models.gating.gated` adds 1,638,720 parameters of gates: 35,281,162, as in the
    authors' code, whose dropout in the classifier is left out here.

    Args:
      task: The task, for the input's shape and the number of classes.
      channels: Widths of the thirteen convolutions.
      hidden: Widths of the two hidden dense layers.
    """
    widths = (*channels, *hidden)
    return _vgg("vgg16-bn", task, widths, pools=(2, 4, 7, 10, 13), norm="batch", use_bias=False)


def _vgg(
    name: str,
    task: Problem,
    widths: Sequence[int],
    *,
    pools: Sequence[int],
    norm: Norm,
    reduce: Activation = flatten,
    use_bias: bool = True,
) -> Model:
    """Makes 3 x 3 convolutions, pooling after the convolutions in ``pools``, and three dense layers."""
    check_image(name, task.input_shape)

    def network(widths: Sequence[int]) -> Chain:
        *channels, hidden1, hidden2, classes = widths
        plain = functools.partial(Conv, size=3, norm=norm, use_bias=use_bias)
        pooling = functools.partial(plain, activation=relu_max_pool)
        convs = {
            f"conv{i}": functools.partial(pooling if i in pools else plain, width)
            for i, width in enumerate(channels, start=1)
        }
        return Chain(convs | _dense_layers((hidden1, hidden2, classes), reduce=reduce))

    return make_model(name, task, network, (*widths, task.num_classes))


def _flatten_7x7(x: jax.Array) -> jax.Array:
    return flatten(adaptive_average_pool(x, 7))


def _lenet(name: str, task: Problem, hidden: Sequence[int], factor: float) -> Model:
    check_image(name, task.input_shape)
    widths = (*(max(1, round(factor * width)) for width in hidden), task.num_classes)
    # Two unpadded 5 x 5 convolutions, each pooled by 2, leave nothing of an image below 16 pixels.
    padding = "VALID" if min(task.input_shape[:2]) >= 16 else "SAME"

    def network(widths: Sequence[int]) -> Chain:
        first, second, *dense = widths
        conv = functools.partial(Conv, size=5, padding=padding, activation=relu_max_pool)
        convs = {"conv1": functools.partial(conv, first), "conv2": functools.partial(conv, second)}
        return Chain(convs | _dense_layers(dense))

    return make_model(name, task, network, widths)


def _dense_layers(
    widths: Sequence[int], *, reduce: Activation = flatten, norm: Norm = None
) -> dict[str, Callable]:
    """Makes hidden layers and the output layer; the first layer applies ``reduce`` to its input."""
    *hidden, classes = widths
    layers = [functools.partial(Dense, width, norm=norm) for width in hidden]
    layers.append(functools.partial(Dense, classes, activation=identity, removable=False))
    layers[0] = functools.partial(layers[0], reduce=reduce)
    return {f"dense{i}": layer for i, layer in enumerate(layers, start=1)}
