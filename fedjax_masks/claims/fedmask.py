"""FedMask: Li et al., SenSys 2021, doi 10.1145/3485730.3485929.

Accuracies are in :mod:`fedjax_masks.claims.fedmask_accuracy`.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax

from fedjax_masks import models
from fedjax_masks.algorithms.fedmask import Encoding, fedmask
from fedjax_masks.claims import fedmask_accuracy, nets
from fedjax_masks.claims.claim import Basis, Claim, Statement, claim_out_of_reach
from fedjax_masks.claims.counts import bounded_claim, exact_claim
from fedjax_masks.claims.exchange import Exchange, counter
from fedjax_masks.claims.result_files import Line, latency_claims, result_claim, setting
from fedjax_masks.communication import codecs, payload, size
from fedjax_masks.core.algorithm import Round, State, Task
from fedjax_masks.data import synthetic_task

_NAME = "fedmask"
_BENCH = "fedjax-masks bench --workload masked-inference --rounds 10 --json"
_exact = partial(exact_claim, _NAME)


def claims() -> list[Claim]:
    """Figures of FedMask's paper beside ours."""
    return [
        *nets.sizes(_NAME),
        *_vgg16(),
        *_activities(),
        *_computation(),
        *_latencies(),
        *fedmask_accuracy.claims(),
    ]


def _vgg16() -> list[Claim]:
    """Claims on VGG16, counted from shapes: 400 masks of 134 million elements would fill any memory."""
    task = synthetic_task((32, 32, 3), 10, [20])
    model = models.vgg16(task)
    params = jax.eval_shape(model.init, jax.random.key(0))
    mask, dense = _mask_bytes(model, task), size.static_bits(params) / 8
    signs = size.static_bits(jax.eval_shape(lambda tree: jax.tree.map(lambda a: a > 0, tree), params)) / 8
    largest = jax.eval_shape(lambda tree: jax.tree.map(lambda a: codecs.sparsify(a, 0.1), tree), params)
    indexed = size.static_bits(largest) / 8
    # A tenth of an array is always sent as Sparse, as VGG16 has no array of few elements.
    sparse = jax.tree.leaves(largest, is_leaf=lambda node: isinstance(node, payload.Sparse))
    values = size.static_bits([node.values for node in sparse]) / 8
    hours = 2000 * 2 * dense / 10e6 / 3600
    net, share = "VGG16, 10 classes", "of FedAvg's bytes"

    row = partial(_vgg16_row, conditions=net)
    missing = "ours is 4000 transfers of the size of table 5; 59.67 hours would be transfers of 537.03 MB"
    indices = "the published figure leaves out the indices, 12 to 27 bits beside each value of 32 bits"
    top_k = "upload of Top-k, a tenth of the update (figure 10)"
    return [
        row("size of a mask of the weights (table 5)", 16_786_136, mask, "bytes"),
        row(
            "size of a mask of weights and biases", 16_787_690, -(-signs // 1), "bytes", basis="derived here"
        ),
        row("size of the dense model (table 5)", 537_206_056, dense, "bytes"),
        row(
            "transfer time of FedAvg's 2000 rounds (figure 2)",
            59.67,
            hours,
            "hours",
            conditions=f"{net}, both directions at 10 MB/s",
            reason=missing,
        ),
        row("communication (figure 10)", 0.03, mask / dense, share),
        row("upload of BNN-FedAvg, one sign per parameter (figure 10)", 0.03, signs / dense, share),
        row(top_k, 0.10, values / dense, share, conditions=f"{net}, values alone, as the paper counts"),
        row(
            top_k,
            0.10,
            indexed / dense,
            share,
            conditions=f"{net}, values and the indices that a receiver needs",
            reason=indices,
        ),
        claim_out_of_reach(
            Statement(_NAME, "communication of LG-FedAvg (figure 10)", f"0.76 {share}", "exact", "published"),
            net,
            "fedjax-masks claims",
            "the paper does not name the shared layers; the checks of lgfedavg count 4 bytes per parameter "
            "of named layers",
        ),
    ]


def _vgg16_row(
    claim: str,
    paper: float,
    ours: float,
    unit: str,
    *,
    conditions: str,
    basis: Basis = "published",
    reason: str = "",
) -> Claim:
    digits = 0 if unit == "bytes" else 2
    return _exact(claim, paper, ours, unit, conditions=conditions, basis=basis, digits=digits, reason=reason)


def _mask_bytes(model: models.Model, task: Task) -> float:
    """Bytes of the aggregated mask that a device receives."""
    algorithm = fedmask(model, optax.sgd(100.0), prune_layers=8)
    state = jax.eval_shape(lambda key: algorithm.init(key, task), jax.random.key(0))
    round = Round(jax.random.key(0), jnp.int32(0))
    return size.static_bits(jax.eval_shape(algorithm.send, round, state.server, ())) / 8


def _activities() -> list[Claim]:
    """The largest published reduction of communication, by the paper's encoding of masks and by ours."""
    (net,) = (net for net in nets.NETS if (net.system, net.name) == (_NAME, "mlp"))
    task = synthetic_task(net.input_shape, net.num_classes, [20])
    dense = 2 * 4 * nets.parameter_count(net.build())
    encodings: dict[Encoding, str] = {
        "dense": "the paper's encoding (dense): 1 bit per weight, pruned or not",
        "structure": "an encoding of ours (structure): no bit for weights that were pruned once and for all",
    }
    return [
        bounded_claim(
            *(_NAME, "reduction of communication against Per-FedAvg, activity recognition (abstract)"),
            *("34.48 x", dense / sum(_later_round(net.build(), task, encoding)), "x"),
            conditions=f"mlp 561-1024-512-6, {text}",
            basis="published",
            low=34.48,
            reason="1 bit instead of 32 saves a factor of 32, and biases, which are not sent, a little more; "
            "34.48 is 1 / 0.029, where 1 / 32 is 0.031",
        )
        for encoding, text in encodings.items()
    ]


def _later_round(model: models.Model, task: Task, encoding: Encoding) -> Exchange:
    """The exchange of a device that pruned its last two layers to a fifth in an earlier round."""
    algorithm = fedmask(model, optax.sgd(100.0), epochs=1, encoding=encoding)
    state: State = algorithm.init(jax.random.key(0), task)
    names = [kernel.name for kernel in model.kernels][-2:]
    structure = {
        name: jnp.arange(mask.size).reshape(mask.shape) < round(0.2 * mask.size) if name in names else mask
        for name, mask in state.clients.structure.items()
    }
    visited = jnp.ones_like(state.clients.visited)
    clients = state.clients._replace(structure=structure, visited=visited)
    return counter(algorithm, task)(state._replace(clients=clients))


def _computation() -> list[Claim]:
    def judge(lines: Sequence[Line]) -> tuple[str, bool]:
        fedavg, ours = (
            {line["client_flops"] for line in lines if setting(line) == name} for name in ("fedavg", _NAME)
        )
        ratio = min(fedavg) / max(ours)
        return f"{ratio:.2f}x", ratio >= 2.44

    claim = "reduction of computation (abstract; figure: 2.42x to 3.02x, and 1.23x)"
    return [
        result_claim(
            Statement(_NAME, claim, "2.44x", "exact", "published"),
            "FLOPs of local training, cifar-cnn, cifar10, 5 epochs",
            "fedmask_cifar10.jsonl",
            judge,
            reason="training multiplies whole layers under their masks; masks save computation in inference "
            "alone (next rows)",
        )
    ]


def _latencies() -> list[Claim]:
    def statement(claim: str, paper: str) -> Statement:
        return Statement(_NAME, claim, paper, "measured", "published")

    other_data = "EMNIST, activity recognition and Shakespeare"
    return [
        *latency_claims(
            statement("speed-up of inference (abstract; figure: 1.38x to 1.56x)", "1.56x"),
            1.56,
            "LeNet on CPU, the mask of a client after ten rounds on synthetic images, compacted",
        ),
        claim_out_of_reach(
            statement("reduction of inference energy (abstract; figure: 1.52x to 1.78x)", "1.78x"),
            "phones",
            _BENCH,
            "needs a phone and a power meter; at constant power, energy falls as time does, and the rows "
            "above have the time of LeNet",
        ),
        claim_out_of_reach(
            statement(f"speed, energy and computation on {other_data} (figures)", "1.23x to 3.02x"),
            "phones, and the networks of table 4",
            _BENCH,
            f"{fedmask_accuracy.NEEDS_DATA}; the rows above have the savings of LeNet",
        ),
    ]
