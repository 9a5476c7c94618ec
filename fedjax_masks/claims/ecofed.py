"""EcoFed: Wu et al. 2024, arXiv 2304.05495."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_masks import models, payload, trees
from fedjax_masks.algorithm import ClientData
from fedjax_masks.algorithms.ecofed import ecofed
from fedjax_masks.claims.claim import Claim, counted
from fedjax_masks.data import synthetic_task

_NAME = "ecofed"
_EXAMPLES, _BATCH = 500, 10
_OVERHEAD = 700
"""Bytes around one message of a batch's activations and labels."""


def claims() -> list[Claim]:
    """The rows: from the upload of one client at the paper's size, in the mean over rounds."""
    task = synthetic_task((32, 32, 3), 10, [_EXAMPLES], test_per_client=1)
    model = models.vgg11(task)
    algorithm = ecofed(model, optax.sgd(0.01), batch_size=_BATCH, split="conv2")
    state = jax.eval_shape(lambda key: algorithm.init(key, task), jax.random.key(0))
    size, rows = jnp.int32(_EXAMPLES), jnp.arange(_EXAMPLES)
    data = ClientData(jnp.asarray(task.inputs), jnp.asarray(task.labels), rows, size, size, jnp.int32(0))
    message = jax.eval_shape(algorithm.send, state.server, jax.ShapeDtypeStruct((), np.int32))
    _, upload, _ = jax.eval_shape(algorithm.train, jax.random.key(0), state.common, message, (), data)
    everything = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), upload)
    sent = payload.bits(everything) / 8
    whole = 2 * 4 * (trees.size(state.common) + trees.size(state.server.params))
    with_overhead = sent + _OVERHEAD * _EXAMPLES / _BATCH

    def row(claim: str, paper: float, ours: float, unit: str, digits: int) -> Claim:
        return counted(_NAME, claim, paper, ours, unit, digits=digits)

    setting = "VGG11, CIFAR-10"
    return [
        row(f"parameters on the device, {setting}", 76_032, trees.size(state.common), "", 0),
        row(f"FedAvg per client and round, {setting}", 275.5, whole / 1e6, "MB", 1),
        row(f"the same, EcoFed, replays every other round, {setting}", 2.068, with_overhead / 2e6, "MB", 3),
        row("without the overhead of messages, against FedAvg", 134.4, whole / (sent / 2), "x", 1),
        *(
            row(f"less communication, activations every {every} rounds", paper, ours, "x", digits)
            for every, paper, digits in ((1, 66.6, 1), (2, 133.3, 1), (4, 266.5, 1), (8, 533, 0))
            for ours in [whole / (with_overhead / every)]
        ),
    ]
