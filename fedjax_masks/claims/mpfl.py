"""MPFL: Gez and Cohen, 2023, arXiv 2312.03889."""

import functools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_masks import models
from fedjax_masks.algorithms.consensus import RULES
from fedjax_masks.algorithms.mpfl import mpfl_search
from fedjax_masks.claims import nets
from fedjax_masks.claims.claim import Claim, Statement, claim_not_run, claim_out_of_reach
from fedjax_masks.claims.counts import bounded_claim, exact_claim, list_claim
from fedjax_masks.claims.result_files import Line, result_claim
from fedjax_masks.claims.trends import Comparison, percent, trend_claims
from fedjax_masks.communication import size
from fedjax_masks.core.intervals import interval
from fedjax_masks.data import synthetic_task

_NAME = "mpfl"
_TASK = synthetic_task((32, 32, 3), 10, [20])
_CLIENTS = 10
_ITERATIONS = (1, 2, 3, 5, 9)
_VGG11 = (64, 128, 256, 256, 512, 512, 512, 512)
_FILE = "mpfl_fashion_mnist.jsonl"
_RIVAL = "fedavg-then-prune"


def claims() -> list[Claim]:
    """Figures of MPFL's paper and code beside ours."""
    return [*_masks(), *_schedules(), *_accuracies(), _traffic(), *_other_data()]


def _masks() -> list[Claim]:
    """Claims on the masks of the networks of the authors' code, and a check of the dense sizes.

    The authors prune convolutions by whole filters, and a helper of theirs counts a bit for each output of a
    tensor. Their stems or classifiers are wider than ours, and they keep statistics of batch normalization.
    """
    published = {
        "vgg11": ({"norm": None}, 2_752, 21_908, 515.2, (49 - 4) * 512 * 4096),
        "resnet18": ({}, 4_800, 24_020, 44.8, (49 - 9) * 3 * 64),
        "resnet34": ({}, 8_512, 42_580, 85.2, (49 - 9) * 3 * 64),
    }
    claims, exact = [], partial(exact_claim, _NAME)
    for name, (options, filters, outputs, megabytes, wider) in published.items():
        model = models.build_model(name, _TASK, **options)
        algorithm = mpfl_search(model, optax.sgd(0.1))
        state = jax.eval_shape(lambda key, a=algorithm: a.init(key, _TASK), jax.random.key(0))
        statistics = 2 * sum(kernel.outputs for kernel in model.kernels if kernel.norm)
        tensors = jax.tree.leaves(state.server.initial)
        per_tensor = sum(leaf.shape[-1] for leaf in tensors) + statistics
        dense = 4 * (nets.parameter_count(model) + wider + statistics) / 1e6
        per_filter = size.static_bits(state.server.filters)
        mask, shapes = f"size of a mask of {name}", "10 classes"
        code = partial(exact, conditions=shapes, basis="authors' code")
        claims += [
            code(f"{mask}, one bit per filter", filters, per_filter, "bits"),
            code(f"{mask}, one bit per output of a tensor", outputs, per_tensor, "bits"),
            exact(f"size of torchvision's dense {name}", megabytes, dense, "MB", conditions=shapes, digits=1),
        ]
    return claims


def schedule(rule: str, disagreement: float, *, share: float = 0.1, seed: int = 0) -> list[float]:
    """Simulates ten iterations of votes on VGG11's filters by clients whose ranks differ by noise.

    Args:
      rule: A key of :data:`fedjax_masks.algorithms.consensus.RULES`.
      disagreement: The standard deviation of the noise; the part of the scores that clients share has 1.
      share: The share of the remaining filters that each client votes against in an iteration.
      seed: The seed of scores and noise.

    Returns:
      The share of all filters that is pruned after each iteration, in per cent.
    """
    rng, decide = np.random.default_rng(seed), _compiled(rule)
    scores = [rng.normal(size=n) + disagreement * rng.normal(size=(_CLIENTS, n)) for n in _VGG11]
    masks, sparsity = [np.ones(n, bool) for n in _VGG11], []
    for iteration in range(10):
        for layer, layer_scores in enumerate(scores):
            alive = masks[layer]
            number = round(share * alive.sum()) if iteration else 0
            votes = np.zeros(alive.size, np.int32)
            for client_scores in layer_scores:
                votes += alive
                order = np.argsort(np.where(alive, client_scores, np.inf), kind="stable")
                votes[order[:number]] -= 1
            required = jnp.float32(iteration * share)
            masks[layer] = np.asarray(decide(votes, _CLIENTS, required, alive.astype(np.float32)))
        sparsity.append(100 * (1 - np.concatenate(masks).mean()))
    return sparsity


@functools.cache
def _compiled(rule: str) -> Callable[..., jax.Array]:
    return jax.jit(RULES[rule])


def _schedules() -> list[Claim]:
    equal = {rule: [10, 19, 27, 41, 61] for rule in RULES} | {"topk": [10, 20, 30, 50, 90]}
    different = {"dynamic": [17, 35, 52, 77], "majority": [9, 18, 24, 35, 50], "topk": [10, 20, 30, 50, 90]}
    quantity = "share of VGG11's filters pruned after"
    votes = f"{quantity} 1, 2, 3, 5, 9 votes"
    simulated = "simulated votes of 10 clients, a tenth of the remaining filters each"

    def claim(ranks: str, rule: str, paper: list[int], disagreement: float, tolerance: float) -> Claim:
        sparsity = schedule(rule, disagreement)
        ours = [sparsity[iteration] for iteration in _ITERATIONS[: len(paper)]]
        claim = f"{votes} by {ranks}, {rule}"
        return list_claim(_NAME, claim, paper, ours, "%", conditions=simulated, tolerance=tolerance)

    return [
        *(claim("equal ranks", rule, paper, 0.0, 0.5) for rule, paper in equal.items()),
        *(
            claim("moderately different ranks (within 1.5)", rule, paper, 0.2, 1.5)
            for rule, paper in different.items()
        ),
        bounded_claim(
            _NAME,
            f"{quantity} 8 votes by moderately different ranks, dynamic",
            "over 90 %",
            schedule("dynamic", 0.2)[8],
            "%",
            conditions=simulated,
            low=90,
            digits=1,
        ),
    ]


_accuracy = partial(
    Comparison, value=percent("accuracy"), group=lambda line: (line["curve"], line["iteration"])
)
_LONGER = "FedAvg-then-prune has trained the whole model before, and twice as long"
_PRETRAINED = "pre-trained on images that no client has"
_RIVALS = {
    _RIVAL: ("FedAvg's weights kept", _LONGER),
    "fedavg-mask": ("every mask trained from the initial weights, as in the authors' code", ""),
}
_RUNGS = {"small": (3, 5, 7, 9), "middle": (7, 9), "large": (7, 9)}
_RUNS = (
    *(
        _accuracy(
            *(_FILE, (_NAME, iteration), (_RIVAL, iteration)),
            options=f"{10 * iteration} % of the filters pruned, LeNet 10-20-64",
            reason=reason,
        )
        for iteration, reason in {3: _LONGER, 5: _LONGER, 7: _LONGER, 9: ""}.items()
    ),
    *(
        _accuracy(
            *(f"mpfl_public_{rung}.jsonl", (_NAME, iteration), (rival, iteration)),
            options=f"{10 * iteration} % of the filters pruned, {score}, {_PRETRAINED}",
            reason=reason,
        )
        for rung, iterations in _RUNGS.items()
        for rival, (score, reason) in _RIVALS.items()
        for iteration in iterations
    ),
)
"""Our runs of MPFL and FedAvg-then-prune, by the iteration of the mask; a new result file adds lines."""

_CLAIM = "accuracy compared with FedAvg-then-prune (abstract)"


def _accuracies() -> list[Claim]:
    return trend_claims(Statement(_NAME, _CLAIM, "above at every sparsity", "trend", "published"), _RUNS)


def _traffic() -> Claim:
    def judge(lines: Sequence[Line]) -> tuple[str, bool]:
        lines = [line for line in lines if line["iteration"] == 9]
        ours, theirs = (
            [line["bytes_total"] for line in lines if line["curve"] == curve] for curve in (_NAME, _RIVAL)
        )
        shares = [mask / dense for mask, dense in zip(ours, theirs, strict=True)]
        return f"{interval(shares, 3)} of FedAvg-then-prune's", max(shares) < 1

    claim = "bytes of search and training; the abstract's significant savings have no number"
    return result_claim(
        Statement(_NAME, claim, "below FedAvg-then-prune's", "exact"),
        "90 % of the filters pruned, LeNet 10-20-64, fashion_mnist, 10 clients, 3 seeds",
        _FILE,
        judge,
    )


def _other_data() -> list[Claim]:
    """Claims on the networks of the paper."""
    above, run = "above at every sparsity", "python experiments/mpfl_sparsity.py run"
    cifar10 = "accuracy compared with other methods on CIFAR-10"
    rest = "accuracy compared with other methods on CIFAR-100 and ImageNet-100"
    networks = "VGG11, ResNet18 and ResNet34 of torchvision, pre-trained on ImageNet"
    return [
        claim_not_run(
            Statement(_NAME, f"{cifar10} (figures)", above, "trend", "published"),
            "LeNet 10-20-64 or a wider network, from random weights",
            f"{run} --dataset cifar10 --out OUT",
            "weights that are pre-trained on ImageNet are not available here, so a run would start from "
            "random weights",
        ),
        claim_out_of_reach(
            Statement(_NAME, f"{rest} (figures)", above, "trend", "published"),
            networks,
            f"{run} --out OUT",
            "needs ImageNet-100 and CIFAR-100, and the pre-trained weights of networks of up to 21 million "
            "parameters; the rows above have LeNet on Fashion-MNIST",
        ),
    ]
