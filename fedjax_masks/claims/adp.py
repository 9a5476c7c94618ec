"""ADP: Yu et al., 2021, arXiv 2106.06921."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fedjax_masks import models, trees
from fedjax_masks.analysis.intervals import interval, surely_above
from fedjax_masks.claims.claim import Claim, counted, from_results
from fedjax_masks.data import synthetic_task
from fedjax_masks.gates import inference_macs
from fedjax_masks.models import Model, gated

_NAME = "adp"
_TASK = synthetic_task((32, 32, 3), 10, [20])
_TARGET = 0.7


def claims() -> list[Claim]:
    """The rows."""
    return [*_parameters(), *_macs(), *_communication()]


def _parameters() -> list[Claim]:
    rows = []
    for name, net, gates in (("resnet20", 269_722, 30_368), ("resnet32", 464_154, 52_320)):
        plain = models.build_model(name, _TASK)
        sizes = [trees.size(jax.eval_shape(m.init, jax.random.key(0))) for m in (plain, gated(plain))]
        rows += [
            counted(_NAME, f"parameters of {name}", net, sizes[0], ""),
            counted(_NAME, "parameters of its gates", gates, sizes[1] - sizes[0], ""),
        ]
    return rows


def _macs() -> list[Claim]:
    published = {0.8: (0.73, 2), 0.7: (0.585, 3), 0.6: (0.484, 3), 0.5: (0.375, 3)}
    return [
        counted(
            _NAME,
            f"convolution MACs of ResNet-32 with {ratio:.0%} of the channels active",
            share,
            _relative_macs(gated(models.resnet32(_TASK), ratio=ratio), ratio),
            "of the plain net's",
            digits=digits,
        )
        for ratio, (share, digits) in published.items()
    ]


def _relative_macs(model: Model, ratio: float) -> float:
    active = {k.name: np.arange(k.outputs)[None] < round(ratio * k.outputs) for k in model.kernels if k.gate}
    whole = {name: np.ones_like(mask) for name, mask in active.items()}
    return float(inference_macs(model, active).conv[0] / inference_macs(model, whole).conv[0])


def _communication() -> list[Claim]:
    def judge(federation: str) -> Any:
        def of(lines: Sequence[dict[str, Any]]) -> tuple[str, bool]:
            mine = [line for line in lines if line["federation"] == federation]
            off, on = ({n["seed"]: _bytes_to(n) for n in mine if n["gates"] is g} for g in (False, True))
            pairs = [(on[seed], off[seed]) for seed in sorted(on.keys() & off.keys())]
            saved = [100 * (1 - few / many) for few, many in pairs if few and many]
            if len(saved) < len(pairs):
                return f"reached by both in {len(saved)} of {len(pairs)} seeds", False
            return f"{interval([100 - share for share in saved])} % of the bytes", surely_above(saved, 0)

        return of

    return [
        from_results(
            _NAME,
            f"bytes to {_TARGET:.0%} accuracy, gates on against off, {federation}, fashion_mnist",
            "43 % of the bytes (CIFAR-10, ResNet-32)",
            "trend",
            "adp_fashion_mnist.jsonl",
            judge(federation),
        )
        for federation in ("FedAvg", "FedProx", "FedNova", "SCAFFOLD")
    ]


def _bytes_to(line: dict[str, Any]) -> int | None:
    """Bytes per client until the target is reached, or None."""
    rounds = next((n for n, value in enumerate(line["accuracy"], 1) if value >= _TARGET), None)
    return None if rounds is None else rounds * (line["bytes_up"] + line["bytes_down"])
