"""The layers that all models are made of, and the one hook by which algorithms reach into them.

Every weighted layer hands itself to the hook as a :class:`Layer`. Skeletons, channel gates and
activity counts are written as hooks, so no model knows about any algorithm.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.ops import pool
from fedjax_masks.ops.conv import conv2d
from fedjax_masks.ops.norm import batch_norm
from fedjax_masks.ops.skeleton import add_bias, dense

Norm = Literal["batch", "group"] | None
Role = Literal["body", "stem", "shortcut"]
Activation = Callable[[jax.Array], jax.Array]


class Layer(NamedTuple):
    """A weighted layer, as a hook sees it.

    Attributes:
      name: The layer's place in the parameters, joined by slashes (``"block1/conv2"``).
      kind: ``"conv"`` or ``"dense"``.
      role: ``"stem"`` and ``"shortcut"`` for these two in residual networks, else ``"body"``.
      op: ``(x, kernel, *, skeleton=None) -> y``: the layer's linear map. It takes a kernel of any
        number of output channels; see :mod:`fedjax_masks.ops.skeleton` for the option.
      kernel: ``float32[height, width, inputs, outputs]``, or ``float32[inputs, outputs]``.
      bias: ``float32[outputs]``, or None.
      norm: What comes between the linear map and the activation; the identity without one.
      norm_kind: ``"batch"``, ``"group"`` or None.
      padding: ``"SAME"`` or ``"VALID"``; a dense layer is ``"VALID"``.
      removable: Whether the next weighted layer alone reads the outputs.
    """

    name: str
    kind: str
    role: Role
    op: Callable[..., jax.Array]
    kernel: jax.Array
    bias: jax.Array | None
    norm: Callable[[jax.Array], jax.Array]
    norm_kind: Norm
    padding: str
    removable: bool

    def __call__(self, x: jax.Array, skeleton: jax.Array | None = None) -> jax.Array:
        """Returns what the layer passes to its activation."""
        return self.norm(self.linear(x, skeleton))

    def linear(self, x: jax.Array, skeleton: jax.Array | None = None) -> jax.Array:
        """Returns the linear map with bias, whose gradient may be confined to some outputs."""
        y = self.op(x, self.kernel, skeleton=skeleton)
        return y if self.bias is None else add_bias(y, self.bias, skeleton=skeleton)


Hook = Callable[[Layer, jax.Array], tuple[jax.Array, Any]]
"""``(layer, x) -> (h, aux)``; ``h`` takes the place of ``layer(x)``, ``aux`` is returned by name."""


def identity(x: jax.Array) -> jax.Array:
    """Returns its argument."""
    return x


def scale_input(x: jax.Array) -> jax.Array:
    """Brings bytes from [0, 255] to [-1, 1]; leaves floating-point inputs as they are."""
    if x.dtype == jnp.uint8:
        return x.astype(jnp.float32) / 127.5 - 1.0
    return x


def max_pool(x: jax.Array) -> jax.Array:
    """Takes the maximum over 2 x 2 windows, stride 2; an image one pixel wide or high stays as it is.

    Args:
      x: ``[batch, height, width, channels]``; an odd last row or column is dropped.

    Returns:
      ``[batch, height // 2, width // 2, channels]``.
    """
    return pool.max_pool(x) if min(x.shape[1:3]) > 1 else x


def relu_max_pool(x: jax.Array) -> jax.Array:
    """Returns ``max_pool(relu(x))``; the two commute, and the smaller array is rectified."""
    return nn.relu(max_pool(x))


def adaptive_average_pool(x: jax.Array, side: int) -> jax.Array:
    """Averages over ``side`` x ``side`` windows that cover the image; replicates a smaller image.

    Args:
      x: ``[batch, height, width, channels]``.
      side: Height and width of the result.

    Returns:
      ``[batch, side, side, channels]``.
    """
    rows, columns = (jnp.asarray(_window_averages(n, side)) for n in x.shape[1:3])
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns)


def _window_averages(size: int, windows: int) -> np.ndarray:
    """Returns ``float32[windows, size]``: window i spans floor(i size/n) to ceil((i+1) size/n)."""
    index, position = np.arange(windows)[:, None], np.arange(size)[None]
    start, stop = index * size // windows, -(-(index + 1) * size // windows)
    return ((start <= position) & (position < stop)).astype(np.float32) / (stop - start).astype(np.float32)


def global_average_pool(x: jax.Array) -> jax.Array:
    """Averages over height and width: ``[batch, height, width, channels]`` to ``[batch, channels]``."""
    return jnp.mean(x, axis=(1, 2))


def flatten(x: jax.Array) -> jax.Array:
    """Flattens all but the batch; channel ``c`` of pixel ``p`` becomes feature ``p * channels + c``."""
    return x.reshape(x.shape[0], -1)


class BatchNorm(nn.Module):
    """Batch normalisation by the statistics of the batch at hand, in training and evaluation alike.

    There are no running averages, so that the parameters are the whole state of a model.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return batch_norm(x, scale, bias, self.epsilon)


def _norm(kind: Norm, features: int) -> Callable[[jax.Array], jax.Array]:
    if kind == "batch":
        return BatchNorm(name="norm")
    if kind == "group":  # about 16 channels per group (Wu & He, 2018), whatever the width
        groups = next(n for n in range(max(1, features // 16), 0, -1) if features % n == 0)
        return nn.GroupNorm(groups, epsilon=1e-5, name="norm")
    return identity


class Conv(nn.Module):
    """A convolution, its normalisation and its activation.

    Attributes:
      features: Number of output channels.
      size: Height and width of the kernel.
      stride: Step in both directions.
      padding: ``"SAME"`` or ``"VALID"``.
      norm: ``"batch"``, ``"group"`` or None.
      use_bias: Whether the convolution has a bias.
      activation: What follows, pooling included.
      removable: Whether the next weighted layer alone reads the outputs.
      role: See :class:`Layer`.
    """

    features: int
    size: int
    stride: int = 1
    padding: str = "SAME"
    norm: Norm = None
    use_bias: bool = True
    activation: Activation = nn.relu
    removable: bool = True
    role: Role = "body"

    @nn.compact
    def __call__(self, x: jax.Array, hook: Hook | None) -> tuple[jax.Array, dict[str, Any]]:
        op = functools.partial(conv2d, strides=(self.stride, self.stride), padding=self.padding)
        shape = (self.size, self.size, x.shape[-1], self.features)
        layer = _layer(self, "conv", self.role, op, shape, self.padding)
        return _run(layer, x, self.activation, hook)


class Dense(nn.Module):
    """A fully connected layer, its normalisation and its activation.

    Attributes:
      features: Number of outputs.
      norm: ``"batch"``, ``"group"`` or None.
      use_bias: Whether there is a bias.
      reduce: What turns the layer's input into ``[batch, features]``.
      activation: What follows.
      removable: Whether the next weighted layer alone reads the outputs.
    """

    features: int
    norm: Norm = None
    use_bias: bool = True
    reduce: Activation = flatten
    activation: Activation = nn.relu
    removable: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, hook: Hook | None) -> tuple[jax.Array, dict[str, Any]]:
        x = self.reduce(x)
        layer = _layer(self, "dense", "body", dense, (x.shape[-1], self.features), "VALID")
        return _run(layer, x, self.activation, hook)


def _layer(module: Conv | Dense, kind: str, role: Role, op, shape: tuple[int, ...], padding: str) -> Layer:
    """Declares the parameters of a layer (He initialisation, zero biases)."""
    zeros = functools.partial(nn.initializers.zeros, dtype=jnp.float32)
    return Layer(
        name="/".join(module.path),
        kind=kind,
        role=role,
        op=op,
        kernel=module.param("kernel", nn.initializers.he_normal(), shape, jnp.float32),
        bias=module.param("bias", zeros, shape[-1:]) if module.use_bias else None,
        norm=_norm(module.norm, module.features),
        norm_kind=module.norm,
        padding=padding,
        removable=module.removable,
    )


def _run(layer: Layer, x: jax.Array, activation: Activation, hook: Hook | None):
    if hook is None:
        return activation(layer(x)), {}
    h, aux = hook(layer, x)
    return activation(h), {layer.name: aux}


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al., 2016, figure 2).

    Attributes:
      inner: Channels between the two convolutions; the only ones that may be removed.
      features: Channels of the sum.
      stride: Stride of the first convolution.
      project: Shortcut by a 1 x 1 convolution (option B), else by strides and zero channels
        at the end (option A, no parameters).
      norm: ``"batch"``, ``"group"`` or None; convolutions have a bias only without one.
      biased: Convolutions have a bias all the same, and the shortcut's nothing but that.
    """

    inner: int
    features: int
    stride: int = 1
    project: bool = False
    norm: Norm = "batch"
    biased: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, hook: Hook | None) -> tuple[jax.Array, dict[str, Any]]:
        conv = functools.partial(Conv, norm=self.norm, use_bias=self.biased or self.norm is None)
        outer = functools.partial(conv, self.features, activation=identity, removable=False)
        h, aux1 = conv(self.inner, 3, self.stride, name="conv1")(x, hook)
        h, aux2 = outer(3, name="conv2")(h, hook)
        if self.project:
            norm = None if self.biased else self.norm
            x, aux3 = outer(1, self.stride, norm=norm, role="shortcut", name="shortcut")(x, hook)
            return nn.relu(h + x), aux1 | aux2 | aux3
        extra = self.features - x.shape[-1]
        x = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (0, extra)))
        return nn.relu(h + x), aux1 | aux2


class Chain(nn.Module):
    """Named stages, one after the other; a model can be cut behind any of them.

    Attributes:
      stages: Makers of the stages by name, in forward order: ``maker(name=name)`` is a module
        called as ``stage(x, hook) -> (x, aux)``. The names are the keys of the parameters.
    """

    stages: Mapping[str, Callable[..., nn.Module]]

    @nn.compact
    def __call__(
        self, x: jax.Array, hook: Hook | None = None, start: str | None = None, stop: str | None = None
    ) -> tuple[jax.Array, dict[str, Any]]:
        names = list(self.stages)
        first = 0 if start is None else names.index(start) + 1
        last = len(names) if stop is None else names.index(stop) + 1
        x = scale_input(x) if start is None else x
        collected = {}
        for name in names[first:last]:
            x, aux = self.stages[name](name=name)(x, hook)  # pyright: ignore[reportCallIssue]
            collected |= aux
        return x, collected
