"""Models as records of functions, with the list of their weighted layers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from fedjax_masks.core.algorithm import Params
from fedjax_masks.core.errors import UserError
from fedjax_masks.models.layers import Chain, Hook, Layer, Norm, Role


class Kernel(NamedTuple):
    """A weighted layer of a model.

    Attributes:
      path: Path of the kernel array in the parameters (``("block1", "conv2", "kernel")``).
      kind: ``"conv"`` or ``"dense"``.
      role: ``"stem"`` or ``"shortcut"`` for these layers of residual networks, else ``"body"``.
      shape: The kernel array's shape; the last axis counts the outputs.
      positions: Number of output pixels; 1 for a dense layer. A forward pass of one example
        takes ``positions * prod(shape)`` multiply-accumulates.
      bias: Path of the bias, or None.
      norm: ``"batch"``, ``"group"`` or None.
      norm_paths: Paths of the normalization's scale and bias; empty without normalization.
      padding: ``"SAME"`` or ``"VALID"``.
      successor: Index in the model's kernels of the only kernel that reads the outputs; None where outputs
        must not be removed (a residual sum reads them, or they are the logits). Between the two kernels
        there is relu, and perhaps pooling.
      repeats: Number of the successor's inputs that each output feeds: 1, or the number of pixels that were
        flattened. Output ``c`` feeds inputs ``p * outputs + c``.
      gate: Path of the parameters of a gate on the outputs, or None; see
        :func:`fedjax_masks.models.gated`.
      zero_saliency: The gate's saliency of an input channel that is zero everywhere.
    """

    path: tuple[str, ...]
    kind: str
    role: Role
    shape: tuple[int, ...]
    positions: int
    bias: tuple[str, ...] | None
    norm: Norm
    norm_paths: tuple[tuple[str, ...], ...]
    padding: str
    successor: int | None = None
    repeats: int = 1
    gate: tuple[str, ...] | None = None
    zero_saliency: float = 0.0

    @property
    def name(self) -> str:
        """The layer's name, as in :class:`~fedjax_masks.models.layers.Layer`."""
        return "/".join(self.path[:-1])

    @property
    def outputs(self) -> int:
        """The number of output channels or neurons."""
        return self.shape[-1]


class Model(NamedTuple):
    """A neural network, as pure functions over its parameters.

    Attributes:
      name: The model's name in the registry.
      init: ``key -> params``: nested dicts of float32 arrays, keyed by stage. The parameters
        are the whole state.
      apply: ``(params, x) -> logits[batch, num_classes]``. ``x`` is ``[batch, *input_shape]``:
        uint8, scaled from [0, 255] to [-1, 1], or float32, used as it is.
      forward: ``(params, x, *, hook=None, start=None, stop=None) -> (y, aux)``: the stages after stage
        ``start`` (``x`` is then the output of that stage) up to stage ``stop``; only the parameters of
        these stages are needed. ``hook(layer, x) -> (h, aux)`` replaces every weighted layer; see
        :class:`fedjax_masks.models.layers.Layer`.
      kernels: The weighted layers, in forward order.
      splits: Names of the stages after which the model may be cut, in forward order.
      input_shape: Shape of one input.
      rebuild: ``widths -> model``: the same architecture with ``widths[i]`` outputs in
        kernel i.
    """

    name: str
    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, jax.Array], jax.Array]
    forward: Callable[..., tuple[jax.Array, Mapping[str, Any]]]
    kernels: tuple[Kernel, ...]
    splits: tuple[str, ...]
    input_shape: tuple[int, ...]
    rebuild: Callable[[Sequence[int]], "Model"]


class Problem(Protocol):
    """The part of a task that decides a model's shape."""

    @property
    def input_shape(self) -> tuple[int, ...]: ...

    @property
    def num_classes(self) -> int: ...


def make_model(
    name: str, task: Problem, network: Callable[[Sequence[int]], Chain], widths: Sequence[int]
) -> Model:
    """Makes the record of a network.

    Args:
      name: The model's name.
      task: The task, for the input's shape.
      network: ``(widths) -> network``.
      widths: Number of outputs of each weighted layer, in forward order.

    Returns:
      The model.
    """
    chain = network(widths)
    example = jax.ShapeDtypeStruct((1, *task.input_shape), jnp.float32)

    def init(key: jax.Array) -> Params:
        return chain.lazy_init(key, example)["params"]

    def forward(
        params: Params,
        x: jax.Array,
        *,
        hook: Hook | None = None,
        start: str | None = None,
        stop: str | None = None,
    ) -> tuple[jax.Array, Mapping[str, Any]]:
        return chain.apply({"params": params}, x, hook, start, stop)

    return Model(
        name=name,
        init=init,
        apply=lambda params, x: forward(params, x)[0],
        forward=forward,
        kernels=_list_kernels(name, chain, example),
        splits=tuple(chain.stages)[:-1],
        input_shape=tuple(task.input_shape),
        rebuild=lambda widths: make_model(name, task, network, widths),
    )


def weighted_kernels(model: Model) -> tuple[Kernel, ...]:
    """The model's weighted layers, for algorithms that need them.

    Raises:
      UserError: The model lists none.
    """
    if not model.kernels:
        raise UserError(
            f"model={model.name!r}: must have weighted layers in its `kernels`, and has none; "
            "choose a model that lists them"
        )
    return model.kernels


def prunable_kernels(model: Model, *, dense: bool) -> tuple[Kernel, ...]:
    """The layers whose outputs may be pruned: convolutions, and on request hidden dense layers.

    Raises:
      UserError: The model has none.
    """
    kinds = ("conv", "dense") if dense else ("conv",)
    kernels = tuple(kernel for kernel in model.kernels[:-1] if kernel.kind in kinds)
    if not kernels and dense:
        raise UserError(f"model={model.name!r}: must have a hidden layer; choose another model")
    if not kernels:
        raise UserError(
            f"model={model.name!r}: must have a convolution; set prune_dense=true, or choose another model"
        )
    return kernels


def check_image(name: str, input_shape: Sequence[int]) -> None:
    """Checks that the inputs of a model are images.

    Raises:
      UserError: They are not.
    """
    if len(input_shape) != 3:
        raise UserError(
            f"model={name!r}: must have inputs [height, width, channels], and gets {tuple(input_shape)}; "
            "'mlp' takes any inputs"
        )


def _list_kernels(name: str, chain: Chain, example: jax.ShapeDtypeStruct) -> tuple[Kernel, ...]:
    """Lists the layers by tracing the network, with a hook that records them.

    Raises:
      UserError: The inputs are too small for an unpadded convolution.
    """
    layers: list[tuple[Kernel, bool]] = []

    def record(layer: Layer, x: jax.Array) -> tuple[jax.Array, None]:
        smallest = layer.kernel.shape[:2] if layer.kind == "conv" and layer.padding == "VALID" else (1, 1)
        if x.ndim == 4 and (x.shape[1] < smallest[0] or x.shape[2] < smallest[1]):
            raise UserError(
                f"model={name!r}: must have inputs larger than {example.shape[1:]}: {layer.name} needs "
                f"{smallest} pixels, and gets {x.shape[1:3]}; 'cnn' and 'mlp' take any size"
            )
        h = layer(x)
        layers.append((_kernel(layer, h.shape), layer.removable))
        return h, None

    jax.eval_shape(lambda x: chain.init(jax.random.key(0), x, record), example)

    def link(index: int) -> Kernel:
        kernel, removable = layers[index]
        if not removable:
            return kernel
        reader, _ = layers[index + 1]
        return kernel._replace(successor=index + 1, repeats=reader.shape[-2] // kernel.outputs)

    return tuple(map(link, range(len(layers))))


def _kernel(layer: Layer, out_shape: tuple[int, ...]) -> Kernel:
    path = tuple(layer.name.split("/"))
    return Kernel(
        path=(*path, "kernel"),
        kind=layer.kind,
        role=layer.role,
        shape=layer.kernel.shape,
        positions=math.prod(out_shape[1:-1]),
        bias=None if layer.bias is None else (*path, "bias"),
        norm=layer.norm_kind,
        norm_paths=() if layer.norm_kind is None else ((*path, "norm", "scale"), (*path, "norm", "bias")),
        padding=layer.padding,
    )
