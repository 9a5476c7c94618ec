"""FedMask: Li et al., SenSys 2021, doi 10.1145/3485730.3485929."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax

from fedjax_masks import models
from fedjax_masks.algorithms.fedmask import Encoding, fedmask
from fedjax_masks.claims import nets
from fedjax_masks.claims.claim import Claim, bounded_claim, exact_claim, unreachable_claim
from fedjax_masks.claims.exchange import Exchange, counter
from fedjax_masks.claims.result_files import Line, algorithm, gaps, latency_claims, result_claim, setting
from fedjax_masks.communication import codecs, payload, size
from fedjax_masks.core.algorithm import Round, State, Task
from fedjax_masks.core.intervals import interval, surely_above
from fedjax_masks.data import synthetic_task

_NAME = "fedmask"
_BENCH = "fedjax-masks bench --workload masked-inference --rounds 10 --json"
_NEEDS_DATA = "needs these data sets, which are not available here, and a recurrent network for Shakespeare"
_FEW_CLASSES = (
    "two classes are easy to learn alone, and the majority vote keeps little of a device's own mask"
)
_exact = partial(exact_claim, _NAME)


def claims() -> list[Claim]:
    """Published figures of FedMask beside ours."""
    return [
        *nets.sizes(_NAME),
        *_vgg16(),
        *_activities(),
        *_computation(),
        *_latencies(),
        *_accuracies(),
        *_more_accuracies(),
        _other_data(),
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
    share = "of FedAvg's bytes"
    exact = {
        "communication (figure 10)": (0.03, mask),
        "upload of BNN-FedAvg, one sign per parameter (figure 10)": (0.03, signs),
        "upload of Top-k, values without indices (figure 10)": (0.10, values),
    }
    reason = "the published figure leaves out the indices, 12 to 27 bits beside each value of 32 bits"
    top_k = "upload of Top-k, values with indices (figure 10)"
    return [
        _exact("size of a mask of VGG16's weights (table 5)", 16_786_136, mask, "bytes"),
        _exact("size of a mask of VGG16's weights and biases", 16_787_690, -(-signs // 1), "bytes"),
        _exact("size of the dense VGG16 (table 5)", 537_206_056, dense, "bytes"),
        _exact("transfer time of FedAvg's 2000 rounds at 10 MB/s (table 5)", 59.69, hours, "hours", digits=2),
        *(_exact(name, paper, ours / dense, share, digits=2) for name, (paper, ours) in exact.items()),
        _exact(top_k, 0.10, indexed / dense, share, digits=2, reason=reason),
        unreachable_claim(
            _NAME,
            "communication of LG-FedAvg (figure 10)",
            f"0.76 {share}",
            "exact",
            "the paper does not name the shared layers; the rows of lgfedavg count 4 bytes per parameter of "
            "named layers",
            "fedjax-masks claims",
        ),
    ]


def _mask_bytes(model: models.Model, task: Task) -> float:
    """Bytes of the aggregated mask that a device receives."""
    algorithm = fedmask(model, optax.sgd(100.0), prune_layers=8)
    state = jax.eval_shape(lambda key: algorithm.init(key, task), jax.random.key(0))
    round = Round(jax.random.key(0), jnp.int32(0))
    return size.static_bits(jax.eval_shape(algorithm.send, round, state.server, ())) / 8


def _activities() -> list[Claim]:
    """Claims on the perceptron for activity recognition, the source of the abstract's communication cost."""
    (net,) = (net for net in nets.NETS if (net.system, net.name) == (_NAME, "mlp"))
    task = synthetic_task(net.input_shape, net.num_classes, [20])
    dense = 2 * 4 * nets.parameter_count(net.build())
    quantity = "reduction of communication against Per-FedAvg, activity recognition (abstract)"
    plain = dense / sum(_later_round(net.build(), task, "dense"))
    structured = dense / sum(_later_round(net.build(), task, "structure"))
    reason = "1 bit instead of 32 saves a factor of 32, and biases, which are not sent, a little more"
    return [
        _exact(quantity, 34.48, plain, "x", digits=2, reason=reason),
        bounded_claim(_NAME, f"{quantity}, encoding=structure", "34.48 x", structured, "x", low=34.48),
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
        return f"{ratio:.2f}x fewer FLOPs in training, cifar10", ratio >= 2.44

    return [
        result_claim(
            _NAME,
            "reduction of computation (abstract; figure: 2.42x to 3.02x, and 1.23x)",
            "2.44x",
            "exact",
            "fedmask_cifar10.jsonl",
            judge,
            reason="training multiplies whole layers under their masks; masks save computation in inference "
            "alone (next rows)",
        )
    ]


def _latencies() -> list[Claim]:
    quantity, section = "speed-up of inference by a compacted model", "abstract; figure: 1.38x to 1.56x"
    return [
        *latency_claims(_NAME, quantity, section, 1.56, "LeNet"),
        unreachable_claim(
            _NAME,
            "reduction of inference energy on phones (abstract; figure: 1.52x to 1.78x)",
            "1.78x",
            "measured",
            "needs a phone and a power meter; at constant power, energy falls as time does, and the rows "
            "above have the time of LeNet",
            _BENCH,
        ),
        unreachable_claim(
            _NAME,
            "speed, energy and computation on EMNIST, HAR and Shakespeare (figures)",
            "1.23x to 3.02x",
            "measured",
            f"{_NEEDS_DATA}; the rows above have the savings of LeNet",
            _BENCH,
        ),
    ]


def _accuracies() -> list[Claim]:
    def judge(other: str, title: str, lines: Sequence[Line]) -> tuple[str, bool]:
        published, keep_scores = (
            gaps(lines, _personal, setting, name, other) for name in (_NAME, f"{_NAME}-keep-scores")
        )
        text = f"{interval(published)} points over {title}; {interval(keep_scores)} with kept scores"
        return text, surely_above(published, 0)

    figures = {
        ("cifar10", "topk", "Top-k"): "82.7 % against 54.3 %; abstract: 28.47 points",
        ("cifar10", "fedavg", "FedAvg"): "82.7 % against 58.8 %",
        ("cifar10", "local", "local training"): "82.7 % against 65.4 %",
        ("fashion_mnist", "fedavg", "FedAvg"): "above, on four data sets",
        ("fashion_mnist", "local", "local training"): "above, on four data sets",
    }
    return [
        result_claim(
            _NAME,
            f"personal accuracy compared with {title}, {dataset} (figure 10)",
            paper,
            "trend",
            f"fedmask_{dataset}.jsonl",
            partial(judge, other, title),
            reason=_FEW_CLASSES,
        )
        for (dataset, other, title), paper in figures.items()
    ]


def _more_accuracies() -> list[Claim]:
    """Claims on baselines of figure 10 that only the comparison of all algorithms has run."""

    def judge(other: str, lines: Sequence[Line]) -> tuple[str, bool]:
        differences = gaps(lines, _personal, algorithm, _NAME, other)
        return f"{interval(differences)} points", surely_above(differences, 0)

    published = {"perfedavg": 79.6, "lgfedavg": 76.8, "sign": 21.5}
    return [
        result_claim(
            _NAME,
            f"personal accuracy compared with {other}, cifar10 (figure 10)",
            f"82.7 % against {paper} %",
            "trend",
            "two_classes_cifar10.jsonl",
            partial(judge, other),
            reason=_FEW_CLASSES,
        )
        for other, paper in published.items()
    ]


def _other_data() -> Claim:
    return unreachable_claim(
        _NAME,
        "personal accuracy on EMNIST, HAR and Shakespeare (figure 10)",
        "90.0, 99.5 and 58.7 %",
        "trend",
        f"{_NEEDS_DATA}; the rows above have Fashion-MNIST",
        "experiments/fedmask_accuracy.sh OUT",
    )


def _personal(line: Line) -> float:
    return 100 * line["last_personal_accuracy_mean"]
