"""MPFL: Gez and Cohen, 2023, arXiv 2312.03889."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from fedjax_masks import models, payload
from fedjax_masks.algorithms.mpfl import mpfl_search
from fedjax_masks.analysis.intervals import interval, surely_above
from fedjax_masks.claims.claim import Claim, counted, from_results, gaps
from fedjax_masks.data import synthetic_task

_NAME = "mpfl"
_TASK = synthetic_task((32, 32, 3), 10, [20])


def claims() -> list[Claim]:
    """The rows."""
    return [*_masks(), *_accuracies()]


def _masks() -> list[Claim]:
    published = {"vgg11": ({"norm": None}, 2_752), "resnet18": ({}, 4_800), "resnet34": ({}, 8_512)}
    return [
        counted(_NAME, f"a mask of {name}, one bit per filter", bits, _mask_bits(name, options), "bits")
        for name, (options, bits) in published.items()
    ]


def _mask_bits(name: str, options: dict[str, Any]) -> int:
    algorithm = mpfl_search(models.build_model(name, _TASK, **options), optax.sgd(0.1))
    state = jax.eval_shape(lambda key: algorithm.init(key, _TASK), jax.random.key(0))
    return payload.static_bits(state.server.filters)


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

    return [
        from_results(
            _NAME,
            f"accuracy over FedAvg-then-prune, {10 * iteration} % of the filters pruned, fashion_mnist",
            "above at every sparsity",
            "trend",
            "mpfl_fashion_mnist.jsonl",
            judge(iteration),
        )
        for iteration in (3, 5, 7, 9)
    ]
