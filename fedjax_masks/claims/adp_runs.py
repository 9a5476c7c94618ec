"""Runs of ADP: bytes to a target accuracy, accuracies, and logs; Yu et al., 2021, arXiv 2106.06921.

A new result file adds a row to a claim by one line of ``_BYTES``, ``_ACCURACIES`` or ``_GAPS``.
"""

import statistics
from functools import partial

from fedjax_masks.claims.claim import Claim, Statement, claim_not_run, explained, judged_claim
from fedjax_masks.claims.result_files import FOLDER, Line, read_results
from fedjax_masks.claims.trends import Comparison, conditions_of, position, trend_claims
from fedjax_masks.core.intervals import interval, surely_above

_NAME = "adp"
_TARGET = 0.7
_FILE = "adp_fashion_mnist.jsonl"
_NET = (
    "cnn 8-16-32 with sigmoid gates and no normalization, r = 0.7; fashion_mnist, Dirichlet 0.1, ten clients "
    "with a fortieth of their images"
)
_SAME_CHANNELS = "with this network every image keeps the same channels"

_BYTES = (
    (_FILE, "FedAvg", _NET),
    (_FILE, "FedProx", _NET),
    (_FILE, "FedNova", _NET),
    (_FILE, "SCAFFOLD", _NET),
)
"""Result file, federation and network of each row of the claim on bytes."""

_FEDAVG_ON, _FEDAVG_OFF = ("FedAvg", True), ("FedAvg", False)
_runs = partial(
    Comparison,
    group=lambda line: (line["federation"], line["gates"]),
    command=f"python experiments/adp_rounds.py run --out {FOLDER}/{_FILE}",
)
_ACCURACIES = (
    _runs(
        *(_FILE, _FEDAVG_ON, _FEDAVG_OFF),
        value=lambda line: 100 * max(line["accuracy"]),
        options=f"best accuracy, FedAvg, {_NET}",
        reason=f"{_SAME_CHANNELS}, so gates only make the network narrower",
    ),
)
_GAPS = (
    _runs(
        *(_FILE, _FEDAVG_OFF, _FEDAVG_ON),
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
        *(_bytes_claim(saved, *row) for row in _BYTES),
        *trend_claims(quality, _ACCURACIES, bound=-1),
        *trend_claims(overfitting, _GAPS, unit="of accuracy", digits=3),
        *_logs(),
    ]


def _bytes_claim(statement: Statement, file: str, federation: str, net: str) -> Claim:
    """A row on one federation: the share of the bytes, paired by seed.

    It is met if all seeds reach the target and the whole interval lies below 100 %.
    """
    results, options = read_results(file), f"to {_TARGET:.0%}, {federation}, {net}"
    if results is None:
        command = f"python experiments/adp_rounds.py run --out {FOLDER}/{file}"
        return claim_not_run(statement, options, command, f"needs {FOLDER}/{file}")
    runs = [line for line in results.lines if line["federation"] == federation]
    plain, gated = ({n["seed"]: _bytes_to_target(n) for n in runs if n["gates"] is g} for g in (False, True))
    pairs = [(gated[seed], plain[seed]) for seed in sorted(gated.keys() & plain.keys())]
    saved = [100 * (1 - ours / theirs) for ours, theirs in pairs if ours and theirs]
    if len(saved) < len(pairs):
        text, difference = f"reached by both in {len(saved)} of {len(pairs)} seeds", ""
    else:
        text = f"{interval([100 - share for share in saved])} % of the bytes"
        difference = f"savings {position(saved, 0)}"
    costs = f"{_SAME_CHANNELS}, and gates cost 0.6 % more bytes per round"
    return judged_claim(
        statement,
        conditions_of(options, runs[0], len(pairs)),
        text,
        len(saved) == len(pairs) and surely_above(saved, 0),
        note=explained(difference, costs) if difference else costs,
        command=results.command,
        source=results.source,
    )


def _bytes_to_target(line: Line) -> int | None:
    """Bytes per client until the first round that reaches the target, or None."""
    rounds = next((n for n, value in enumerate(line["accuracy"], 1) if value >= _TARGET), None)
    return None if rounds is None else rounds * (line["bytes_up"] + line["bytes_down"])


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
