"""What the rest of the package knows of a model: a record of functions and the list of its kernels."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from fedjax_masks.core.algorithm import Params
from fedjax_masks.core.errors import UserError
from fedjax_masks.models.layers import Chain, Layer, Norm, Role


class Kernel(NamedTuple):
    """A weighted layer of a model.

    Attributes:
      path: Where the kernel array lies in the parameters (``("block1", "conv2", "kernel")``).
      kind: ``"conv"`` or ``"dense"``.
      role: ``"stem"`` and ``"shortcut"`` for these two in residual networks, else ``"body"``.
      shape: The kernel array's shape; the last axis counts the outputs.
      positions: Number of output pixels; 1 for a dense layer. A forward pass of one example
        takes ``positions * prod(shape)`` multiply-accumulates.
      bias: Path of the bias, or None.
      norm: ``"batch"``, ``"group"`` or None.
      norm_paths: Paths of the normalisation's scale and bias; empty without one.
      padding: ``"SAME"`` or ``"VALID"``.
      successor: Index, among the model's kernels, of the only one that reads the outputs; None
        where outputs may not be removed (a residual sum reads them, or they are the logits).
        Between the two there is relu, and perhaps pooling.
      repeats: How many rows of the successor's input axis each output feeds: 1, or the number
        of pixels that were flattened. Output ``c`` feeds rows ``p * outputs + c``.
      gate: Path of the parameters of a gate on the outputs, or None; see
        :func:`fedjax_masks.models.gated`.
      silence: What the gate sees of an input channel that is zero everywhere.
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
    silence: float = 0.0

    @property
    def name(self) -> str:
        """The layer's name, as hooks see it."""
        return "/".join(self.path[:-1])

    @property
    def outputs(self) -> int:
        """Number of output channels or neurons."""
        return self.shape[-1]


class Model(NamedTuple):
    """A neural network, as pure functions over its parameters.

    Attributes:
      name: Its name in the registry.
      init: ``key -> params``: nested dicts of float32 arrays, keyed by stage. The parameters
        are the whole state.
      apply: ``(params, x) -> logits[batch, num_classes]``. ``x`` is ``[batch, *input_shape]``:
        uint8, brought from [0, 255] to [-1, 1], or float32, used as it is.
      forward: ``(params, x, *, hook=None, start=None, stop=None) -> (y, aux)``: the same, from
        behind stage ``start`` (``x`` is then what that stage emitted) until behind stage
        ``stop``; needs only the parameters of the stages it runs. ``hook(layer, x) -> (h,
        aux)`` replaces every weighted layer; see :class:`fedjax_masks.models.layers.Layer`.
      kernels: The weighted layers, in forward order.
      splits: Names of the stages behind which the model may be cut, in forward order.
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
    """What a model needs to know of a task."""

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
      task: Gives the input's shape.
      network: Makes the network from the number of outputs of each weighted layer.
      widths: Outputs of each weighted layer, in forward order.

    Returns:
      The model.
    """
    chain = network(widths)
    example = jax.ShapeDtypeStruct((1, *task.input_shape), jnp.float32)

    def init(key):
        return chain.lazy_init(key, example)["params"]

    def forward(params, x, *, hook=None, start=None, stop=None):
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
    """The model's weighted layers, for algorithms that work on them.

    Raises:
      UserError: There is none.
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
      UserError: There is none.
    """
    kinds = ("conv", "dense") if dense else ("conv",)
    found = tuple(kernel for kernel in model.kernels[:-1] if kernel.kind in kinds)
    if not found:
        wanted = "no hidden layer" if dense else "no convolution; accepted with prune_dense=true"
        raise UserError(f"model={model.name!r}: has {wanted}")
    return found


def check_image(name: str, input_shape: Sequence[int]) -> None:
    """Raises UserError unless the inputs are images."""
    if len(input_shape) != 3:
        raise UserError(
            f"model={name!r}: needs inputs [height, width, channels], got {tuple(input_shape)}; "
            "accepted for other inputs is 'mlp'"
        )


def _list_kernels(name: str, chain: Chain, example: jax.ShapeDtypeStruct) -> tuple[Kernel, ...]:
    """Lists the layers by running the network on shapes alone, with a hook that takes notes.

    Raises:
      UserError: The inputs are too small for an unpadded convolution.
    """
    seen: list[tuple[Kernel, bool]] = []

    def note(layer: Layer, x: jax.Array):
        needed = layer.kernel.shape[:2] if layer.kind == "conv" and layer.padding == "VALID" else (1, 1)
        if x.ndim == 4 and (x.shape[1] < needed[0] or x.shape[2] < needed[1]):
            raise UserError(
                f"model={name!r}: must have inputs larger than {example.shape[1:]}: {layer.name} needs "
                f"{needed} pixels, and gets {x.shape[1:3]}; 'cnn' and 'mlp' take any size"
            )
        h = layer(x)
        seen.append((_kernel(layer, h.shape), layer.removable))
        return h, None

    jax.eval_shape(lambda x: chain.init(jax.random.key(0), x, note), example)

    def link(index: int) -> Kernel:
        kernel, removable = seen[index]
        if not removable:
            return kernel
        reader, _ = seen[index + 1]
        return kernel._replace(successor=index + 1, repeats=reader.shape[-2] // kernel.outputs)

    return tuple(map(link, range(len(seen))))


def _kernel(layer: Layer, out_shape: tuple[int, ...]) -> Kernel:
    at = tuple(layer.name.split("/"))
    return Kernel(
        path=(*at, "kernel"),
        kind=layer.kind,
        role=layer.role,
        shape=layer.kernel.shape,
        positions=math.prod(out_shape[1:-1]),
        bias=None if layer.bias is None else (*at, "bias"),
        norm=layer.norm_kind,
        norm_paths=() if layer.norm_kind is None else ((*at, "norm", "scale"), (*at, "norm", "bias")),
        padding=layer.padding,
    )
