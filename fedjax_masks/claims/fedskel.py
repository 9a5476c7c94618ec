"""FedSkel: Luo et al., CIKM 2021, doi 10.1145/3459637.3482107."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_masks import models
from fedjax_masks.algorithms.fedskel import fedskel, keep_count
from fedjax_masks.claims import nets
from fedjax_masks.claims.claim import Claim, bounded, counted, from_results, gaps
from fedjax_masks.communication import payload
from fedjax_masks.core.intervals import interval, surely_above
from fedjax_masks.data import synthetic_task

_NAME = "fedskel"


def claims() -> list[Claim]:
    """The rows."""
    rows = [*nets.sizes(_NAME), *_shares(), *_communication()]
    return [*rows, *_speedups(), _fixed_share(), *_accuracies(), _stragglers()]


def _conv_share(model: models.Model) -> float:
    """The share of a model's parameters that are weights of convolutions."""
    filters = [kernel for kernel in model.kernels if kernel.kind == "conv"]
    return sum(math.prod(kernel.shape) for kernel in filters) / nets.parameter_count(model)


def _shares() -> list[Claim]:
    digits = {"lenet": (5.9, 1), "resnet18": (99.87, 2)}
    return [
        counted(
            *(_NAME, f"weights of convolutions in {net.name}", paper, 100 * _conv_share(net.build())),
            "% of its parameters",
            digits=places,
        )
        for net in nets.NETS
        if net.system == _NAME and net.name in digits
        for paper, places in [digits[net.name]]
    ]


def _communication() -> list[Claim]:
    """By the formula, and from the bits of a real message of either kind of round."""
    task, updates, ratio = synthetic_task((32, 32, 3), 10, [20]), 4, 0.189
    model = models.resnet18(task)
    algorithm = fedskel(model, optax.sgd(0.1), ratios=(ratio,), updates=updates)
    server = jax.eval_shape(lambda key: algorithm.init(key, task), jax.random.key(0)).server
    params = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), server.params)
    filters = [kernel for kernel in model.kernels if kernel.kind == "conv"]
    share = _conv_share(model)
    skeletons = {k.name: jnp.arange(k.outputs)[None] < keep_count(k.outputs, ratio) for k in filters}

    def bits(index: int) -> int:
        chosen = server._replace(params=params, skeletons=skeletons, round=jnp.int32(index))
        return payload.bits(algorithm.send(chosen, jnp.int32(0)))

    def saved(of_update: float) -> float:
        return 100 * (1 - (1 + updates * of_update) / (1 + updates))

    def needed(updates: int) -> float:
        """The ratio that saves 64.8 %: the formula for the communication, solved for it."""
        of_update = (0.352 * (1 + updates) - 1) / updates
        return (of_update - (1 - share)) / share

    setting = "communication saved on ResNet-18, k = 4, r = 0.189"
    formula = saved(ratio * share + 1 - share)
    ratios = {3: (0.135, 3), 4: (0.189, 3), 5: (0.22, 2), 9: (0.28, 2)}
    return [
        *(
            counted(
                _NAME, f"ratio at which ResNet-18 saves 64.8 %, k = {k}", paper, needed(k), "", digits=digits
            )
            for k, (paper, digits) in ratios.items()
        ),
        counted(_NAME, f"{setting} (abstract)", 64.8, formula, "%", digits=1),
        # Whole filters are kept: the share differs from r by less than one filter of the narrowest layer.
        bounded(
            *(_NAME, "the same in whole filters, from messages", "64.8 %", saved(bits(1) / bits(0)), "%"),
            low=formula - 100 * updates / (1 + updates) / min(k.outputs for k in filters),
            high=formula + 100 * updates / (1 + updates) / min(k.outputs for k in filters),
            digits=1,
        ),
    ]


def _speedups() -> list[Claim]:
    def judge(key: str, paper: float) -> Any:
        def of(lines: Sequence[dict[str, Any]]) -> tuple[str, bool]:
            ratio = lines[0][key]["0.1"]
            return f"{ratio:.2f}x, {ratio / paper - 1:+.0%}", ratio >= paper

        return of

    figures = {
        "backward pass of the convolutions": (
            *("conv_backward", 5.52),
            "thin products of matrices run slower than wide ones, and a larger share of the dense pass than "
            "the published figure implies does not shrink with the skeleton",
        ),
        "whole training step": (
            *("training_step", 1.82),
            "at this ratio more than half of a step is the forward pass, which is dense",
        ),
    }
    return [
        from_results(
            *(_NAME, f"{what}, ResNet-18 at ratio 0.1 (abstract)", f"{paper:.2f}x", "measured"),
            *("fedskel_backward.json", judge(f"{key}_speedup", paper)),
            why=why,
        )
        for what, (key, paper, why) in figures.items()
    ]


def _fixed_share() -> Claim:
    def judge(lines: Sequence[dict[str, Any]]) -> tuple[str, bool]:
        times = lines[0]["conv_backward_ms"]
        ratios = [0.1, 0.2, 0.4]
        line = statistics.linear_regression(ratios, [times[str(ratio)] / times["1.0"] for ratio in ratios])
        return f"{100 * line.intercept:.0f} %", line.intercept <= 0.09

    return from_results(
        *(_NAME, "share of the backward pass of the convolutions that no skeleton saves, as 5.52x implies"),
        *("9 %", "measured", "fedskel_backward.json", judge),
        why="the output's gradient, of which every cache line holds some filter of the skeleton, is read "
        "whole, as is the input, whose gradient is written whole",
    )


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
            why="a filter is averaged over the few clients that sent it, each of which has trained it beside "
            "others of its own; with one such round after each full one, on digits, most of the loss is gone",
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
