"""MPFL: Gez and Cohen, 2023, arXiv 2312.03889."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_masks import models
from fedjax_masks.algorithms.consensus import RULES
from fedjax_masks.algorithms.mpfl import mpfl_search
from fedjax_masks.claims import nets
from fedjax_masks.claims.claim import Claim, bounded, counted, from_results, gaps, listed, unreachable
from fedjax_masks.communication import payload
from fedjax_masks.core.intervals import interval, surely_above
from fedjax_masks.data import synthetic_task

_NAME = "mpfl"
_TASK = synthetic_task((32, 32, 3), 10, [20])
_CLIENTS = 10
_ITERATIONS = (1, 2, 3, 5, 9)
_VGG11 = (64, 128, 256, 256, 512, 512, 512, 512)


def claims() -> list[Claim]:
    """The rows."""
    return [*_masks(), *_schedules(), *_accuracies()]


def _masks() -> list[Claim]:
    """Of the published nets, whose stem or classifier is wider than ours, and which keep statistics."""
    published = {
        "vgg11": ({"norm": None}, 2_752, 21_908, 515.2, (49 - 4) * 512 * 4096),
        "resnet18": ({}, 4_800, 24_020, 44.8, (49 - 9) * 3 * 64),
        "resnet34": ({}, 8_512, 42_580, 85.2, (49 - 9) * 3 * 64),
    }
    rows = []
    for name, (options, filters, outputs, megabytes, wider) in published.items():
        model = models.build_model(name, _TASK, **options)
        algorithm = mpfl_search(model, optax.sgd(0.1))
        state = jax.eval_shape(lambda key, a=algorithm: a.init(key, _TASK), jax.random.key(0))
        statistics = 2 * sum(kernel.outputs for kernel in model.kernels if kernel.norm)
        tensors = jax.tree.leaves(state.common)
        by_tensor = sum(leaf.shape[-1] for leaf in tensors) + statistics
        dense = 4 * (nets.parameter_count(model) + wider + statistics) / 1e6
        sent = payload.static_bits(state.server.filters)
        rows += [
            counted(_NAME, f"a mask of {name}, one bit per filter", filters, sent, "bits"),
            counted(_NAME, f"a mask of {name}, one bit per output of a tensor", outputs, by_tensor, "bits"),
            counted(_NAME, f"the dense {name} of torchvision", megabytes, dense, "MB", digits=1),
        ]
    return rows


def schedule(rule: str, disagreement: float, *, share: float = 0.1, seed: int = 0) -> list[float]:
    """How much of VGG11 is pruned after each of ten iterations, if clients' ranks differ by noise.

    Args:
      rule: Among :data:`fedjax_masks.algorithms.consensus.RULES`.
      disagreement: Standard deviation of the noise; that of what the ranks have in common is 1.
      share: Of the living filters that each client votes off in an iteration.
      seed: Of both.

    Returns:
      Per cent of all filters.
    """
    rng, decide = np.random.default_rng(seed), _compiled(rule)
    scores = [rng.normal(size=n) + disagreement * rng.normal(size=(_CLIENTS, n)) for n in _VGG11]
    masks, sparsity = [np.ones(n, bool) for n in _VGG11], []
    for iteration in range(10):
        for layer, score in enumerate(scores):
            alive = masks[layer]
            number = round(share * alive.sum()) if iteration else 0
            votes = np.zeros(alive.size, np.int32)
            for own in score:
                votes += alive
                votes[np.argsort(np.where(alive, own, np.inf), kind="stable")[:number]] -= 1
            required = jnp.float32(iteration * share)
            masks[layer] = np.asarray(decide(votes, _CLIENTS, required, alive.astype(np.float32)))
        sparsity.append(100 * (1 - np.concatenate(masks).mean()))
    return sparsity


@functools.cache
def _compiled(rule: str) -> Callable[..., jax.Array]:
    return jax.jit(RULES[rule])


def _schedules() -> list[Claim]:
    def at(rule: str, disagreement: float, number: int) -> list[float]:
        found = schedule(rule, disagreement)
        return [found[t] for t in _ITERATIONS[:number]]

    what = "of VGG11's filters pruned after 1, 2, 3, 5, 9 votes of"
    alike = {rule: [10, 19, 27, 41, 61] for rule in RULES} | {"topk": [10, 20, 30, 50, 90]}
    noisy = {"dynamic": [17, 35, 52, 77], "majority": [9, 18, 24, 35, 50], "topk": [10, 20, 30, 50, 90]}
    return [
        *(
            listed(_NAME, f"{what} equal ranks, {rule}", paper, at(rule, 0.0, len(paper)), "%")
            for rule, paper in alike.items()
        ),
        *(
            listed(
                *(_NAME, f"{what} moderately different ranks, {rule}: within 1.5", paper),
                *(at(rule, 0.2, len(paper)), "%"),
                within=1.5,
            )
            for rule, paper in noisy.items()
        ),
        bounded(
            *(_NAME, "of VGG11's filters pruned after 8 votes of moderately different ranks, dynamic"),
            *("over 90 %", schedule("dynamic", 0.2)[8], "%"),
            low=90,
            digits=1,
        ),
    ]


def _accuracies() -> list[Claim]:
    def judge(iteration: int) -> Any:
        def of(lines: Sequence[dict[str, Any]]) -> tuple[str, bool]:
            found = gaps(
                [line for line in lines if line["iteration"] == iteration],
                lambda line: 100 * line["accuracy"],
                lambda line: line["curve"] == "mpfl",
                lambda line: line["curve"] == "fedavg-then-prune",
            )
            return f"{interval(found)} points", surely_above(found, 0)

        return of

    def traffic(lines: Sequence[dict[str, Any]]) -> tuple[str, bool]:
        last = [line for line in lines if line["iteration"] == 9]
        sent = {
            curve: [line["bytes_total"] for line in last if line["curve"] == curve]
            for curve in ("mpfl", "fedavg-then-prune")
        }
        shares = [mine / whole for mine, whole in zip(*sent.values(), strict=True)]
        return f"{interval(shares, 3)} of FedAvg-then-prune's", max(shares) < 1

    whole = "FedAvg has trained the whole model before, and twice as long"
    reasons = dict.fromkeys((3, 5, 7), whole) | {9: "above in the mean; three seeds are too few to be sure"}
    return [
        *(
            from_results(
                _NAME,
                f"accuracy over FedAvg-then-prune, {10 * iteration} % of the filters pruned, fashion_mnist",
                "above at every sparsity",
                "trend",
                "mpfl_fashion_mnist.jsonl",
                judge(iteration),
                why=why,
            )
            for iteration, why in reasons.items()
        ),
        from_results(
            *(_NAME, "bytes of search and training, 90 % of the filters pruned, fashion_mnist (abstract)"),
            *("significant savings", "exact", "mpfl_fashion_mnist.jsonl", traffic),
        ),
        unreachable(
            *(_NAME, "better than other methods on CIFAR-10, CIFAR-100 and ImageNet-100 (abstract)"),
            *("above at every sparsity", "trend"),
            "takes ImageNet-100 and CIFAR-100, which are not at hand, and nets of up to 21 million "
            "pre-trained parameters; LeNet on Fashion-MNIST is above",
            "python experiments/mpfl_sparsity.py run --out experiments/results/mpfl_fashion_mnist.jsonl",
        ),
    ]
