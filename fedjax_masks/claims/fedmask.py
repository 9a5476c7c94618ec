"""FedMask: Li et al., SenSys 2021, doi 10.1145/3485730.3485929."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from fedjax_masks import models, payload, trees
from fedjax_masks.algorithms.fedmask import fedmask
from fedjax_masks.analysis.intervals import interval, surely_above
from fedjax_masks.claims.claim import Claim, counted, from_results, gaps
from fedjax_masks.data import synthetic_task

_NAME = "fedmask"


def claims() -> list[Claim]:
    """The rows."""
    return [*_counts(), *_latencies(), *_orders()]


def _counts() -> list[Claim]:
    task = synthetic_task((32, 32, 3), 10, [20])
    model = models.vgg16(task)
    params = jax.eval_shape(model.init, jax.random.key(0))
    algorithm = fedmask(model, optax.sgd(100.0), prune_layers=8)
    state = jax.eval_shape(lambda key: algorithm.init(key, task), jax.random.key(0))
    scalar = jax.ShapeDtypeStruct((), np.int32)
    message = jax.eval_shape(algorithm.send, state.server, scalar)
    down, dense = payload.static_bits(message) / 8, payload.static_bits(params) / 8
    hours = 2000 * 2 * dense / 10e6 / 3600
    return [
        counted(_NAME, "parameters of VGG16 with 10 classes (table 4)", 134_301_514, trees.size(params), ""),
        counted(_NAME, "a mask of its weights (table 5)", 16_786_136, down, "bytes"),
        counted(_NAME, "the dense model (table 5)", 537_206_056, dense, "bytes"),
        counted(_NAME, "FedAvg's 2000 rounds at 10 MB/s (table 5)", 59.69, hours, "hours", digits=2),
        counted(
            _NAME, "communication against FedAvg (figure 10)", 0.03, down / dense, "of the bytes", digits=2
        ),
    ]


def _latencies() -> list[Claim]:
    def judge(batch: str) -> Any:
        def of(lines: Sequence[dict[str, Any]]) -> tuple[str, bool]:
            ratio = lines[0]["latency_speedup"][_NAME][batch]
            return f"{ratio:.2f}x on LeNet", ratio >= 1.56

        return of

    what = "of a compacted model against the dense one, batch"
    claimed = [(f"inference {what} {batch} (abstract)", "1.56x", batch) for batch in ("1", "32")]
    claimed.append((f"energy {what} 1, at constant power (evaluation)", "1.52x to 1.78x", "1"))
    return [
        from_results(_NAME, claim, paper, "measured", "masked_inference.json", judge(batch))
        for claim, paper, batch in claimed
    ]


def _who(line: dict[str, Any]) -> str:
    """What ran: the run's name without its seed."""
    return line["run"].rpartition("-")[0]


def _orders() -> list[Claim]:
    def judge(other: str, name: str) -> Any:
        def of(lines: Sequence[dict[str, Any]]) -> tuple[str, bool]:
            ours, kept = (
                gaps(
                    lines,
                    lambda line: 100 * line["last_personal_accuracy_mean"],
                    lambda line, who=who: _who(line) == who,
                    lambda line: _who(line) == other,
                )
                for who in (_NAME, f"{_NAME}-keep-scores")
            )
            text = f"{interval(ours)} points over {name}; {interval(kept)} with kept scores"
            return text, surely_above(ours, 0)

        return of

    published = {
        "cifar10": {"fedavg": "82.7 % against 58.8 %", "local": "82.7 % against 65.4 %"},
        "fashion_mnist": {"fedavg": "above, on four data sets", "local": "above, on four data sets"},
    }
    return [
        from_results(
            _NAME,
            f"personal accuracy against {name}'s on {dataset} (figure 10)",
            published[dataset][other],
            "trend",
            f"fedmask_{dataset}.jsonl",
            judge(other, name),
        )
        for dataset in published
        for other, name in (("fedavg", "FedAvg"), ("local", "local training"))
    ]
