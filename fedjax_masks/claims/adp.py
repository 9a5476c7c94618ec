"""ADP: Yu et al., 2021, arXiv 2106.06921.

The abstract of version 1 has the speed of inference, that of version 2 the bytes. The authors' networks, logs
and commands are those of the repository of the second author (dphuongn/dynamic_pruning_federated_learning).
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fedjax_masks import models
from fedjax_masks.claims import divisions, nets
from fedjax_masks.claims.claim import Claim, Statement, claim_not_run, explained, judged_claim
from fedjax_masks.claims.counts import bounded_claim, exact_claim
from fedjax_masks.claims.result_files import FOLDER, Line, Results, latency_claims, read_results
from fedjax_masks.claims.trends import Comparison, position, trend_claims
from fedjax_masks.core.intervals import interval, surely_above
from fedjax_masks.data import synthetic_task
from fedjax_masks.models import Model, gated
from fedjax_masks.models.gates import inference_macs

_NAME = "adp"
_TASK = synthetic_task((32, 32, 3), 10, [20])
_TARGET = 0.7
_exact = partial(exact_claim, _NAME)
_ROUNDS_FILE = "adp_fashion_mnist.jsonl"
_CONDITIONS = (
    "cnn 8-16-32 with sigmoid gates and no normalization, r = 0.7, fashion_mnist, Dirichlet 0.1, ten clients "
    "with a fortieth of their images"
)
_SCRIPT = f"python experiments/adp_rounds.py run --out {FOLDER}/{_ROUNDS_FILE}"
_SAME_CHANNELS = "with this network every image keeps the same channels"


def claims() -> list[Claim]:
    """Figures of ADP's paper, code and logs beside ours."""
    return [
        *nets.sizes(_NAME),
        *_gates(),
        *_macs(),
        *divisions.dirichlet(_NAME),
        *_inference(),
        *_communication(),
        *_quality(),
        *_logs(),
    ]


def _gates() -> list[Claim]:
    claims, added, shapes = [], {}, "10 classes"
    for name, parameters in (("resnet20", 30_368), ("resnet32", 52_320)):
        plain = models.build_model(name, _TASK)
        added[name] = nets.parameter_count(gated(plain)) - nets.parameter_count(plain)
        quantity = f"gate parameters of {name}"
        claims.append(_exact(quantity, parameters, added[name], "", conditions=shapes, basis="authors' code"))
    growth = 100 * added["resnet32"] / nets.parameter_count(models.resnet32(_TASK))
    quantity = "growth of a dense upload of resnet32 by its gates"
    return [*claims, _exact(quantity, 11.3, growth, "% more", conditions=shapes, digits=1)]


def _macs() -> list[Claim]:
    """The published half of the FLOPs at the released ratio of 0.7, and checks of the formula by ratio.

    A residual network gets to a half at ratios from 0.6 downwards, which no released command uses.
    """
    shares = {0.8: (0.73, 2), 0.7: (0.585, 3), 0.6: (0.484, 3), 0.5: (0.375, 3)}
    unit = "of the MACs with all channels"
    nets_by_name = {"vgg16": models.vgg16(_TASK), "resnet32": models.resnet32(_TASK)}
    checks = [
        _exact(
            f"convolution MACs of resnet32 with {ratio:.0%} of the channels active",
            share,
            _relative_macs(nets_by_name["resnet32"], ratio),
            unit,
            conditions="by the formula (r + r²) / 2",
            digits=digits,
        )
        for ratio, (share, digits) in shares.items()
    ]
    # In a chain of convolutions both ends of a kernel lose channels, in a residual block only some do.
    checks.append(
        _exact(
            "convolution MACs of vgg16 with 70% of the channels active",
            0.49,
            _relative_macs(nets_by_name["vgg16"], 0.7),
            unit,
            conditions="by the formula r²",
            digits=2,
        )
    )
    half = [
        bounded_claim(
            *(_NAME, "FLOPs of inference (abstract)"),
            *("a half", _relative_macs(model, 0.7), unit),
            conditions=f"{name}, r = 0.7 as in the released commands, MACs of convolutions without gates",
            basis="published",
            high=0.5,
            digits=3,
        )
        for name, model in nets_by_name.items()
    ]
    return [*half, *checks]


def _relative_macs(model: Model, ratio: float) -> float:
    """MACs of a gated model's convolutions, over those with all channels active."""
    model = gated(model, ratio=ratio)
    active = {k.name: np.arange(k.outputs)[None] < round(ratio * k.outputs) for k in model.kernels if k.gate}
    dense = {name: np.ones_like(mask) for name, mask in active.items()}
    return float(inference_macs(model, active).conv[0] / inference_macs(model, dense).conv[0])


def _inference() -> list[Claim]:
    """The published speed-up, which nobody has timed, and a check that cut networks are faster at all."""
    bench = "fedjax-masks bench --workload masked-inference --rounds 10 --json"
    return [
        claim_not_run(
            Statement(_NAME, "speed-up of inference (abstract)", "2x", "measured", "published"),
            "a network whose channels change with the image, beside the network without gates",
            bench,
            "the benchmark cuts a network once for each client, at r = 0.5, and a program under jit computes "
            "suppressed channels, too; a device that skips them for each image is not among our forms",
        ),
        *latency_claims(
            Statement(
                *(_NAME, "speed-up of a gated network that is cut to one client's channels"),
                *("above 1x: fewer channels take less time", "measured"),
            ),
            1,
            "cnn on CPU, r = 0.5, synthetic images, every image keeps the same channels",
        ),
    ]


def _communication() -> list[Claim]:
    statement = Statement(
        *(_NAME, "bytes to a target accuracy with gates compared to without (abstract)"),
        *("43 % of the bytes (ResNet-32, CIFAR-10); below 100 %", "trend", "published"),
    )
    results = read_results(_ROUNDS_FILE)
    return [
        _bytes_claim(statement, federation, results)
        for federation in ("FedAvg", "FedProx", "FedNova", "SCAFFOLD")
    ]


def _bytes_claim(statement: Statement, federation: str, results: Results | None) -> Claim:
    """One federation: the share of the bytes, paired by seed, whose whole interval must be below 100 %."""
    conditions = f"{federation}, {_TARGET:.0%}, {_CONDITIONS}"
    if results is None:
        return claim_not_run(statement, conditions, _SCRIPT, f"needs {FOLDER}/{_ROUNDS_FILE}")
    runs = [line for line in results.lines if line["federation"] == federation]
    plain_bytes, gated_bytes = (
        {n["seed"]: _bytes_to_target(n) for n in runs if n["gates"] is g} for g in (False, True)
    )
    pairs = [
        (gated_bytes[seed], plain_bytes[seed]) for seed in sorted(gated_bytes.keys() & plain_bytes.keys())
    ]
    saved = [100 * (1 - ours / theirs) for ours, theirs in pairs if ours and theirs]
    is_met = len(saved) == len(pairs) and surely_above(saved, 0)
    text = f"{interval([100 - share for share in saved])} % of the bytes"
    if len(saved) < len(pairs):
        text = f"reached by both in {len(saved)} of {len(pairs)} seeds"
        reason = f"{_SAME_CHANNELS}, and gates cost 0.6 % more bytes per round"
    else:
        reason = explained(
            f"savings {position(saved, 0)}", f"{_SAME_CHANNELS}; gates cost 0.6 % more a round"
        )
    origin = {"command": results.command, "source": results.source}
    return judged_claim(statement, conditions, text, is_met, note=reason, **origin)


def _bytes_to_target(line: Line) -> int | None:
    """Bytes per client until the first round that reaches the target, or None."""
    rounds = next((n for n, value in enumerate(line["accuracy"], 1) if value >= _TARGET), None)
    return None if rounds is None else rounds * (line["bytes_up"] + line["bytes_down"])


_gates_over = partial(Comparison, group=lambda line: (line["federation"], line["gates"]))
_ON, _OFF = ("FedAvg", True), ("FedAvg", False)
_QUALITY = (
    _gates_over(
        *(_ROUNDS_FILE, _ON, _OFF),
        value=lambda line: 100 * max(line["accuracy"]),
        options=f"best accuracy, FedAvg, {_CONDITIONS}",
        reason=f"{_SAME_CHANNELS}, so gates only make the network narrower",
    ),
)
"""Runs with gates and without; a new result file adds one line."""
_GAPS = (
    _gates_over(
        *(_ROUNDS_FILE, _OFF, _ON),
        value=lambda line: _overfitting(line),
        options=f"FedAvg, {_CONDITIONS}",
        reason=f"{_SAME_CHANNELS}, so gates do not regularize",
    ),
)


def _quality() -> list[Claim]:
    claim = "accuracy with gates compared to without (abstract)"
    paper = "the model's quality is kept; our reading: at most 1 point lower"
    gap = "gap between training and test accuracy, without gates compared to with gates (logs)"
    logged = "0.08 without gates, 0.03 to 0.05 with"
    return [
        *trend_claims(Statement(_NAME, claim, paper, "trend", "published"), _QUALITY, bound=-1),
        *trend_claims(
            Statement(_NAME, gap, logged, "trend", "authors' code"), _GAPS, unit="of accuracy", digits=3
        ),
    ]


def _overfitting(line: Line) -> float:
    """The mean over clients of training accuracy minus test accuracy."""
    pairs = zip(line["client_train_accuracy"], line["client_test_accuracy"], strict=True)
    return statistics.fmean(train - test for train, test in pairs)


def _logs() -> list[Claim]:
    """Rounds to 70, 75 and 80 % accuracy in released logs, without gates and with."""
    logged = {
        "FedAvg": "27/43/never; 44-53/never/never",
        "FedProx": "44/70/never; 28/50/never",
        "FedNova": "36/45/never; 35/37/77",
        "SCAFFOLD": "19/23/49; 17/22/26",
    }
    return [
        claim_not_run(
            Statement(
                _NAME,
                f"rounds to 70/75/80 % on CIFAR-10, gates off; the same with gates on: {federation} (logs)",
                rounds,
                "trend",
                "authors' code",
            ),
            "VGG, ten clients, Dirichlet 0.1, 100 rounds of ten epochs, minibatches of 64",
            "fedjax-masks run --algorithm adp --model vgg11 --dataset cifar10 --partition dirichlet:0.1 "
            "--clients 10 --cohort 10 --rounds 100 --epochs 10 --batch-size 64 --lr 0.01 "
            "--set algorithm.momentum=0.9 --set algorithm.weight_decay=1e-5 "
            f"--set algorithm.federation={federation.lower()} --out OUT",
            "100 rounds of ten epochs on 50,000 images; the logs with gates off and on are of two networks",
        )
        for federation, rounds in logged.items()
    ]
