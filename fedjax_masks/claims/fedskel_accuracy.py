"""Accuracy of FedSkel's server model: Luo et al., CIKM 2021, doi 10.1145/3459637.3482107."""

from functools import partial

from fedjax_masks.claims.claim import Claim, Statement
from fedjax_masks.claims.trends import Comparison, percent, trend_claims

_NAME = "fedskel"
_global = partial(Comparison, value=percent("last_global_accuracy"))
_SENDERS = (
    "each filter is averaged over the few clients that sent it, and each of them trained it beside different "
    "filters of its own"
)
_CYCLE = "cohorts=cycle, rest=own, absent=ignore, no warm-up"
_VARIANTS = {
    "warm-fresh-revert-zero": "defaults, with a warm-up of half of the rounds",
    "warm-fresh-stale": "nearest to the authors' code: rest=own, absent=stale, and the same warm-up",
    "fresh-revert-zero": "defaults, no warm-up",
    "cycle": _CYCLE,
}
_DEFAULTS = _VARIANTS["warm-fresh-revert-zero"]
_late = partial(Comparison, other="fedavg", value=percent("late_global_accuracy"))
_RUNS = (
    *(
        _late(
            *(f"fedskel_variants_{data}.jsonl", variant),
            options=options,
            reason=_SENDERS if variant == "cycle" else "",
        )
        for variant, options in _VARIANTS.items()
        for data in ("fashion_mnist", "cifar10")
    ),
    *(
        _late("fedskel_variants_fashion_mnist.jsonl", f"warm-fresh-revert-zero-{name}", options=options)
        for name, options in {
            "dense": f"prune_dense, dense_neurons=active, {_DEFAULTS}",
            "dense-random": f"prune_dense, {_DEFAULTS}",
            "dense-half-random": f"prune_dense, ratio 0.5, {_DEFAULTS}",
        }.items()
    ),
    _late("fedskel_resnet18_cifar10.jsonl", "warm-fresh-revert-zero", options=_DEFAULTS),
    _global("fedskel_cifar10.jsonl", _NAME, "fedavg", options=_CYCLE, reason=_SENDERS),
    _global("fedskel_fashion_mnist.jsonl", _NAME, "fedavg", options=_CYCLE, reason=_SENDERS),
)
"""Our runs of FedSkel and FedAvg; a new result file adds one line."""


def claims() -> list[Claim]:
    """The server's model beside FedAvg's, under each set of conditions."""
    paper = "negligible loss; our reading: at most 1 point below FedAvg"
    claim = "accuracy of the server's model compared with FedAvg (abstract)"
    return trend_claims(Statement(_NAME, claim, paper, "trend", "published"), _RUNS, bound=-1)
