"""FedSkel: Luo et al., CIKM 2021, doi 10.1145/3459637.3482107."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_masks import models, payload, trees
from fedjax_masks.algorithms.fedskel import fedskel, keep_count
from fedjax_masks.analysis.intervals import interval, surely_above
from fedjax_masks.claims.claim import LIVE, Claim, counted, from_results, gaps
from fedjax_masks.data import synthetic_task

_NAME = "fedskel"


def claims() -> list[Claim]:
    """The rows."""
    return [*_communication(), *_speedups(), *_accuracies(), _stragglers()]


def _communication() -> list[Claim]:
    """By the formula, and from the bits of a real message of either kind of round."""
    task, updates, ratio = synthetic_task((32, 32, 3), 10, [20]), 4, 0.189
    model = models.resnet18(task)
    algorithm = fedskel(model, optax.sgd(0.1), ratios=(ratio,), updates=updates)
    server = jax.eval_shape(lambda key: algorithm.init(key, task), jax.random.key(0)).server
    params = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), server.params)
    filters = [kernel for kernel in model.kernels if kernel.kind == "conv"]
    share = sum(math.prod(kernel.shape) for kernel in filters) / trees.size(params)
    skeletons = {k.name: jnp.arange(k.outputs)[None] < keep_count(k.outputs, ratio) for k in filters}

    def bits(index: int) -> int:
        chosen = server._replace(params=params, skeletons=skeletons, round=jnp.int32(index))
        return payload.bits(algorithm.send(chosen, jnp.int32(0)))

    def saved(of_update: float) -> float:
        return 100 * (1 - (1 + updates * of_update) / (1 + updates))

    setting = "communication saved on ResNet-18, k = 4, r = 0.189"
    formula, real = saved(ratio * share + 1 - share), saved(bits(1) / bits(0))
    whole = f"{real:.1f} %"
    # Whole filters are kept: the share differs from r by less than one filter of the narrowest layer.
    met = abs(real - formula) <= 100 * updates / (1 + updates) / min(k.outputs for k in filters)
    return [
        counted(_NAME, f"{setting} (abstract)", 64.8, formula, "%", digits=1),
        Claim(
            *(_NAME, "the same in whole filters, from messages"),
            *("64.8 %", whole, "exact", "met" if met else "missed", "fedjax-masks claims", LIVE),
        ),
    ]


def _speedups() -> list[Claim]:
    def judge(key: str, paper: float) -> Any:
        def of(lines: Sequence[dict[str, Any]]) -> tuple[str, bool]:
            ratio = lines[0][key]["0.1"]
            return f"{ratio:.2f}x", ratio >= paper

        return of

    figures = {"backward pass of the convolutions": "conv_backward", "whole training step": "training_step"}
    return [
        from_results(
            _NAME,
            f"{what}, ResNet-18 at ratio 0.1 (abstract)",
            f"{paper:.2f}x",
            "measured",
            "fedskel_backward.json",
            judge(f"{key}_speedup", paper),
        )
        for (what, key), paper in zip(figures.items(), (5.52, 1.82))
    ]


def _accuracies() -> list[Claim]:
    def judge(lines: Sequence[dict[str, Any]]) -> tuple[str, bool]:
        found = gaps(
            lines,
            lambda line: 100 * line["last_global_accuracy"],
            lambda line: line["algorithm"]["name"] == _NAME,
            lambda line: line["algorithm"]["name"] == "fedavg",
        )
        return f"{interval(found)} points against FedAvg", statistics.fmean(found) >= -1

    return [
        from_results(
            _NAME,
            f"global accuracy on {dataset}, two shards per client (abstract)",
            "negligible loss: within 1 point of FedAvg",
            "trend",
            f"fedskel_{dataset}.jsonl",
            judge,
        )
        for dataset in ("cifar10", "fashion_mnist")
    ]


def _stragglers() -> Claim:
    def judge(lines: Sequence[dict[str, Any]]) -> tuple[str, bool]:
        whole, fitted = (
            {
                line["seed"]: line["sim_seconds"]
                for line in lines
                if line["run"].startswith(f"{_NAME}-{kind}-")
            }
            for kind in ("whole", "by-device")
        )
        ratios = [whole[seed] / fitted[seed] for seed in whole]
        return f"{interval(ratios, digits=2)}x less simulated time on digits", surely_above(ratios, 1)

    return from_results(
        _NAME,
        "rounds of unequal devices, each with the skeleton that it can afford (abstract)",
        "balances systems heterogeneity",
        "trend",
        "devices_digits.jsonl",
        judge,
    )
