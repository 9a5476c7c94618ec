"""Models with channel gates: for each example, only the most salient channels of a convolution are active.

Gao, Zhao, Dudziak, Mullins, Xu: "Dynamic Channel Pruning: Feature Boosting and Suppression", ICLR 2019,
arXiv 1810.05331.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Params
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.masks import top_count
from fedjax_masks.core.options import PositiveShare, check
from fedjax_masks.models.layers import Hook, Layer
from fedjax_masks.models.model import Model

Saliency = Literal["mean", "sigmoid"]


class Gate(NamedTuple):
    """The values and the selection of one layer's gate.

    Attributes:
      value: ``float32[batch, outputs]``: the gates before the selection, 0 or more.
      active: ``bool[batch, outputs]``: the active channels, the same number in every example.
    """

    value: jax.Array
    active: jax.Array


def gated(
    model: Model,
    *,
    ratio: float = 0.7,
    counts: Mapping[str, int | jax.Array] | None = None,
    saliency: Saliency | None = None,
    bias: float = 1.0,
    scale: float = 1.0,
) -> Model:
    """Puts a gate on every convolution, except the stem and the shortcuts of residual networks.

    The gate of a layer with input ``x`` is ``g = relu(s(x) A + b)``, where ``s`` is the mean of each channel,
    or the sigmoid of the mean. The layer computes ``relu(norm(conv(x)) * g)``, with all but the
    ``round(ratio * outputs)`` largest values of ``g`` set to zero (a half is rounded to even, ties go to the
    lower index), in training and in evaluation. The selection has no gradient; active gates learn through
    the product. An example contributes to the gradient of a suppressed channel only through statistics that
    a normalization shares between channels.

    Args:
      model: The network.
      ratio: Share of active channels, in (0, 1].
      counts: Numbers of active channels by layer, in place of ``ratio``; see :func:`active_counts`. They may
        be traced, so that one program serves several ratios; such a model cannot be rebuilt.
      saliency: The function ``s``, ``mean`` or ``sigmoid``; by default the mean in residual networks and the
        sigmoid in others. Unbounded gates multiply activations by activations in every layer: without
        normalization, training then overflows at learning rates that suit the network without gates.
      bias: Initial value of ``b``.
      scale: Factor of the initial ``A``, which is drawn from He et al.'s normal distribution. A small factor
        brings all gates near ``b``, and keeps their order, and so the selections, where all are above 0.

    Returns:
      A model. Its parameters are those of the network, as ``model.init`` draws them from the same key, and in
      each gated layer ``gate: {kernel: [inputs, outputs], bias: [outputs]}``. Without a hook, ``forward``
      returns each gated layer's :class:`Gate`. With a hook, it returns the results of the hook, and the gate
      multiplies the hook's replacement of the layer. ``rebuild`` keeps the number of active channels, up to
      the number of channels.

    Raises:
      UserError: The network has no such convolution, or ``ratio`` is out of range or leaves a layer without
        active channels.

    Example:
      >>> from types import SimpleNamespace
      >>> from fedjax_masks.models import cnn
      >>> model = gated(cnn(SimpleNamespace(input_shape=(8, 8, 1), num_classes=2)), ratio=0.5)
      >>> _, gates = model.forward(model.init(jax.random.key(0)), jnp.ones((1, 8, 8, 1)))
      >>> [int(gate.active.sum()) for gate in gates.values()]
      [16, 32]
    """
    if saliency is None:
        saliency = "mean" if any(kernel.role == "stem" for kernel in model.kernels) else "sigmoid"
    return _with_gates(
        model, active_counts(model, ratio) if counts is None else counts, saliency, bias, scale
    )


def active_counts(model: Model, ratio: float) -> dict[str, int]:
    """The numbers of active channels by layer, for the layers that :func:`gated` puts gates on.

    Args:
      model: The network.
      ratio: Share of active channels, in (0, 1].

    Returns:
      ``round(ratio * outputs)`` by layer; a half is rounded to even.

    Raises:
      UserError: The network has no such layer, or ``ratio`` is out of range or leaves a layer without
        active channels.

    Example:
      >>> from types import SimpleNamespace
      >>> from fedjax_masks.models import cnn
      >>> active_counts(cnn(SimpleNamespace(input_shape=(8, 8, 1), num_classes=2)), 0.7)
      {'conv1': 22, 'conv2': 45}
    """
    check("ratio", ratio, PositiveShare)
    convolutions = [k for k in model.kernels if k.kind == "conv" and k.role == "body"]
    if not convolutions:
        raise UserError(f"model={model.name!r}: must have a convolution to gate; choose another model")
    counts = {kernel.name: round(kernel.outputs * ratio) for kernel in convolutions}
    for kernel in convolutions:
        if not counts[kernel.name]:
            bound = 0.5 / kernel.outputs
            raise UserError(f"ratio={ratio}: must be above {bound}, to keep a channel of {kernel.name}")
    return counts


def _with_gates(
    net: Model, keep: Mapping[str, int | jax.Array], saliency: Saliency, bias: float, scale: float
) -> Model:
    gates = {k.name: (*k.path[:-1], "gate") for k in net.kernels if k.name in keep}
    zero_saliency = 0.5 if saliency == "sigmoid" else 0.0

    def init(key: jax.Array) -> Params:
        params = net.init(key)
        for index, kernel in enumerate(net.kernels):
            if kernel.name in keep:
                gate_key = jax.random.fold_in(key, index)
                weights = nn.initializers.he_normal()(gate_key, kernel.shape[-2:], jnp.float32)
                gate = {"kernel": scale * weights, "bias": jnp.full(kernel.outputs, bias, jnp.float32)}
                path = kernel.path[:-1]
                params = trees.put(params, path, {**trees.get(params, path), "gate": gate})
        return params

    def forward(
        params: Params, x: jax.Array, *, hook: Hook | None = None, **ends: str | None
    ) -> tuple[jax.Array, Mapping[str, Any]]:
        def apply_gate(layer: Layer, x: jax.Array) -> tuple[jax.Array, Any]:
            h, aux = (layer(x), None) if hook is None else hook(layer, x)
            if layer.name not in keep:
                return h, aux
            gate = _gate(trees.get(params, gates[layer.name]), x, keep[layer.name], saliency)
            factors = jnp.where(gate.active, gate.value, 0)
            return h * factors[:, None, None], gate if hook is None else aux

        y, aux = net.forward(params, x, hook=apply_gate, **ends)
        return y, {name: aux[name] for name in aux if hook is not None or name in keep}

    def rebuild(widths: Sequence[int]) -> Model:
        outputs = {kernel.name: width for kernel, width in zip(net.kernels, widths, strict=True)}
        return _with_gates(
            net.rebuild(widths),
            {name: min(k, outputs[name]) for name, k in keep.items()},
            saliency,
            bias,
            scale,
        )

    return net._replace(
        name=f"gated {net.name}",
        init=init,
        apply=lambda params, x: forward(params, x)[0],
        forward=forward,
        kernels=tuple(k._replace(gate=gates.get(k.name), zero_saliency=zero_saliency) for k in net.kernels),
        rebuild=rebuild,
    )


def _gate(params: Params, x: jax.Array, keep: int | jax.Array, saliency: Saliency) -> Gate:
    """The gate of a layer with input ``x``, ``[batch, height, width, inputs]``."""
    s = jnp.mean(x, axis=(1, 2))
    s = jax.nn.sigmoid(s) if saliency == "sigmoid" else s
    value = nn.relu(s @ params["kernel"] + params["bias"])
    if isinstance(keep, int) and keep == value.shape[-1]:
        return Gate(value, jnp.ones_like(value, bool))
    return Gate(value, jax.vmap(partial(top_count, keep=keep))(jax.lax.stop_gradient(value)))
