"""FedSkel: Luo et al., CIKM 2021, doi 10.1145/3459637.3482107."""

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax

from fedjax_masks import models
from fedjax_masks.algorithms.fedskel import fedskel
from fedjax_masks.algorithms.skeleton_averages import Cycle
from fedjax_masks.algorithms.skeletons import keep_count
from fedjax_masks.claims import fedskel_accuracy, nets
from fedjax_masks.claims.claim import Claim, Statement
from fedjax_masks.claims.counts import bounded_claim, exact_claim
from fedjax_masks.claims.result_files import Line, result_claim, setting
from fedjax_masks.communication import size
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Round, Task
from fedjax_masks.core.intervals import interval, surely_above
from fedjax_masks.data import synthetic_task

_NAME = "fedskel"
_BACKWARD = "fedskel_backward.json"
_exact = partial(exact_claim, _NAME)


def claims() -> list[Claim]:
    """Figures of FedSkel's paper and code beside ours."""
    return [
        *nets.sizes(_NAME),
        *_shares(),
        *_communication(),
        *_speedups(),
        _fixed_share(),
        *fedskel_accuracy.claims(),
        _unequal_devices(),
    ]


def _conv_share(model: models.Model) -> float:
    """The share of a model's parameters that are weights of convolutions."""
    filters = [kernel for kernel in model.kernels if kernel.kind == "conv"]
    return sum(math.prod(kernel.shape) for kernel in filters) / nets.parameter_count(model)


def _shares() -> list[Claim]:
    published = {"lenet": (5.9, 1), "resnet18": (99.87, 2)}
    return [
        _exact(
            f"weights of convolutions in {net.name}",
            paper,
            100 * _conv_share(net.build()),
            "% of its parameters",
            conditions="counted from shapes",
            digits=digits,
        )
        for net in nets.NETS
        if net.system == _NAME and net.name in published
        for paper, digits in [published[net.name]]
    ]


def _communication() -> list[Claim]:
    """Claims on the communication that skeletons save, by the formula and from the bits of messages.

    The paper publishes neither the ratio nor the number of rounds behind its figure. A ratio that is solved
    for the figure proves nothing, so those rows are checks of the formula.
    """
    task, updates, ratio = synthetic_task((32, 32, 3), 10, [20]), 4, 0.189
    model = models.resnet18(task)
    share = _conv_share(model)

    def saved(update_size: float) -> float:
        """Per cent saved by rounds of skeletons of a relative size, after each full round."""
        return 100 * (1 - (1 + updates * update_size) / (1 + updates))

    def saved_by_messages(ratio: float) -> float:
        bits = _message_bits(model, task, updates, ratio)
        return saved(bits(1) / bits(0))

    def required_ratio(updates: int) -> float:
        """The ratio that saves 64.8 %: the formula for the communication, solved for the ratio."""
        update_size = (0.352 * (1 + updates) - 1) / updates
        return (update_size - (1 - share)) / share

    formula = saved(ratio * share + 1 - share)
    # Filters are sent whole: the share differs from r by less than one filter of the narrowest layer.
    narrowest = min(kernel.outputs for kernel in model.kernels if kernel.kind == "conv")
    margin = 100 * updates / (1 + updates) / narrowest
    ratios = {3: (0.135, 3), 4: (0.189, 3), 5: (0.22, 2), 9: (0.28, 2)}
    schedule = f"ResNet-18, k = {updates} (our default)"
    return [
        *(
            bounded_claim(
                *(_NAME, "communication saved (abstract)"),
                *("64.8 %", saved_by_messages(ratio), "%"),
                conditions=f"{schedule}, r = {ratio:g}{remark}",
                basis="published",
                low=64.8,
                digits=1,
            )
            for ratio, remark in ((0.1, ", as in the rows of speed-ups"), (0.2, ""))
        ),
        *(
            _exact(
                f"skeleton ratio that saves 64.8 % of the communication, k = {k}",
                paper,
                required_ratio(k),
                "",
                conditions="ResNet-18, by the formula",
                digits=digits,
            )
            for k, (paper, digits) in ratios.items()
        ),
        bounded_claim(
            _NAME,
            f"communication saved by messages of whole filters, r = {ratio}",
            f"{formula:.1f} % by the formula",
            saved_by_messages(ratio),
            "%",
            conditions=schedule,
            low=formula - margin,
            high=formula + margin,
            digits=1,
        ),
    ]


def _message_bits(model: models.Model, task: Task, updates: int, ratio: float) -> Callable[[int], int]:
    """A function that counts the bits of a message by the number of its round; round 0 is a full one."""
    algorithm = fedskel(model, optax.sgd(0.1), ratios=(ratio,), updates=updates)
    server = jax.eval_shape(lambda key: algorithm.init(key, task), jax.random.key(0)).server
    server = server._replace(params=trees.zeros_like(server.params))
    filters = [kernel for kernel in model.kernels if kernel.kind == "conv"]
    skeleton = {k.name: jnp.arange(k.outputs) < keep_count(k.outputs, ratio) for k in filters}

    def bits(index: int) -> int:
        cycle = Cycle(skeleton, jnp.int32(index))
        return size.bits(algorithm.send(Round(jax.random.key(0), jnp.int32(index)), server, cycle))

    return bits


def _speedups() -> list[Claim]:
    def judge(key: str, paper: float, lines: Sequence[Line]) -> tuple[str, bool]:
        ratio = lines[0][key]["0.1"]
        return f"{ratio:.2f}x, {ratio / paper - 1:+.0%}", ratio >= paper

    figures = {
        "conv_backward_speedup": (
            "the convolutions' backward pass",
            5.52,
            "thin matrix products run slower than wide ones, and the share of the dense pass that does not "
            "shrink with the skeleton is larger than the published figure implies",
        ),
        "training_step_speedup": (
            "a whole training step",
            1.82,
            "at this ratio the dense forward pass takes more than half of a step",
        ),
    }
    return [
        result_claim(
            Statement(
                _NAME, f"speed-up of {part} (abstract)", f"up to {paper:.2f}x", "measured", "published"
            ),
            "ResNet-18 on CPU, r = 0.1; published with Caffe on mobile devices",
            _BACKWARD,
            partial(judge, key, paper),
            reason=reason,
        )
        for key, (part, paper, reason) in figures.items()
    ]


def _fixed_share() -> Claim:
    def judge(lines: Sequence[Line]) -> tuple[str, bool]:
        times = lines[0]["conv_backward_ms"]
        ratios = [0.1, 0.2, 0.4]
        line = statistics.linear_regression(ratios, [times[str(ratio)] / times["1.0"] for ratio in ratios])
        return f"{100 * line.intercept:.0f} %", line.intercept <= 0.09

    claim = "share of the convolutions' backward pass that no skeleton saves"
    return result_claim(
        Statement(_NAME, claim, "9 %, which follows from 5.52x at r = 0.1", "measured"),
        "ResNet-18 on CPU, a line through r = 0.1, 0.2, 0.4",
        _BACKWARD,
        judge,
        reason="the output's gradient is read whole, as each of its cache lines holds a filter of the "
        "skeleton; the input is read whole, too, and its gradient is written whole",
    )


def _unequal_devices() -> Claim:
    def judge(lines: Sequence[Line]) -> tuple[str, bool]:
        full, by_device = (
            {line["seed"]: line["sim_seconds"] for line in lines if setting(line) == f"{_NAME}-{kind}"}
            for kind in ("whole", "by-device")
        )
        ratios = [full[seed] / by_device[seed] for seed in full]
        return f"{interval(ratios, digits=2)}x less simulated time", surely_above(ratios, 1)

    claim = "time of rounds in which each device has a skeleton that suits its speed"
    return result_claim(
        Statement(_NAME, claim, "below that of rounds with whole models", "trend"),
        "simulated clock, digits, three kinds of devices, 50 clients, 3 seeds",
        "devices_digits.jsonl",
        judge,
    )
