"""ADP: Yu et al., 2021, arXiv 2106.06921."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_masks import models
from fedjax_masks.claims import divisions, nets
from fedjax_masks.claims.claim import Claim, bounded, counted, from_results, gaps, unreachable
from fedjax_masks.core.intervals import interval, surely_above
from fedjax_masks.data import synthetic_task
from fedjax_masks.models import Model, gated
from fedjax_masks.models.gates import inference_macs

_NAME = "adp"
_TASK = synthetic_task((32, 32, 3), 10, [20])
_TARGET = 0.7


def claims() -> list[Claim]:
    """The rows."""
    rows = [*nets.sizes(_NAME), *_gates(), *_macs(), *divisions.dirichlet(_NAME), *_inference()]
    return [*rows, *_communication(), *_quality(), *_logs()]


def _gates() -> list[Claim]:
    rows, added = [], {}
    for name, published in (("resnet20", 30_368), ("resnet32", 52_320)):
        plain = models.build_model(name, _TASK)
        added[name] = nets.parameter_count(gated(plain)) - nets.parameter_count(plain)
        rows.append(counted(_NAME, f"parameters of the gates of {name}", published, added[name], ""))
    more = 100 * added["resnet32"] / nets.parameter_count(models.resnet32(_TASK))
    return [*rows, counted(_NAME, "gates in a dense upload of resnet32", 11.3, more, "% more", digits=1)]


def _macs() -> list[Claim]:
    published = {0.8: (0.73, 2), 0.7: (0.585, 3), 0.6: (0.484, 3), 0.5: (0.375, 3)}
    what, unit = "convolution MACs of", "of the plain net's"
    rows = [
        counted(
            *(_NAME, f"{what} ResNet-32 with {ratio:.0%} of the channels active", share),
            *(_relative_macs(gated(models.resnet32(_TASK), ratio=ratio), ratio), unit),
            digits=digits,
        )
        for ratio, (share, digits) in published.items()
    ]
    vgg = models.vgg16(_TASK)
    halves = [
        bounded(
            *(_NAME, f"{what} {model.name} with {ratio:.0%} of the channels active (abstract: half)"),
            *("0.50", _relative_macs(gated(model, ratio=ratio), ratio), unit),
            high=0.5,
            digits=3,
        )
        for model, ratio in ((vgg, 0.7), (models.resnet32(_TASK), 0.6))
    ]
    chain = counted(
        *(_NAME, f"{what} vgg16 with 70% of the channels active: the ratio's square", 0.49),
        *(_relative_macs(gated(vgg, ratio=0.7), 0.7), unit),
        digits=2,
    )
    return [*rows, chain, *halves]


def _relative_macs(model: Model, ratio: float) -> float:
    active = {k.name: np.arange(k.outputs)[None] < round(ratio * k.outputs) for k in model.kernels if k.gate}
    whole = {name: np.ones_like(mask) for name, mask in active.items()}
    return float(inference_macs(model, active).conv[0] / inference_macs(model, whole).conv[0])


def _inference() -> list[Claim]:
    def judge(batch: str) -> Any:
        def of(lines: Sequence[dict[str, Any]]) -> tuple[str, bool]:
            ratio = lines[0]["latency_speedup"][_NAME][batch]
            return f"{ratio:.2f}x on a gated cnn, cut to its channels in use", ratio >= 2

        return of

    return [
        from_results(
            *(_NAME, f"faster inference, batch {batch} (abstract)", "2x", "measured"),
            *("masked_inference.json", judge(batch)),
        )
        for batch in ("1", "32")
    ]


def _communication() -> list[Claim]:
    def judge(federation: str) -> Any:
        def of(lines: Sequence[dict[str, Any]]) -> tuple[str, bool]:
            mine = [line for line in lines if line["federation"] == federation]
            off, on = ({n["seed"]: _bytes_to(n) for n in mine if n["gates"] is g} for g in (False, True))
            pairs = [(on[seed], off[seed]) for seed in sorted(on.keys() & off.keys())]
            saved = [100 * (1 - few / many) for few, many in pairs if few and many]
            if len(saved) < len(pairs):
                return f"reached by both in {len(saved)} of {len(pairs)} seeds", False
            return f"{interval([100 - share for share in saved])} % of the bytes", surely_above(saved, 0)

        return of

    return [
        from_results(
            _NAME,
            f"bytes to {_TARGET:.0%} accuracy, gates on against off, {federation}, fashion_mnist",
            "43 % of the bytes (CIFAR-10, ResNet-32)",
            "trend",
            "adp_fashion_mnist.jsonl",
            judge(federation),
            why="on this net every image keeps the same channels, and gates cost 0.6 % more bytes per round",
        )
        for federation in ("FedAvg", "FedProx", "FedNova", "SCAFFOLD")
    ]


def _quality() -> list[Claim]:
    def difference(lines: Sequence[dict[str, Any]], value: Any) -> list[float]:
        mine = [line for line in lines if line["federation"] == "FedAvg"]
        return gaps(mine, value, lambda line: line["gates"], lambda line: not line["gates"])

    def best(lines: Sequence[dict[str, Any]]) -> tuple[str, bool]:
        found = difference(lines, lambda line: 100 * max(line["accuracy"]))
        return f"{interval(found)} points", statistics.fmean(found) >= 0

    def gap(lines: Sequence[dict[str, Any]]) -> tuple[str, bool]:
        found = difference(lines, _overfitting)
        return f"{interval(found, 3)} with gates against without", surely_above([-one for one in found], 0)

    file = "adp_fashion_mnist.jsonl"
    return [
        from_results(
            *(_NAME, "best accuracy, gates on against off, FedAvg, fashion_mnist (abstract)"),
            *("the model's quality is kept", "trend", file, best),
            why="on this net every image keeps the same channels, so that gates leave a narrower net",
        ),
        from_results(
            *(_NAME, "train-test gap of accuracy per client, FedAvg, fashion_mnist"),
            *("0.03 to 0.05 with gates, 0.08 without", "trend", file, gap),
            why="on this net every image keeps the same channels, so that gates are no regulariser",
        ),
    ]


def _overfitting(line: dict[str, Any]) -> float:
    pairs = zip(line["client_train_accuracy"], line["client_test_accuracy"], strict=True)
    return statistics.fmean(train - test for train, test in pairs)


def _logs() -> list[Claim]:
    """Rounds to 70, 75 and 80 % of released logs: without gates, and with."""
    published = {
        "FedAvg": "27/43/never; 44-53/never/never",
        "FedProx": "44/70/never; 28/50/never",
        "FedNova": "36/45/never; 35/37/77",
        "SCAFFOLD": "19/23/49; 17/22/26",
    }
    return [
        unreachable(
            *(_NAME, f"rounds to 70/75/80 % on CIFAR-10, gates off; on: {federation} (logs)"),
            *(rounds, "trend"),
            "takes two different VGG nets for 100 rounds of ten epochs on 50,000 images; rounds of one small "
            "net on Fashion-MNIST, gates off and on, are in experiments/README.md",
            "python experiments/adp_rounds.py table experiments/results/adp_fashion_mnist.jsonl",
        )
        for federation, rounds in published.items()
    ]


def _bytes_to(line: dict[str, Any]) -> int | None:
    """Bytes per client until the target is reached, or None."""
    rounds = next((n for n, value in enumerate(line["accuracy"], 1) if value >= _TARGET), None)
    return None if rounds is None else rounds * (line["bytes_up"] + line["bytes_down"])
