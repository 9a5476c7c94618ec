"""ADP: Yu et al., 2021, arXiv 2106.06921.

The abstract of version 1 has the speed of inference, that of version 2 the bytes. The authors' networks, logs
and commands are those of the repository of the second author (dphuongn/dynamic_pruning_federated_learning).
"""

from functools import partial

import numpy as np

from fedjax_masks import models
from fedjax_masks.claims import adp_runs, divisions, nets
from fedjax_masks.claims.claim import Claim, Statement, claim_not_run
from fedjax_masks.claims.counts import bounded_claim, exact_claim
from fedjax_masks.claims.result_files import latency_claims
from fedjax_masks.data import synthetic_task
from fedjax_masks.models import Model, gated
from fedjax_masks.models.gates import inference_macs

_NAME = "adp"
_TASK = synthetic_task((32, 32, 3), 10, [20])
_exact = partial(exact_claim, _NAME)


def claims() -> list[Claim]:
    """Figures of ADP's paper, code and logs beside ours."""
    return [
        *nets.sizes(_NAME),
        *_gates(),
        *_macs(),
        *divisions.dirichlet(_NAME),
        *_inference(),
        *adp_runs.claims(),
    ]


def _gates() -> list[Claim]:
    claims, added, shapes = [], {}, "10 classes"
    for name, parameters in (("resnet20", 30_368), ("resnet32", 52_320)):
        plain = models.build_model(name, _TASK)
        added[name] = nets.parameter_count(gated(plain)) - nets.parameter_count(plain)
        quantity = f"gate parameters of {name}"
        claims.append(_exact(quantity, parameters, added[name], "", conditions=shapes, basis="authors' code"))
    growth = 100 * added["resnet32"] / nets.parameter_count(models.resnet32(_TASK))
    quantity = "growth of a dense upload of resnet32 by its gates"
    return [*claims, _exact(quantity, 11.3, growth, "% more", conditions=shapes, digits=1)]


def _macs() -> list[Claim]:
    """The published half of the FLOPs at the released ratio of 0.7, and checks of the formula by ratio.

    A residual network gets to a half at ratios from 0.6 downwards, which no released command uses.
    """
    shares = {0.8: (0.73, 2), 0.7: (0.585, 3), 0.6: (0.484, 3), 0.5: (0.375, 3)}
    unit = "of the MACs with all channels"
    nets_by_name = {"vgg16": models.vgg16(_TASK), "resnet32": models.resnet32(_TASK)}
    checks = [
        _exact(
            f"convolution MACs of resnet32 with {ratio:.0%} of the channels active",
            share,
            _relative_macs(nets_by_name["resnet32"], ratio),
            unit,
            conditions="by the formula (r + r²) / 2",
            digits=digits,
        )
        for ratio, (share, digits) in shares.items()
    ]
    # In a chain of convolutions both ends of a kernel lose channels, in a residual block only some do.
    checks.append(
        _exact(
            "convolution MACs of vgg16 with 70% of the channels active",
            0.49,
            _relative_macs(nets_by_name["vgg16"], 0.7),
            unit,
            conditions="by the formula r²",
            digits=2,
        )
    )
    half = [
        bounded_claim(
            *(_NAME, "FLOPs of inference (abstract)"),
            *("a half", _relative_macs(model, 0.7), unit),
            conditions=f"{name}, r = 0.7 as in the released commands, MACs of convolutions without gates",
            basis="published",
            high=0.5,
            digits=3,
        )
        for name, model in nets_by_name.items()
    ]
    return [*half, *checks]


def _relative_macs(model: Model, ratio: float) -> float:
    """MACs of a gated model's convolutions, over those with all channels active."""
    model = gated(model, ratio=ratio)
    active = {k.name: np.arange(k.outputs)[None] < round(ratio * k.outputs) for k in model.kernels if k.gate}
    dense = {name: np.ones_like(mask) for name, mask in active.items()}
    return float(inference_macs(model, active).conv[0] / inference_macs(model, dense).conv[0])


def _inference() -> list[Claim]:
    """The published speed-up, which nobody has timed, and a check that cut networks are faster at all."""
    bench = "fedjax-masks bench --workload masked-inference --rounds 10 --json"
    return [
        claim_not_run(
            Statement(_NAME, "speed-up of inference (abstract)", "2x", "measured", "published"),
            "a network whose channels change with the image, beside the network without gates",
            bench,
            "the benchmark cuts a network once for each client, at r = 0.5, and a program under jit computes "
            "suppressed channels, too; a device that skips them for each image is not among our forms",
        ),
        *latency_claims(
            Statement(
                *(_NAME, "speed-up of a gated network that is cut to one client's channels"),
                *("above 1x: fewer channels take less time", "measured"),
            ),
            1,
            "cnn on CPU, r = 0.5, synthetic images, every image keeps the same channels",
        ),
    ]
