"""EcoFed: Wu et al. 2024, arXiv 2304.05495.

Bytes are those of real payloads: of one client at the paper's size, without training it. To compare
with the paper, whose figures hold a message's overhead, 700 bytes are added per message with a
tensor and labels, half of that per bare tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_masks import models, payload, trees
from fedjax_masks.algorithm import ClientData, FederatedAlgorithm, Task
from fedjax_masks.algorithms.ecofed import ecofed
from fedjax_masks.algorithms.fedavg import fedavg
from fedjax_masks.algorithms.fedgkt import fedgkt
from fedjax_masks.algorithms.lgl import lgl
from fedjax_masks.algorithms.splitfed import splitfed
from fedjax_masks.analysis.intervals import interval, surely_above
from fedjax_masks.claims.claim import Claim, counted, from_results, gaps
from fedjax_masks.data import synthetic_task
from fedjax_masks.models import Model

_NAME = "ecofed"
_EXAMPLES, _BATCH, _OVERHEAD = 500, 10, 700
_SGD = optax.sgd(0.01)
_FACTORIES = {"FedAvg": fedavg, "SplitFed": splitfed, "LGL": lgl, "FedGKT": fedgkt, "EcoFed": ecofed}
_OVERHEADS = {"FedAvg": 0, "SplitFed": 1.5, "LGL": 1, "FedGKT": 2, "EcoFed": 1}
"""Messages with a tensor and labels per batch; a bare tensor is half of one."""


class _Size(NamedTuple):
    """What a client sends and receives in a round in which it sends, in bytes.

    Attributes:
      payloads: Of the payloads.
      overhead: Of the messages around them, as the paper counts.
    """

    payloads: float
    overhead: float

    @property
    def whole(self) -> float:
        return self.payloads + self.overhead


def claims() -> list[Claim]:
    """The rows."""
    task = synthetic_task((32, 32, 3), 10, [_EXAMPLES], test_per_client=1)
    vgg = {name: _round_size(name, models.vgg11(task), task) for name in _FACTORIES}
    return [*_sizes(task), *_bytes(task, vgg), *_seconds(models.vgg11(task), vgg), *_accuracies()]


def _row(claim: str, paper: float, ours: float, unit: str, digits: int = 0) -> Claim:
    return counted(_NAME, claim, paper, ours, unit, digits=digits)


def _sizes(task: Task) -> list[Claim]:
    rows = []
    for model, published in ((models.vgg11(task), 34_440_970), (models.resnet9(task), 9_395_722)):
        params = jax.eval_shape(model.init, jax.random.key(0))
        rows.append(_row(f"parameters of {model.name}", published, trees.size(params), ""))
    for split, size in (("conv1", 1_920), ("conv2", 76_032), ("conv4", 962_304)):
        device, _ = models.cut_model(models.vgg11(task), split).apart(
            jax.eval_shape(models.vgg11(task).init, jax.random.key(0))
        )
        rows.append(_row(f"parameters on the device, vgg11 cut behind {split}", size, trees.size(device), ""))
    return rows


def _bytes(ten: Task, vgg: Mapping[str, _Size]) -> list[Claim]:
    hundred = synthetic_task((32, 32, 3), 100, [_EXAMPLES], test_per_client=1)
    many = {name: _round_size(name, models.vgg11(hundred), hundred) for name in ("FedAvg", "LGL", "FedGKT")}
    resnet = {name: _round_size(name, models.resnet9(ten), ten) for name in ("FedAvg", "EcoFed")}
    whole, split, eco = (vgg[name] for name in ("FedAvg", "SplitFed", "EcoFed"))
    published = {"FedAvg": (275.5, 1), "SplitFed": (33.43, 2), "LGL": (17.69, 2), "FedGKT": (17.76, 2)}
    setting = "per client and round, VGG11"
    return [
        *(
            _row(f"{name} {setting}, CIFAR-10", paper, vgg[name].whole / 1e6, "MB", digits)
            for name, (paper, digits) in published.items()
        ),
        _row(f"EcoFed {setting}, CIFAR-10, every other round", 2.068, eco.whole / 2e6, "MB", 3),
        *(
            _row(f"{name} {setting}, 100 classes", paper, many[name].whole / 1e6, "MB", digits)
            for name, paper, digits in (("FedAvg", 278.5, 1), ("LGL", 23.59, 2), ("FedGKT", 24.02, 2))
        ),
        _row("less communication than SplitFed, VGG11", 16.17, split.whole / (eco.whole / 2), "x", 2),
        _row("without overhead, against FedAvg", 134.4, whole.payloads / (eco.payloads / 2), "x", 1),
        _row("without overhead, against SplitFed", 16.28, split.payloads / (eco.payloads / 2), "x", 2),
        _row("FedAvg per client and round, ResNet9", 75.17, resnet["FedAvg"].whole / 1e6, "MB", 2),
        _row(
            "less communication, ResNet9",
            36.4,
            resnet["FedAvg"].whole / (resnet["EcoFed"].whole / 2),
            "x",
            1,
        ),
        *(
            _row(f"less communication, activations every {n} rounds", paper, ours, "x", digits)
            for n, paper, digits in ((1, 66.6, 1), (2, 133.3, 1), (4, 266.5, 1), (8, 533, 0))
            for ours in [whole.whole / (eco.whole / n)]
        ),
    ]


def _round_size(name: str, model: Model, task: Task) -> _Size:
    """Of one client with 500 examples in batches of 10, from its payloads."""
    algorithm = _FACTORIES[name](model, _SGD, batch_size=_BATCH)
    state = jax.eval_shape(lambda key: algorithm.init(key, task), jax.random.key(0))
    return _Size(_payload_bytes(algorithm, state, task), _OVERHEADS[name] * _OVERHEAD * _EXAMPLES / _BATCH)


def _payload_bytes(algorithm: FederatedAlgorithm, state: Any, task: Task) -> float:
    size, rows = jnp.int32(_EXAMPLES), jnp.arange(_EXAMPLES)
    data = ClientData(jnp.asarray(task.inputs), jnp.asarray(task.labels), rows, size, size, jnp.int32(0))
    message = jax.eval_shape(algorithm.send, state.server, jax.ShapeDtypeStruct((), np.int32))

    def count(server: Any, common: Any, data: ClientData) -> list[jax.Array]:
        """What of the sizes depends on values; nothing else of training is compiled."""
        sent = algorithm.send(server, jnp.int32(0))
        _, upload, _ = algorithm.train(jax.random.key(0), common, sent, (), data)
        return [payload.traced_bits(sent), payload.traced_bits(upload), *payload.passed_bits(upload)]

    upload = jax.eval_shape(
        lambda common, message: algorithm.train(jax.random.key(0), common, message, (), data)[1],
        state.common,
        message,
    )
    zeros = trees.zeros_like((state.server, state.common))
    bits = sum(map(int, jax.jit(count)(*zeros, data)))
    return (bits + payload.static_bits(message) + payload.static_bits(upload)) / 8


def _seconds(model: Model, sizes: Mapping[str, _Size]) -> list[Claim]:
    """With devices of 2.5 GFLOP/s and 8 seconds of the server, as the paper's figures imply."""
    forward = {k.path[0]: 2.0 * k.positions * np.prod(k.shape) for k in model.kernels}
    device = forward["conv1"] + forward["conv2"]
    flops = {"FedAvg": 3 * sum(forward.values()), "SplitFed": 3 * device, "EcoFed": device / 2}

    def seconds(name: str, rate: float) -> float:
        size = sizes[name].whole / (2 if name == "EcoFed" else 1)
        server = 0 if name == "FedAvg" else 8
        return 8 * size / rate + _EXAMPLES * flops[name] / 2.5e9 + server

    published = {("FedAvg", 50): (20.7, 1), ("FedAvg", 100): (19.2, 1)}
    published |= {("SplitFed", 50): (3.06, 2), ("SplitFed", 100): (2.88, 2)}
    return [
        _row(
            f"less time than {name} at {rate} Mbit/s, devices of 2.5 GFLOP/s",
            paper,
            seconds(name, rate * 1e6) / seconds("EcoFed", rate * 1e6),
            "x",
            digits,
        )
        for (name, rate), (paper, digits) in published.items()
    ]


def _accuracies() -> list[Claim]:
    def judge(other: str, least: float) -> Callable[[Sequence[dict[str, Any]]], tuple[str, bool]]:
        def of(lines: Sequence[dict[str, Any]]) -> tuple[str, bool]:
            ours, theirs = (
                lambda n, name=name: n["run"].startswith(f"{name}-") for name in ("ecofed-fractal", other)
            )
            found = gaps(lines, _accuracy, ours, theirs)
            return f"{interval(found)} points", surely_above(found, least)

        return of

    return [
        from_results(
            _NAME,
            f"accuracy against {title}, pre-trained on fractals, {dataset}",
            paper,
            "trend",
            f"ecofed_{dataset}.jsonl",
            judge(other, least),
        )
        for dataset in ("fashion_mnist", "cifar10")
        for other, title, paper, least in (
            ("lgl", "LGL", "higher", 0.0),
            ("splitfed", "SplitFed", "at most 2 points lower", -2.0),
        )
    ]


def _accuracy(line: dict[str, Any]) -> float:
    return 100 * line["last_global_accuracy"]
