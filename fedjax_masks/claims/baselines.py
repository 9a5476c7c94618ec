"""Baselines: bytes by formulas beside those of the payloads of one client.

The model is the perceptron "2NN" (McMahan et al. 2017, arXiv 1602.05629, section 3): 784-200-200-10, with
199,210 parameters, 198,800 of them weights. Biases are never masked or pruned, and always sent. The papers
state the formulas at most; all figures but two are ours.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_masks import models
from fedjax_masks.algorithms.fedavg import fedavg
from fedjax_masks.algorithms.feddst import feddst
from fedjax_masks.algorithms.fednova import fednova
from fedjax_masks.algorithms.fedpm import fedpm
from fedjax_masks.algorithms.fedprox import fedprox
from fedjax_masks.algorithms.fedsgd import fedsgd
from fedjax_masks.algorithms.heterofl import heterofl
from fedjax_masks.algorithms.lgfedavg import lgfedavg
from fedjax_masks.algorithms.local import local
from fedjax_masks.algorithms.lotteryfl import keep_largest, lotteryfl
from fedjax_masks.algorithms.perfedavg import perfedavg
from fedjax_masks.algorithms.scaffold import scaffold
from fedjax_masks.algorithms.sign import sign
from fedjax_masks.algorithms.topk import topk
from fedjax_masks.claims import nets
from fedjax_masks.claims.claim import Claim
from fedjax_masks.claims.counts import bounded_claim, exact_claim
from fedjax_masks.claims.exchange import Exchange, counter
from fedjax_masks.communication import entropy as coding
from fedjax_masks.communication import payload, serialization, size
from fedjax_masks.core import training, trees
from fedjax_masks.core.algorithm import FederatedAlgorithm, Round
from fedjax_masks.data import synthetic_task

_TASK = synthetic_task((28, 28, 1), 10, [20] * 5)
_MODEL = models.mlp(_TASK)
_WIDTHS = (784, 200, 200, 10)
_PARAMETERS, _WEIGHTS, _BIASES = 199_210, 198_800, 410
_SGD = optax.sgd(0.1)
_DENSE = "4 bytes per parameter"
_CLIENT = "2NN, one client in one round"


def claims() -> list[Claim]:
    """Formulas of the baselines beside our counts."""
    size = exact_claim(
        *("fedavg", "parameters of 2NN (section 3)", _PARAMETERS, nets.parameter_count(_MODEL), ""),
        conditions="784-200-200-10",
        basis="published",
    )
    return [
        *(size, *_dense(), *_compressed(), *_slices(), *_lottery(), *_sparse()),
        *(*_masks(), *_coded_masks(), _gradient_weights()),
    ]


def _size(widths: Sequence[int]) -> int:
    """The number of parameters of a perceptron."""
    return sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(widths))


def _exchange(algorithm: FederatedAlgorithm) -> Exchange:
    """The exchange of a round whose sizes do not depend on values."""
    state = jax.eval_shape(lambda key: algorithm.init(key, _TASK), jax.random.key(0))
    return counter(algorithm, _TASK)(trees.zeros_like(state))


def _both(
    system: str, exchange: Exchange, upload: tuple[str, float], download: tuple[str, float] | None = None
) -> Iterator[Claim]:
    """A claim for each direction.

    Args:
      system: The algorithm.
      exchange: The bytes of the payloads.
      upload: The formula in words, and its value in bytes.
      download: The same of the download; None takes that of the upload.
    """
    directions = {"upload": (upload, exchange.up), "download": (download or upload, exchange.down)}
    for direction, ((formula, paper), ours) in directions.items():
        # The bits of a payload need not fill its last byte.
        claim, ours = f"{direction} of {formula}", math.ceil(ours)
        yield exact_claim(system, claim, paper, ours, "bytes", conditions=_CLIENT)


def _dense() -> Iterator[Claim]:
    dense = 4 * _PARAMETERS
    yield from _both("fedavg", _exchange(fedavg(_MODEL, _SGD)), (_DENSE, dense))
    adam = fedavg(_MODEL, _SGD, server_optimizer=optax.adam(0.01))
    yield from _both("fedavg", _exchange(adam), (f"{_DENSE} with FedAdam on the server", dense))
    for name, factory in (("fedsgd", fedsgd), ("fedprox", fedprox), ("perfedavg", perfedavg)):
        yield from _both(name, _exchange(factory(_MODEL, _SGD)), (_DENSE, dense))
    nova = _exchange(fednova(_MODEL, _SGD))
    yield from _both("fednova", nova, (f"{_DENSE} and one number", dense + 4), (_DENSE, dense))
    yield from _both("scaffold", _exchange(scaffold(_MODEL, _SGD)), ("8 bytes per parameter", 2 * dense))
    yield from _both("local", _exchange(local(_MODEL, _SGD)), ("0 bytes", 0))
    layers = lgfedavg(_MODEL, _SGD, shared=("dense2", "dense3"))
    formula = f"{_DENSE} of the last two layers", 4 * _size(_WIDTHS[1:])
    yield from _both("lgfedavg", _exchange(layers), formula)


def _compressed() -> Iterator[Claim]:
    dense = _DENSE, 4 * _PARAMETERS
    sizes = [n for inputs, outputs in itertools.pairwise(_WIDTHS) for n in (inputs * outputs, outputs)]
    tenth = sum(max(1, round(0.1 * n)) * (32 + math.ceil(math.log2(n))) for n in sizes)
    formula = "a tenth of every array, 4 bytes per value and ceil(log2 n) bits per index"
    yield from _both("topk", _exchange(topk(_MODEL, _SGD)), (formula, math.ceil(tenth / 8)), dense)
    signs = "1 bit per parameter", math.ceil(_PARAMETERS / 8)
    yield from _both("sign", _exchange(sign(_MODEL, _SGD)), signs, dense)


def _slices() -> Iterator[Claim]:
    # With own_classes, label skew shrinks the upload; the formula is for whole slices.
    algorithm = heterofl(_MODEL, _SGD, own_classes=False)
    count, state = counter(algorithm, _TASK), algorithm.init(jax.random.key(0), _TASK)
    for tier, ratio in enumerate((1, 0.5, 0.25, 0.125, 0.0625)):
        widths = (_WIDTHS[0], *(math.ceil(ratio * n) for n in _WIDTHS[1:-1]), _WIDTHS[-1])
        formula = f"{_DENSE} of a slice of width {ratio:g}", 4 * _size(widths)
        yield from _both("heterofl", count(state, client=tier, tier=tier), formula)


def _lottery() -> Iterator[Claim]:
    # The threshold of 0 lets every client prune, whatever its accuracy.
    algorithm = lotteryfl(_MODEL, _SGD, epochs=1, threshold=0.0, held_out=0)
    count, state = counter(algorithm, _TASK), algorithm.init(jax.random.key(0), _TASK)
    step, remaining = "in the first pruning step", f"{_DENSE} that remains"
    pruned, bitmap = 4 * (round(0.8 * _WEIGHTS) + _BIASES), _WEIGHTS // 8
    upload = f"{remaining}, and a bitmap, {step}", pruned + bitmap
    yield from _both("lotteryfl", count(state), upload, (f"{_DENSE}, {step}", 4 * _PARAMETERS))
    half = {
        name: jnp.broadcast_to((jnp.arange(m[0].size) < m[0].size // 2).reshape(m[0].shape), m.shape)
        for name, m in state.clients.mask.items()
    }
    final = state._replace(profiles=half, clients=state.clients._replace(mask=half))
    formula = f"{remaining}, after the last pruning step", 4 * (_WEIGHTS // 2 + _BIASES)
    yield from _both("lotteryfl", count(final), formula)
    alive, steps = jnp.ones(_WEIGHTS, bool), 0
    while steps < 10 and jnp.sum(alive) > _WEIGHTS // 2:
        alive, steps = keep_largest(jnp.arange(_WEIGHTS, dtype=jnp.float32), alive, 0.2, 0.5), steps + 1
    claim = "pruning steps of a fifth until half of the weights remain"
    yield exact_claim("lotteryfl", claim, 4, steps, "", conditions="2NN")


def _sparse() -> Iterator[Claim]:
    algorithm = feddst(_MODEL, _SGD)
    count, state = counter(algorithm, _TASK), algorithm.init(jax.random.key(0), _TASK)
    sparse, bitmap = 4 * (round(0.2 * _WEIGHTS) + _BIASES), _WEIGHTS // 8
    masks = trees.replicate(state.server.mask, _TASK.num_clients)
    informed = state._replace(clients=masks, profiles=jnp.full_like(state.profiles, state.server.version))
    formula = f"{_DENSE} of a model of sparsity 0.8"
    yield from _both("feddst", count(informed), (formula, sparse))
    contact = "at first contact"
    with_mask = f"{formula}, and a bitmap, {contact}", sparse + bitmap
    yield from _both("feddst", count(state), (f"{formula}, {contact}", sparse), with_mask)
    change = "in the 15th round"
    with_mask = f"{formula}, and a bitmap, {change}", sparse + bitmap
    yield from _both("feddst", count(informed, index=14), with_mask, (f"{formula}, {change}", sparse))


def _masks() -> Iterator[Claim]:
    kernels = [math.prod(kernel.shape) for kernel in _MODEL.kernels]
    largest = sum(coding.count_bits(n) + coding.max_pattern_bits(n) for n in kernels) / _WEIGHTS
    algorithm = fedpm(_MODEL, optax.adam(0.1), epochs=1)
    state = jax.eval_shape(lambda key: algorithm.init(key, _TASK), jax.random.key(0))
    round = Round(jax.random.key(0), jnp.int32(0))
    message = jax.eval_shape(algorithm.send, round, state.server, state.profiles)
    codes = size.static_bits(payload.nodes(payload.Conditional, message)[0].tree)
    yield bounded_claim(
        *("fedpm", "largest upload of a coded mask (abstract)"),
        *("below 1 bit per weight", largest, "bits per weight"),
        conditions="2NN, half of the mask are ones",
        basis="published",
        high=1,
        digits=4,
        reason=f"the number of ones in each block of {coding.BLOCK} elements is sent, too",
    )
    formula, expected = "download of 8 bits per weight and one scale per layer", _WEIGHTS + 4 * len(kernels)
    yield exact_claim("fedpm", formula, expected, codes / 8, "bytes", conditions=_CLIENT)


def _coded_masks() -> Iterator[Claim]:
    rng, number = np.random.default_rng(0), 1 << 20
    for share in (0.01, 0.1, 0.5):
        mask = jnp.asarray(rng.random(number) < share)
        ones = float(jnp.mean(mask))
        entropy = -number * sum(p * math.log2(p) for p in (ones, 1 - ones))
        length = 8 * len(serialization.encode(payload.Encoded(mask)))
        yield bounded_claim(
            *("fedpm", f"excess of a coded mask over its entropy, {share:.0%} of its elements are ones"),
            *("at most 1 %", 100 * (length / entropy - 1), "%"),
            conditions="2^20 elements",
            high=1,
            reason="the number of ones of each block is sent, too, and weighs most where ones are few",
        )


def _gradient_weights() -> Claim:
    momentum, steps = 0.9, 100
    formula = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    path = training.unit_path(optax.sgd(1.0, momentum=momentum), jnp.float32(steps))
    quantity = f"sum of the gradients' weights in {steps} steps of SGD with momentum {momentum}"
    expected, conditions = round(formula, 2), "by the formula of the paper"
    return exact_claim("fednova", quantity, expected, float(path), "", conditions=conditions, digits=2)
