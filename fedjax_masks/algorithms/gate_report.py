"""Report of channel gates: whether gates choose channels by the image, or the same ones for all images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax_masks.core.algorithm import ClientData
from fedjax_masks.core.types import Params
from fedjax_masks.models import Model
from fedjax_masks.models.gates import count_distinct
from fedjax_masks.models.gating import active_counts

SELECTIONS = "selections/"
"""Prefix of the metrics that count different selections of channels; the layer's name follows."""


def pruned_layers(model: Model, ratio: float) -> list[str]:
    """The names of the layers of which a ratio keeps fewer than all channels."""
    counts = active_counts(model, ratio)
    return [
        kernel.name for kernel in model.kernels if counts.get(kernel.name, kernel.outputs) < kernel.outputs
    ]


def report_selections(
    net: Model, layers: Sequence[str], batch_size: int, params: Params, data: ClientData
) -> dict[str, jax.Array]:
    """The number of different selections of channels among a client's first examples, by layer.

    The extra forward pass is for people: it does not count as the client's work.

    Args:
      net: A gated model.
      layers: The layers to report.
      batch_size: The number of examples; where the client has fewer, they repeat, and add no selection.
      params: The client's model after its training.
      data: The client's data.

    Returns:
      ``float32[]`` by metric, named ``selections/LAYER``.
    """
    if not layers:
        return {}
    rows = data.rows[jnp.arange(batch_size) % jnp.maximum(data.size, 1)]
    _, gates = net.forward(params, data.inputs[rows])
    return {f"{SELECTIONS}{name}": count_distinct(gates[name].active).astype(jnp.float32) for name in layers}
