"""EcoFed: Wu et al. 2024, arXiv 2304.05495.

Bytes are counted from the payloads of one client at the paper's size, without training it. Figures in MB and
ratios below the abstract's are ours, by formulas of the protocols. The authors send pickled messages; for
them, 700 bytes are added for each message with a tensor and labels, and half of that for each message with a
tensor alone. Both sizes are estimates of ours.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import optax

from fedjax_masks import models
from fedjax_masks.algorithms.ecofed import ecofed
from fedjax_masks.algorithms.fedavg import fedavg
from fedjax_masks.algorithms.fedgkt import fedgkt
from fedjax_masks.algorithms.lgl import lgl
from fedjax_masks.algorithms.splitfed import splitfed
from fedjax_masks.claims import divisions, ecofed_accuracy, nets, rpi4
from fedjax_masks.claims.claim import Claim, Statement, claim_out_of_reach
from fedjax_masks.claims.counts import exact_claim
from fedjax_masks.claims.exchange import counter
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Task
from fedjax_masks.data import synthetic_task
from fedjax_masks.models import Model

_NAME = "ecofed"
_EXAMPLES, _BATCH, _OVERHEAD = 500, 10, 700
_SGD = optax.sgd(0.01)
_FACTORIES = {"FedAvg": fedavg, "SplitFed": splitfed, "LGL": lgl, "FedGKT": fedgkt, "EcoFed": ecofed}
_OVERHEADS = {"FedAvg": 0, "SplitFed": 1.5, "LGL": 1, "FedGKT": 2, "EcoFed": 1}
"""Messages with a tensor and labels per minibatch; a message with a tensor alone counts as half of one."""
_CLIENT = "500 images, minibatches of 10, cut after conv2"
_exact = partial(exact_claim, _NAME)


class _Size(NamedTuple):
    """Bytes that a client sends and receives in a round in which it uploads.

    Attributes:
      payloads: Bytes of the payloads.
      overhead: Bytes of the messages around the payloads, as we estimate them.
    """

    payloads: float
    overhead: float

    @property
    def total(self) -> float:
        return self.payloads + self.overhead


def claims() -> list[Claim]:
    """Figures of EcoFed's paper and code beside ours."""
    task = synthetic_task((32, 32, 3), 10, [_EXAMPLES], test_per_client=1)
    vgg = {name: _round_size(name, models.vgg11(task), task) for name in _FACTORIES}
    return [
        *nets.sizes(_NAME),
        *_cuts(task),
        divisions.shards(_NAME),
        *_communication(vgg),
        *_reductions(vgg),
        *_resnet9(task),
        *_periods(vgg),
        *_published_seconds(),
        *_seconds(models.vgg11(task), vgg),
        *rpi4.claims(_NAME),
        *ecofed_accuracy.claims(),
    ]


def _cuts(task: Task) -> list[Claim]:
    """Claims on the parts that device and server hold, for clients with 500 images in minibatches of 10."""
    claims, vgg = [], models.vgg11(task)
    cuts = [(vgg, "conv1", 1_920, 16_384), (vgg, "conv2", 76_032, 8_192), (vgg, "conv4", 962_304, 4_096)]
    cuts += [(models.resnet9(task), "conv2", 76_032, 8_192)]
    for model, split, parameters, activations in cuts:
        algorithm = ecofed(model, _SGD, batch_size=_BATCH, split=split)
        state = jax.eval_shape(lambda key, a=algorithm: a.init(key, task), jax.random.key(0))
        num_activations, place = state.profiles.activations.values.size, f"{model.name} cut after {split}"
        code = partial(_exact, unit="", conditions="images of 32 x 32 x 3", basis="authors' code")
        claims += [
            code(f"parameters on the device, {place}", parameters, trees.size(state.server.device)),
            code(f"activations per image, {place}", activations, num_activations / _EXAMPLES),
        ]
        if (model.name, split) == ("vgg11", "conv2"):
            quantity = "size of 100 clients' 8-bit activations on the server"
            buffers = 100 * num_activations / 1e6
            claims.append(_exact(quantity, 409.6, buffers, "MB", conditions=place, digits=1))
    return claims


def _communication(vgg: Mapping[str, _Size]) -> list[Claim]:
    hundred = synthetic_task((32, 32, 3), 100, [_EXAMPLES], test_per_client=1)
    published = {"FedAvg": (275.5, 1), "SplitFed": (33.43, 2), "LGL": (17.69, 2), "FedGKT": (17.76, 2)}
    published_100 = {"FedAvg": (278.5, 1), "LGL": (23.59, 2), "FedGKT": (24.02, 2)}
    scope = "per client and round, VGG11"
    return [
        *(
            _megabytes(f"communication of {name} {scope}, CIFAR-10", paper, vgg[name].total, digits)
            for name, (paper, digits) in published.items()
        ),
        _megabytes(
            f"communication of EcoFed {scope}, CIFAR-10, uploads every other round",
            2.068,
            vgg["EcoFed"].total / 2,
            3,
        ),
        *(
            _megabytes(
                f"communication of {name} {scope}, 100 classes",
                paper,
                _round_size(name, models.vgg11(hundred), hundred).total,
                digits,
            )
            for name, (paper, digits) in published_100.items()
        ),
    ]


def _megabytes(quantity: str, paper: float, size: float, digits: int) -> Claim:
    return _exact(quantity, paper, size / 1e6, "MB", conditions=_CLIENT, digits=digits)


def _reductions(vgg: Mapping[str, _Size]) -> list[Claim]:
    """The largest reductions, with and without the overhead of messages, and checks with more digits."""
    fedavg, splitfed, eco = (vgg[name] for name in ("FedAvg", "SplitFed", "EcoFed"))
    quantity = "reduction of communication against"
    bare, whole = f"{_CLIENT}, payloads alone", f"{_CLIENT}, with our estimate of the messages' overhead"
    published = partial(_exact, unit="x", basis="published", reason="the overhead of messages is left out")
    eco_mean, eco_payloads = eco.total / 2, eco.payloads / 2
    abstract = {f"largest {quantity} FedAvg (abstract)": (133, fedavg)}
    abstract[f"largest {quantity} SplitFed (abstract)"] = (16, splitfed)
    return [
        *(
            published(claim, paper, ours, conditions=conditions)
            for claim, (paper, rival) in abstract.items()
            for ours, conditions in ((rival.total / eco_mean, whole), (rival.payloads / eco_payloads, bare))
        ),
        _ratio(f"{quantity} SplitFed, VGG11", 16.17, splitfed.total / eco_mean, whole, 2),
        _ratio(f"{quantity} FedAvg, VGG11, payloads", 134.4, fedavg.payloads / eco_payloads, bare, 1),
        _ratio(f"{quantity} SplitFed, VGG11, payloads", 16.28, splitfed.payloads / eco_payloads, bare, 2),
    ]


def _ratio(quantity: str, expected: float, ours: float, conditions: str, digits: int) -> Claim:
    return _exact(quantity, expected, ours, "x", conditions=conditions, digits=digits)


def _resnet9(task: Task) -> list[Claim]:
    fedavg, eco = (_round_size(name, models.resnet9(task), task) for name in ("FedAvg", "EcoFed"))
    reduction = fedavg.total / (eco.total / 2)
    return [
        _megabytes("communication of FedAvg per client and round, ResNet9", 75.17, fedavg.total, 2),
        _ratio("reduction of communication against FedAvg, ResNet9", 36.4, reduction, _CLIENT, 1),
    ]


def _periods(vgg: Mapping[str, _Size]) -> list[Claim]:
    expected = {1: (66.6, 1), 2: (133.3, 1), 4: (266.5, 1), 8: (533, 0)}
    claims = []
    for rounds, (figure, digits) in expected.items():
        period = "every round" if rounds == 1 else f"every {rounds} rounds"
        quantity = f"reduction of communication against FedAvg, VGG11, uploads {period}"
        reduction = vgg["FedAvg"].total / (vgg["EcoFed"].total / rounds)
        claims.append(_ratio(quantity, figure, reduction, _CLIENT, digits))
    return claims


def _round_size(name: str, model: Model, task: Task) -> _Size:
    """The size of one client's round with 500 examples in minibatches of 10, counted from its payloads."""
    algorithm = _FACTORIES[name](model, _SGD, batch_size=_BATCH)
    state = jax.eval_shape(lambda key: algorithm.init(key, task), jax.random.key(0))
    exchange = counter(algorithm, task)(trees.zeros_like(state))
    return _Size(sum(exchange), _OVERHEADS[name] * _OVERHEAD * _EXAMPLES / _BATCH)


def _published_seconds() -> list[Claim]:
    statements = (
        Statement(
            _NAME, f"largest reduction of time against {rival} (abstract)", paper, "measured", "published"
        )
        for rival, paper in (("FedAvg", "21x"), ("SplitFed", "2.86x"))
    )
    return [
        claim_out_of_reach(
            statement,
            "the authors' devices and links",
            "fedjax-masks claims",
            "needs the authors' devices; a clock with a speed, a link and a server of our choice gives the "
            "checks below, which are no evidence",
        )
        for statement in statements
    ]


def _seconds(model: Model, sizes: Mapping[str, _Size]) -> list[Claim]:
    """Checks on time; a device of 2.5 GFLOP/s and 8 seconds of the server are choices of ours."""
    forward = {k.path[0]: 2.0 * k.positions * np.prod(k.shape) for k in model.kernels}
    device = forward["conv1"] + forward["conv2"]
    flops = {"FedAvg": 3 * sum(forward.values()), "SplitFed": 3 * device, "EcoFed": device / 2}

    def seconds(name: str, rate: float) -> float:
        size = sizes[name].total / (2 if name == "EcoFed" else 1)
        server = 0 if name == "FedAvg" else 8
        return 8 * size / rate + _EXAMPLES * flops[name] / 2.5e9 + server

    def reduction(name: str, rate: int) -> float:
        return seconds(name, rate * 1e6) / seconds("EcoFed", rate * 1e6)

    expected = {
        ("FedAvg", 50): (20.7, 1),
        ("FedAvg", 100): (19.2, 1),
        ("SplitFed", 50): (3.06, 2),
        ("SplitFed", 100): (2.88, 2),
    }
    constants = f"{_CLIENT}, device of 2.5 GFLOP/s, 8 s of the server: constants of ours"
    return [
        _ratio(
            f"reduction of time against {name} at {rate} Mbit/s, VGG11",
            figure,
            reduction(name, rate),
            constants,
            digits,
        )
        for (name, rate), (figure, digits) in expected.items()
    ]
