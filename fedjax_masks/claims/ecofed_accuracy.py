"""Accuracies of EcoFed and of split training: Wu et al. 2024, arXiv 2304.05495."""

from functools import partial

from fedjax_masks.claims.claim import Claim, Statement
from fedjax_masks.claims.trends import Comparison, percent, trend_claims

_NAME = "ecofed"
_global = partial(Comparison, value=percent("last_global_accuracy"))
_FASHION, _CIFAR10 = "ecofed_fashion_mnist.jsonl", "ecofed_cifar10.jsonl"
_CUT = "cut after conv1"
_FRACTALS, _DOMAIN = f"{_NAME}-fractal", f"{_NAME}-public"
_fractals_over = partial(
    _global,
    options=f"pre-trained on fractals, {_CUT}",
    reason="a single convolution that is pre-trained on fractals is no better than random weights",
)
_domain_over = partial(_global, options=f"pre-trained in the domain, {_CUT}")
_losses_below = partial(
    _global,
    options=_CUT,
    reason="behind one convolution without normalization, the local loss does no harm",
)
_VGG2, _VGG4 = "ecofed_vgg_conv2.jsonl", "ecofed_vgg_conv4.jsonl"
_VGG_CUTS = {_VGG2: "cut after conv2, batch normalization", _VGG4: "cut after conv4, batch normalization"}
_OVER_LGL = (
    _fractals_over(_FASHION, _FRACTALS, "lgl"),
    _fractals_over(_CIFAR10, _FRACTALS, "lgl"),
    _domain_over(_FASHION, _DOMAIN, "lgl"),
    _domain_over(_CIFAR10, _DOMAIN, "lgl"),
    *(
        _global(file, _FRACTALS, "lgl", options=f"pre-trained on fractals in color, {cut}")
        for file, cut in _VGG_CUTS.items()
    ),
    *(
        _global(file, _DOMAIN, "lgl", options=f"pre-trained in the domain, {cut}")
        for file, cut in _VGG_CUTS.items()
    ),
)
"""Our runs of EcoFed and LGL, by source and cut; a new result file adds one line."""
_LGL_BELOW = (
    _losses_below(_FASHION, "splitfed", "lgl"),
    _losses_below(_CIFAR10, "splitfed", "lgl"),
    # FedAvg's model is SplitFed's.
    _global(_VGG2, "fedavg", "lgl", options=_VGG_CUTS[_VGG2]),
)
_NEAR_SPLITFED = (
    _fractals_over(_FASHION, _FRACTALS, "splitfed"),
    _fractals_over(_CIFAR10, _FRACTALS, "splitfed"),
)


def claims() -> list[Claim]:
    """The orders of accuracies in EcoFed's abstract beside ours, and a check against SplitFed."""
    losses = "accuracy that local losses cost: SplitFed compared with LGL (abstract)"
    quantity = "accuracy compared with"
    return [
        *trend_claims(Statement(_NAME, losses, "a loss", "trend", "published"), _LGL_BELOW),
        *trend_claims(
            Statement(_NAME, f"{quantity} LGL (abstract)", "higher", "trend", "published"), _OVER_LGL
        ),
        *trend_claims(
            Statement(_NAME, f"{quantity} SplitFed", "at most 2 points lower", "trend"),
            _NEAR_SPLITFED,
            bound=-2,
        ),
    ]
