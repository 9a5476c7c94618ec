"""Personal accuracies of FedMask: Li et al., SenSys 2021, figure 10.

The paper's figures are read off its bars. A new result file adds a row to a claim by one line of ``_RUNS``.
"""

from functools import partial

from fedjax_masks.claims.claim import Claim, Statement, claim_out_of_reach
from fedjax_masks.claims.result_files import algorithm
from fedjax_masks.claims.trends import Comparison, percent, trend_claims

NEEDS_DATA = "needs these data sets, which are not available here, and a recurrent network for Shakespeare"

_NAME = "fedmask"
_KEPT = f"{_NAME}-keep-scores"
_CIFAR10, _FASHION = "fedmask_cifar10.jsonl", "fedmask_fashion_mnist.jsonl"
_ALL_SYSTEMS = "two_classes_cifar10.jsonl"
_FEW_CLASSES = (
    "two classes are easy to learn alone, and the majority vote keeps little of a device's own mask"
)
_TOWARDS = "the gap shrinks with the network, the data and the rounds, towards parity and not to a lead"
_LADDER = (
    *("fashion_mnist_1", "fashion_mnist_2", "fashion_mnist_3"),
    *("cifar10_1", "cifar10_2", "cifar10_3"),
)
_WITH_PERFEDAVG = tuple(rung for rung in _LADDER if rung != "cifar10_3")
_over = partial(
    Comparison,
    value=percent("last_personal_accuracy_mean"),
    options="scores rebuilt in every round",
    reason=_FEW_CLASSES,
)
_kept_over = partial(_over, options="defaults, kept scores")

_RUNS = {
    ("Top-k", "82.7 % against 54.3 % on CIFAR-10; abstract: 28.47 points"): [
        _over(_CIFAR10, _NAME, "topk"),
        _kept_over(_CIFAR10, _KEPT, "topk"),
    ],
    ("FedAvg", "82.7 % against 58.8 % on CIFAR-10; above on four data sets"): [
        _over(_CIFAR10, _NAME, "fedavg"),
        _kept_over(_CIFAR10, _KEPT, "fedavg"),
        _over(_FASHION, _NAME, "fedavg"),
        _kept_over(_FASHION, _KEPT, "fedavg"),
    ],
    ("local training", "82.7 % against 65.4 % on CIFAR-10; above on four data sets"): [
        _over(_CIFAR10, _NAME, "local"),
        _kept_over(_CIFAR10, _KEPT, "local"),
        _over(_FASHION, _NAME, "local"),
        _kept_over(_FASHION, _KEPT, "local"),
        *(_kept_over(f"fedmask_ladder_{data}.jsonl", _KEPT, "local", reason=_TOWARDS) for data in _LADDER),
    ],
    ("Per-FedAvg", "82.7 % against 79.6 % on CIFAR-10; above on four data sets"): [
        _over(_ALL_SYSTEMS, _NAME, "perfedavg", group=algorithm),
        *(_kept_over(f"fedmask_ladder_{data}.jsonl", _KEPT, "perfedavg") for data in _WITH_PERFEDAVG),
    ],
    ("LG-FedAvg", "82.7 % against 76.8 % on CIFAR-10; above on four data sets"): [
        _over(_ALL_SYSTEMS, _NAME, "lgfedavg", group=algorithm),
        *(_kept_over(f"fedmask_ladder_{data}.jsonl", _KEPT, "lgfedavg") for data in _LADDER),
    ],
    ("BNN-FedAvg", "82.7 % against 21.5 % on CIFAR-10; above on four data sets"): [
        _over(_ALL_SYSTEMS, _NAME, "sign", group=algorithm),
    ],
}
"""Our runs by the method that FedMask is compared with, and the published figures."""


def claims() -> list[Claim]:
    """The order of FedMask and its rivals in figure 10, beside ours."""
    quantity, other_data = "personal accuracy", "EMNIST, activity recognition and Shakespeare"
    orders = [
        row
        for (rival, paper), runs in _RUNS.items()
        for row in trend_claims(
            Statement(_NAME, f"{quantity} compared with {rival} (figure 10)", paper, "trend", "published"),
            runs,
        )
    ]
    rest = claim_out_of_reach(
        Statement(
            *(_NAME, f"{quantity} on {other_data} (figure 10)"),
            *("90.0, 99.5 and 58.7 %", "trend", "published"),
        ),
        "the devices and networks of table 4",
        "experiments/fedmask_accuracy.sh OUT",
        f"{NEEDS_DATA}; the rows above have CIFAR-10 and Fashion-MNIST",
    )
    return [*orders, rest]
