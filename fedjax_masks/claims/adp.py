"""ADP: Yu et al., 2021, arXiv 2106.06921."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fedjax_masks import models
from fedjax_masks.claims import divisions, nets
from fedjax_masks.claims.claim import Claim, bounded_claim, exact_claim, unreachable_claim
from fedjax_masks.claims.result_files import FOLDER, Line, gaps, latency_claims, result_claim
from fedjax_masks.core.intervals import interval, surely_above
from fedjax_masks.data import synthetic_task
from fedjax_masks.models import Model, gated
from fedjax_masks.models.gates import inference_macs

_NAME = "adp"
_TASK = synthetic_task((32, 32, 3), 10, [20])
_TARGET = 0.7
_ROUNDS_FILE = "adp_fashion_mnist.jsonl"
_SAME_CHANNELS = "with this network every image keeps the same channels"


def claims() -> list[Claim]:
    """Published figures of ADP beside ours."""
    return [
        *nets.sizes(_NAME),
        *_gates(),
        *_macs(),
        *divisions.dirichlet(_NAME),
        *latency_claims(
            _NAME, "speed-up of inference", "abstract", 2, "a gated cnn, cut to its channels in use"
        ),
        *_communication(),
        *_quality(),
        *_logs(),
    ]


def _gates() -> list[Claim]:
    claims, added = [], {}
    for name, published in (("resnet20", 30_368), ("resnet32", 52_320)):
        plain = models.build_model(name, _TASK)
        added[name] = nets.parameter_count(gated(plain)) - nets.parameter_count(plain)
        claims.append(exact_claim(_NAME, f"gate parameters of {name}", published, added[name], ""))
    growth = 100 * added["resnet32"] / nets.parameter_count(models.resnet32(_TASK))
    quantity = "growth of a dense upload of resnet32 by its gates"
    return [*claims, exact_claim(_NAME, quantity, 11.3, growth, "% more", digits=1)]


def _macs() -> list[Claim]:
    exact, bound = partial(exact_claim, _NAME), partial(bounded_claim, _NAME)
    published = {0.8: (0.73, 2), 0.7: (0.585, 3), 0.6: (0.484, 3), 0.5: (0.375, 3)}
    quantity, unit = "convolution MACs of", "of the plain net's"
    resnet, vgg = models.resnet32(_TASK), models.vgg16(_TASK)
    claims = [
        exact(
            f"{quantity} ResNet-32 with {ratio:.0%} of the channels active",
            share,
            _relative_macs(resnet, ratio),
            unit,
            digits=digits,
        )
        for ratio, (share, digits) in published.items()
    ]
    # In a chain of convolutions both ends of a kernel lose channels, in a residual block only some do.
    square = f"{quantity} vgg16 with 70% of the channels active (the square of the ratio)"
    claims.append(exact(square, 0.49, _relative_macs(vgg, 0.7), unit, digits=2))
    for model, ratio in ((vgg, 0.7), (resnet, 0.6)):
        half = f"{quantity} {model.name} with {ratio:.0%} of the channels active (abstract: half)"
        claims.append(bound(half, "0.50", _relative_macs(model, ratio), unit, high=0.5, digits=3))
    return claims


def _relative_macs(model: Model, ratio: float) -> float:
    """MACs of a gated model's convolutions, over those with all channels active."""
    model = gated(model, ratio=ratio)
    active = {k.name: np.arange(k.outputs)[None] < round(ratio * k.outputs) for k in model.kernels if k.gate}
    dense = {name: np.ones_like(mask) for name, mask in active.items()}
    return float(inference_macs(model, active).conv[0] / inference_macs(model, dense).conv[0])


def _communication() -> list[Claim]:
    def judge(federation: str, lines: Sequence[Line]) -> tuple[str, bool]:
        runs = [line for line in lines if line["federation"] == federation]
        plain_bytes, gated_bytes = (
            {n["seed"]: _bytes_to_target(n) for n in runs if n["gates"] is g} for g in (False, True)
        )
        pairs = [
            (gated_bytes[seed], plain_bytes[seed]) for seed in sorted(gated_bytes.keys() & plain_bytes.keys())
        ]
        saved = [100 * (1 - ours / theirs) for ours, theirs in pairs if ours and theirs]
        if len(saved) < len(pairs):
            return f"reached by both in {len(saved)} of {len(pairs)} seeds", False
        return f"{interval([100 - share for share in saved])} % of the bytes", surely_above(saved, 0)

    return [
        result_claim(
            _NAME,
            f"bytes to {_TARGET:.0%} accuracy with gates compared to without, {federation}, fashion_mnist",
            "43 % of the bytes (CIFAR-10, ResNet-32)",
            "trend",
            _ROUNDS_FILE,
            partial(judge, federation),
            reason=f"{_SAME_CHANNELS}, and gates cost 0.6 % more bytes per round",
        )
        for federation in ("FedAvg", "FedProx", "FedNova", "SCAFFOLD")
    ]


def _bytes_to_target(line: Line) -> int | None:
    """Bytes per client until the first round that reaches the target, or None."""
    rounds = next((n for n, value in enumerate(line["accuracy"], 1) if value >= _TARGET), None)
    return None if rounds is None else rounds * (line["bytes_up"] + line["bytes_down"])


def _quality() -> list[Claim]:
    def best(lines: Sequence[Line]) -> tuple[str, bool]:
        differences = _gate_effects(lines, lambda line: 100 * max(line["accuracy"]))
        return f"{interval(differences)} points", statistics.fmean(differences) >= 0

    def gap(lines: Sequence[Line]) -> tuple[str, bool]:
        differences = _gate_effects(lines, _overfitting)
        smaller = surely_above([-difference for difference in differences], 0)
        return f"{interval(differences, 3)} with gates against without", smaller

    claim = partial(result_claim, _NAME, label="trend", file=_ROUNDS_FILE)
    return [
        claim(
            claim="best accuracy with gates compared to without, FedAvg, fashion_mnist (abstract)",
            paper="the model's quality is kept",
            judge=best,
            reason=f"{_SAME_CHANNELS}, so gates only make the network narrower",
        ),
        claim(
            claim="gap between training and test accuracy of a client, FedAvg, fashion_mnist",
            paper="0.03 to 0.05 with gates, 0.08 without",
            judge=gap,
            reason=f"{_SAME_CHANNELS}, so gates do not regularize",
        ),
    ]


def _gate_effects(lines: Sequence[Line], value: Callable[[Line], float]) -> list[float]:
    """Differences of FedAvg with gates from FedAvg without, by seed."""
    runs = [line for line in lines if line["federation"] == "FedAvg"]
    return gaps(runs, value, lambda line: line["gates"], True, False)


def _overfitting(line: Line) -> float:
    """The mean over clients of training accuracy minus test accuracy."""
    pairs = zip(line["client_train_accuracy"], line["client_test_accuracy"], strict=True)
    return statistics.fmean(train - test for train, test in pairs)


def _logs() -> list[Claim]:
    """Rounds to 70, 75 and 80 % accuracy in released logs, without gates and with."""
    published = {
        "FedAvg": "27/43/never; 44-53/never/never",
        "FedProx": "44/70/never; 28/50/never",
        "FedNova": "36/45/never; 35/37/77",
        "SCAFFOLD": "19/23/49; 17/22/26",
    }
    return [
        unreachable_claim(
            _NAME,
            f"rounds to 70/75/80 % on CIFAR-10, gates off; the same with gates on: {federation} (logs)",
            rounds,
            "trend",
            "needs 100 rounds of ten epochs on 50,000 images with two different VGG networks; "
            "experiments/README.md has the rounds of one small network on Fashion-MNIST, gates off and on",
            f"python experiments/adp_rounds.py table {FOLDER}/{_ROUNDS_FILE}",
        )
        for federation, rounds in published.items()
    ]
