"""Layers of the models, and the hook by which algorithms change a layer's computation.

Every weighted layer passes itself to the hook as a :class:`Layer`. Skeletons, channel gates and activity
counts are hooks, so that models do not depend on algorithms.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_masks.models.functional import flatten as flatten
from fedjax_masks.models.functional import identity as identity
from fedjax_masks.models.functional import relu_max_pool as relu_max_pool
from fedjax_masks.models.functional import scale_input
from fedjax_masks.ops.conv import conv2d
from fedjax_masks.ops.norm import batch_norm
from fedjax_masks.ops.skeleton import add_bias, dense

Norm = Literal["batch", "group"] | None
Role = Literal["body", "stem", "shortcut"]
Activation = Callable[[jax.Array], jax.Array]


class Layer(NamedTuple):
    """A weighted layer, as hooks get it.

    Attributes:
      name: The layer's path in the parameters, joined by slashes (``"block1/conv2"``).
      kind: ``"conv"`` or ``"dense"``.
      role: ``"stem"`` or ``"shortcut"`` for these layers of residual networks, else ``"body"``.
      op: ``(x, kernel, *, skeleton=None) -> y``: the layer's linear map. It takes a kernel of any
        number of output channels; see :mod:`fedjax_masks.ops.skeleton` for the option.
      kernel: ``float32[height, width, inputs, outputs]``, or ``float32[inputs, outputs]``.
      bias: ``float32[outputs]``, or None.
      norm: The normalization between the linear map and the activation; the identity without one.
      norm_kind: ``"batch"``, ``"group"`` or None.
      padding: ``"SAME"`` or ``"VALID"``; a dense layer is ``"VALID"``.
      removable: Whether only the next weighted layer reads the outputs.
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
        """Computes the input of the layer's activation; only outputs in ``skeleton`` get gradients."""
        return self.norm(self.linear(x, skeleton))

    def linear(self, x: jax.Array, skeleton: jax.Array | None = None) -> jax.Array:
        """Computes the linear map and the bias; only outputs in ``skeleton`` get gradients."""
        y = self.op(x, self.kernel, skeleton=skeleton)
        return y if self.bias is None else add_bias(y, self.bias, skeleton=skeleton)


Hook = Callable[[Layer, jax.Array], tuple[jax.Array, Any]]
"""``(layer, x) -> (h, aux)``: ``h`` replaces ``layer(x)``; ``forward`` returns ``aux`` by layer name."""


class BatchNorm(nn.Module):
    """Batch normalization by the statistics of the current batch, in training and in evaluation.

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
    """A convolution with normalization and activation.

    Attributes:
      features: Number of output channels.
      size: Height and width of the kernel.
      stride: Stride in both directions.
      padding: ``"SAME"`` or ``"VALID"``.
      norm: ``"batch"``, ``"group"`` or None.
      use_bias: Whether the convolution has a bias.
      activation: The activation, including pooling.
      removable: Whether only the next weighted layer reads the outputs.
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
    """A fully connected layer with normalization and activation.

    Attributes:
      features: Number of outputs.
      norm: ``"batch"``, ``"group"`` or None.
      use_bias: Whether the layer has a bias.
      reduce: ``(input) -> [batch, inputs]``: brings the layer's input to two axes.
      activation: The activation.
      removable: Whether only the next weighted layer reads the outputs.
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


def _layer(
    module: Conv | Dense,
    kind: str,
    role: Role,
    op: Callable[..., jax.Array],
    shape: tuple[int, ...],
    padding: str,
) -> Layer:
    """Declares the parameters of a layer (He initialization, zero biases)."""
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


def _run(
    layer: Layer, x: jax.Array, activation: Activation, hook: Hook | None
) -> tuple[jax.Array, dict[str, Any]]:
    if hook is None:
        return activation(layer(x)), {}
    h, aux = hook(layer, x)
    return activation(h), {layer.name: aux}


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al., 2016, figure 2).

    Attributes:
      inner: Channels between the two convolutions; only these may be removed.
      features: Channels of the sum.
      stride: Stride of the first convolution.
      project: Whether the shortcut is a 1 x 1 convolution (option B); otherwise it strides, and pads
        channels with zeros (option A, no parameters).
      norm: ``"batch"``, ``"group"`` or None; convolutions have a bias only without normalization.
      biased: Whether convolutions have a bias beside their normalization, and the shortcut a bias instead
        of a normalization.
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
    """A sequence of named stages; a model can be cut after any stage.

    Attributes:
      stages: Constructors of the stages by name, in forward order: ``constructor(name=name)`` is a module
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
