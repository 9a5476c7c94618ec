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
from fedjax_masks.claims.claim import Claim, bounded_claim, exact_claim, list_claim, unreachable_claim
from fedjax_masks.claims.result_files import FOLDER, Line, gaps, result_claim
from fedjax_masks.communication import size
from fedjax_masks.core.intervals import interval, surely_above
from fedjax_masks.data import synthetic_task

_NAME = "mpfl"
_TASK = synthetic_task((32, 32, 3), 10, [20])
_CLIENTS = 10
_ITERATIONS = (1, 2, 3, 5, 9)
_VGG11 = (64, 128, 256, 256, 512, 512, 512, 512)
_FILE = "mpfl_fashion_mnist.jsonl"
_RIVAL = "fedavg-then-prune"


def claims() -> list[Claim]:
    """Published figures of MPFL beside ours."""
    return [*_masks(), *_schedules(), *_accuracies(), _traffic(), _other_data()]


def _masks() -> list[Claim]:
    """Claims on sizes of the published networks.

    Their stems or classifiers are wider than ours, and they keep statistics of batch normalization.
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
        claims += [
            exact(f"size of a mask of {name}, one bit per filter", filters, per_filter, "bits"),
            exact(f"size of a mask of {name}, one bit per output of a tensor", outputs, per_tensor, "bits"),
            exact(f"size of torchvision's dense {name}", megabytes, dense, "MB", digits=1),
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

    def claim(ranks: str, rule: str, paper: list[int], disagreement: float, tolerance: float) -> Claim:
        sparsity = schedule(rule, disagreement)
        ours = [sparsity[iteration] for iteration in _ITERATIONS[: len(paper)]]
        return list_claim(_NAME, f"{votes} by {ranks}, {rule}", paper, ours, "%", tolerance=tolerance)

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
            low=90,
            digits=1,
        ),
    ]


def _accuracies() -> list[Claim]:
    def judge(iteration: int, lines: Sequence[Line]) -> tuple[str, bool]:
        lines = [line for line in lines if line["iteration"] == iteration]
        differences = gaps(lines, lambda n: 100 * n["accuracy"], lambda n: n["curve"], _NAME, _RIVAL)
        return f"{interval(differences)} points", surely_above(differences, 0)

    longer = "FedAvg-then-prune has trained the whole model before, and twice as long"
    few_seeds = "above in the mean, but three seeds are too few to be sure"
    quantity = "accuracy compared with FedAvg-then-prune"
    reasons = {3: longer, 5: longer, 7: longer, 9: few_seeds}
    return [
        result_claim(
            _NAME,
            f"{quantity}, {10 * iteration} % of the filters pruned, fashion_mnist",
            "above at every sparsity",
            "trend",
            _FILE,
            partial(judge, iteration),
            reason=reason,
        )
        for iteration, reason in reasons.items()
    ]


def _traffic() -> Claim:
    def judge(lines: Sequence[Line]) -> tuple[str, bool]:
        lines = [line for line in lines if line["iteration"] == 9]
        ours, theirs = (
            [line["bytes_total"] for line in lines if line["curve"] == curve] for curve in (_NAME, _RIVAL)
        )
        shares = [mask / dense for mask, dense in zip(ours, theirs, strict=True)]
        return f"{interval(shares, 3)} of FedAvg-then-prune's", max(shares) < 1

    quantity = "bytes of search and training, 90 % of the filters pruned, fashion_mnist (abstract)"
    return result_claim(_NAME, quantity, "significant savings", "exact", _FILE, judge)


def _other_data() -> Claim:
    return unreachable_claim(
        _NAME,
        "accuracy compared with other methods on CIFAR-10, CIFAR-100 and ImageNet-100 (abstract)",
        "above at every sparsity",
        "trend",
        "needs ImageNet-100 and CIFAR-100, which are not available here, and pre-trained networks of up to "
        "21 million parameters; the rows above have LeNet on Fashion-MNIST",
        f"python experiments/mpfl_sparsity.py run --out {FOLDER}/{_FILE}",
    )
