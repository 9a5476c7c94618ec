"""Runs of ADP: bytes to a target accuracy, accuracies, and logs; Yu et al., 2021, arXiv 2106.06921.

A new result file adds a row to a claim by one line of ``_BYTES``, ``_ACCURACIES`` or ``_GAPS``.
"""

import math
import statistics
from functools import partial

from fedjax_masks.claims.claim import Claim, Statement, claim_not_run, explained, judged_claim
from fedjax_masks.claims.curves import best_accuracy, bytes_to
from fedjax_masks.claims.result_files import FOLDER, Line, pairs, read_results
from fedjax_masks.claims.trends import Comparison, conditions_of, position, trend_claims
from fedjax_masks.core.intervals import interval, surely_above

_NAME = "adp"
_FILE = "adp_fashion_mnist.jsonl"
_NET = (
    "cnn 8-16-32 with sigmoid gates and no normalization, r = 0.7; fashion_mnist, Dirichlet 0.1, ten clients "
    "with a fortieth of their images"
)
_SAME_CHANNELS = "with this network every image keeps the same channels"

_GATES = "gates by channel means behind batch normalization, r = 0.7"
_MEANS = f"resnet20 of half the width, {_GATES}"
_QUARTER = f"resnet20 of a quarter of the width, {_GATES}"
_SLOWER = "gates slow down the first rounds"
_means = partial(Comparison, "adp_resnet20_cifar10.jsonl")
_quarter = partial(Comparison, "adp_resnet20_quarter_cifar10.jsonl")

_FEDAVG_ON, _FEDAVG_OFF = ("FedAvg", True), ("FedAvg", False)
_runs = partial(
    Comparison,
    _FILE,
    group=lambda line: (line["federation"], line["gates"]),
    command=f"python experiments/adp_rounds.py run --out {FOLDER}/{_FILE}",
)
_BYTES = (
    *(
        _runs(
            *((name, True), (name, False)),
            value=lambda line: bytes_to(line, 0.7),
            options=f"to 70%, {name}, {_NET}",
            reason=f"{_SAME_CHANNELS}, and gates cost 0.6 % more bytes per round",
        )
        for name in ("FedAvg", "FedProx", "FedNova", "SCAFFOLD")
    ),
    _means(
        *("adp", "fedavg"),
        value=lambda line: bytes_to(line, 0.3),
        options=f"to 30%, FedAvg, {_MEANS}",
        reason=f"{_SLOWER}, and cost 11 % more bytes per round",
    ),
    _quarter(
        *("adp", "fedavg"),
        value=lambda line: bytes_to(line, 0.25),
        options=f"to 25%, FedAvg, {_QUARTER}",
        reason=f"{_SLOWER}, and cost 12 % more bytes per round",
    ),
    _means(
        *("adp-half", "fedavg"),
        value=lambda line: bytes_to(line, 0.3),
        options=f"to 30%, FedAvg, upload_share = 0.5, {_MEANS}",
        reason=f"{_SLOWER}, and the message to the clients is dense",
    ),
)
_ACCURACIES = (
    _runs(
        *(_FEDAVG_ON, _FEDAVG_OFF),
        value=best_accuracy,
        options=f"best accuracy, FedAvg, {_NET}",
        reason=f"{_SAME_CHANNELS}, so gates only make the network narrower",
    ),
    _means(*("adp", "fedavg"), value=best_accuracy, options=f"best accuracy, FedAvg, {_MEANS}"),
    _quarter(
        *("adp", "fedavg"),
        value=best_accuracy,
        options=f"best accuracy, FedAvg, {_QUARTER}",
        reason="a narrow network has no channels to spare; at half the width no loss is seen",
    ),
)
_GAPS = (
    _runs(
        *(_FEDAVG_OFF, _FEDAVG_ON),
        value=lambda line: _overfitting(line),
        options=f"FedAvg, {_NET}",
        reason=f"{_SAME_CHANNELS}, so gates do not regularize",
    ),
)


def claims() -> list[Claim]:
    """Figures of ADP's runs beside ours."""
    saved = Statement(
        *(_NAME, "bytes to a target accuracy with gates compared to without (abstract)"),
        *("43 % of the bytes (ResNet-32, CIFAR-10); our reading: below 100 %", "trend", "published"),
    )
    quality = Statement(
        *(_NAME, "accuracy with gates compared to without (abstract)"),
        *("the model's quality is kept; our reading: at most 1 point lower", "trend", "published"),
    )
    overfitting = Statement(
        *(_NAME, "gap between training and test accuracy, without gates compared to with gates (logs)"),
        *("larger: 0.08 without gates, 0.03 to 0.05 with", "trend", "authors' code"),
    )
    return [
        *(_bytes_claim(saved, runs) for runs in _BYTES),
        *trend_claims(quality, _ACCURACIES, bound=-1),
        *trend_claims(overfitting, _GAPS, unit="of accuracy", digits=3),
        *_logs(),
    ]


def _bytes_claim(statement: Statement, runs: Comparison) -> Claim:
    """A row on two groups of runs: the share of the bytes, paired by seed.

    It is met if all seeds reach the target and the whole interval lies below 100 %.
    """
    results = read_results(runs.file)
    if results is None:
        return claim_not_run(statement, runs.options, runs.command, f"needs {FOLDER}/{runs.file}")
    figures = pairs(results.lines, runs.value, runs.group, runs.ours, runs.other)
    first = next(line for line in results.lines if runs.group(line) == runs.ours)
    saved = [100 * (1 - mine / other) for mine, other in figures if math.isfinite(max(mine, other))]
    if len(saved) < len(figures):
        text, note = f"reached by both in {len(saved)} of {len(figures)} seeds", runs.reason
    else:
        text = f"{interval([100 - share for share in saved])} % of the bytes"
        note = explained(f"savings {position(saved, 0)}", runs.reason)
    return judged_claim(
        statement,
        conditions_of(runs.options, first, len(figures)),
        text,
        len(saved) == len(figures) and surely_above(saved, 0),
        note=note,
        command=results.command,
        source=results.source,
    )


def _overfitting(line: Line) -> float:
    """The mean over clients of training accuracy minus test accuracy."""
    pairs = zip(line["client_train_accuracy"], line["client_test_accuracy"], strict=True)
    return statistics.fmean(train - test for train, test in pairs)


def _logs() -> list[Claim]:
    """Figures of released logs: rounds to 70, 75 and 80 % accuracy, and the last accuracy.

    The settings beside the logs name a VGG, also those of logs named ``resnet``: without gates VGG11, with
    gates a VGG16 that is 3.6 times as large.
    """
    rounds = {
        "FedAvg": "27/43/never; 44-53/never/never",
        "FedProx": "44/70/never; 28/50/never",
        "FedNova": "36/45/never; 35/37/77",
        "SCAFFOLD": "19/23/49; 17/22/26",
    }
    targets = "rounds to 70/75/80 % on CIFAR-10, gates off; the same with gates on"
    figures = {f"{targets}: {name} (logs)": (name, text) for name, text in rounds.items()}
    accuracy = "accuracy after 100 rounds on CIFAR-10, gates off; the same with gates on: FedAvg (logs)"
    figures[accuracy] = ("FedAvg", "78.7 %; 71.9 %")
    return [
        claim_not_run(
            Statement(_NAME, claim, text, "trend", "authors' code"),
            "gated vgg16-bn against vgg11, ten clients, Dirichlet 0.1, 100 rounds of ten epochs, "
            "minibatches of 64",
            "fedjax-masks run --algorithm adp --model vgg16-bn --dataset cifar10 --partition dirichlet:0.1 "
            "--clients 10 --cohort 10 --rounds 100 --epochs 10 --batch-size 64 --lr 0.01 "
            "--set algorithm.momentum=0.9 --set algorithm.weight_decay=1e-5 "
            f"--set algorithm.federation={federation.lower()} --out OUT",
            "100 rounds of ten epochs on 50,000 images",
        )
        for claim, (federation, text) in figures.items()
    ]
