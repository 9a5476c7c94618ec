"""What travels in the baselines: counted from the payloads of one client of the perceptron "2NN".

McMahan et al. 2017, arXiv 1602.05629, section 3: 784-200-200-10, with 199,210 parameters, of which
198,800 are weights. Biases are never masked or pruned, and always travel. What is published is a formula
for each algorithm; here it is evaluated by hand, beside the payloads.
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
from fedjax_masks.claims.claim import Claim, bounded, counted
from fedjax_masks.claims.exchange import Exchange, counter
from fedjax_masks.communication import entropy as coding
from fedjax_masks.communication import payload
from fedjax_masks.core import training, trees
from fedjax_masks.core.algorithm import FederatedAlgorithm
from fedjax_masks.data import synthetic_task

_TASK = synthetic_task((28, 28, 1), 10, [20] * 5)
_MODEL = models.mlp(_TASK)
_WIDTHS = (784, 200, 200, 10)
_PARAMETERS, _WEIGHTS, _BIASES = 199_210, 198_800, 410
_SGD = optax.sgd(0.1)


def claims() -> list[Claim]:
    """The rows."""
    size = counted("fedavg", "parameters of 2NN", _PARAMETERS, nets.parameter_count(_MODEL), "")
    return [size, *_dense(), *_compressed(), *_slices(), *_lottery(), *_sparse(), *_masks(), _steps()]


def _size(widths: Sequence[int]) -> int:
    """Parameters of a perceptron."""
    return sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(widths))


def _round(algorithm: FederatedAlgorithm) -> Exchange:
    """Where sizes do not depend on values."""
    state = jax.eval_shape(lambda key: algorithm.init(key, _TASK), jax.random.key(0))
    return counter(algorithm, _TASK)(trees.zeros_like(state))


def _both(
    system: str, what: str, paper: float, sent: Exchange, *, down: float | None = None
) -> Iterator[Claim]:
    """A row for each direction."""
    published = Exchange(up=paper, down=paper if down is None else down)
    for way, expected, ours in zip(Exchange._fields, published, sent):
        # A last byte may not be full.
        yield counted(system, f"{what}, {way}, 2NN", expected, math.ceil(ours), "bytes")


def _dense() -> Iterator[Claim]:
    whole = 4 * _PARAMETERS
    yield from _both("fedavg", "4 bytes per parameter", whole, _round(fedavg(_MODEL, _SGD)))
    adam = fedavg(_MODEL, _SGD, server_optimizer=optax.adam(0.01))
    yield from _both("fedavg", "the same with FedAdam on the server", whole, _round(adam))
    for name, factory in (("fedsgd", fedsgd), ("fedprox", fedprox), ("perfedavg", perfedavg)):
        yield from _both(name, "4 bytes per parameter", whole, _round(factory(_MODEL, _SGD)))
    nova = _round(fednova(_MODEL, _SGD))
    yield from _both("fednova", "4 bytes per parameter, and a number up", whole + 4, nova, down=whole)
    yield from _both("scaffold", "8 bytes per parameter", 2 * whole, _round(scaffold(_MODEL, _SGD)))
    yield from _both("local", "nothing", 0, _round(local(_MODEL, _SGD)))
    shared = 4 * _size(_WIDTHS[1:])
    lg = _round(lgfedavg(_MODEL, _SGD, shared=("dense2", "dense3")))
    yield from _both("lgfedavg", "4 bytes per parameter of the last two layers", shared, lg)


def _compressed() -> Iterator[Claim]:
    sizes = [n for inputs, outputs in itertools.pairwise(_WIDTHS) for n in (inputs * outputs, outputs)]
    tenth = sum(max(1, round(0.1 * n)) * (32 + math.ceil(math.log2(n))) for n in sizes)
    what = "a tenth of every array, 4 bytes a value and ceil(log2 n) bits an index"
    yield from _both("topk", what, math.ceil(tenth / 8), _round(topk(_MODEL, _SGD)), down=4 * _PARAMETERS)
    voted = _round(sign(_MODEL, _SGD))
    yield from _both("sign", "1 bit per parameter", math.ceil(_PARAMETERS / 8), voted, down=4 * _PARAMETERS)


def _slices() -> Iterator[Claim]:
    # Under label skew less goes up; the published figures are of whole slices.
    algorithm = heterofl(_MODEL, _SGD, own_classes=False)
    count, state = counter(algorithm, _TASK), algorithm.init(jax.random.key(0), _TASK)
    for tier, ratio in enumerate((1, 0.5, 0.25, 0.125, 0.0625)):
        widths = (_WIDTHS[0], *(math.ceil(ratio * n) for n in _WIDTHS[1:-1]), _WIDTHS[-1])
        sent = count(state, client=tier, tier=tier)
        yield from _both(
            "heterofl", f"4 bytes per parameter of a slice of {ratio:g}", 4 * _size(widths), sent
        )


def _lottery() -> Iterator[Claim]:
    # What a client has before it prunes decides nothing but whether it does.
    algorithm = lotteryfl(_MODEL, _SGD, epochs=1, threshold=0.0, held_out=0)
    count, state = counter(algorithm, _TASK), algorithm.init(jax.random.key(0), _TASK)
    pruned, bitmap = 4 * (round(0.8 * _WEIGHTS) + _BIASES), _WEIGHTS // 8
    what = "4 bytes per living parameter, and a bitmap up, in the first step"
    yield from _both("lotteryfl", what, pruned + bitmap, count(state), down=4 * _PARAMETERS)
    half = {
        name: jnp.broadcast_to((jnp.arange(m[0].size) < m[0].size // 2).reshape(m[0].shape), m.shape)
        for name, m in state.clients.mask.items()
    }
    done = state._replace(server=state.server._replace(masks=half), clients=state.clients._replace(mask=half))
    yield from _both("lotteryfl", "the same once half is left", 4 * (_WEIGHTS // 2 + _BIASES), count(done))
    alive, steps = jnp.ones(_WEIGHTS, bool), 0
    while steps < 10 and jnp.sum(alive) > _WEIGHTS // 2:
        alive, steps = keep_largest(jnp.arange(_WEIGHTS, dtype=jnp.float32), alive, 0.2, 0.5), steps + 1
    yield counted("lotteryfl", "steps of a fifth until half is left", 4, steps, "")


def _sparse() -> Iterator[Claim]:
    algorithm = feddst(_MODEL, _SGD)
    count, state = counter(algorithm, _TASK), algorithm.init(jax.random.key(0), _TASK)
    kept, bitmap = 4 * (round(0.2 * _WEIGHTS) + _BIASES), _WEIGHTS // 8
    server = state.server._replace(told=jnp.ones_like(state.server.told))
    told = state._replace(server=server, clients=trees.replicate(server.mask, _TASK.num_clients))
    what = "4 bytes per parameter of a model of sparsity 0.8"
    yield from _both("feddst", what, kept, count(told))
    yield from _both("feddst", f"{what}, at first contact", kept, count(state), down=kept + bitmap)
    fifteenth = count(told._replace(server=server._replace(round=jnp.int32(14))))
    yield from _both("feddst", f"{what}, in the 15th round", kept + bitmap, fifteenth, down=kept)


def _masks() -> Iterator[Claim]:
    kernels = [math.prod(kernel.shape) for kernel in _MODEL.kernels]
    most = sum(coding.count_bits(n) + coding.max_pattern_bits(n) for n in kernels) / _WEIGHTS
    algorithm = fedpm(_MODEL, optax.adam(0.1), epochs=1)
    state = jax.eval_shape(lambda key: algorithm.init(key, _TASK), jax.random.key(0))
    counts = payload.static_bits(jax.eval_shape(algorithm.send, state.server, jnp.int32(0)).tree)
    yield bounded(
        *("fedpm", "an upload of the most even masks, 2NN", "1 bit per weight", most, "bits per weight"),
        high=1,
        digits=4,
        why=f"the number of ones in each block of {coding.BLOCK} elements travels, too",
    )
    what = "a message: 8 bits per weight, a scale per layer, 2NN"
    yield counted("fedpm", what, _WEIGHTS + 4 * len(kernels), counts / 8, "bytes")
    rng, size = np.random.default_rng(0), 1 << 20
    for share in (0.01, 0.1, 0.5):
        mask = jnp.asarray(rng.random(size) < share)
        ones = float(jnp.mean(mask))
        entropy = -size * sum(p * math.log2(p) for p in (ones, 1 - ones))
        length = 8 * len(payload.encode(payload.Encoded(mask)))
        yield bounded(
            *("fedpm", f"a coded mask of 2^20 elements, {share:.0%} of them ones, over its entropy"),
            *("at most 1 % (our aim)", 100 * (length / entropy - 1), "%"),
            high=1,
            why="the number of ones of a block travels, too, which is much where few are ones",
        )


def _steps() -> Claim:
    momentum, steps = 0.9, 100
    formula = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    path = training.unit_path(optax.sgd(1.0, momentum=momentum), jnp.float32(steps))
    what = f"weight of the gradients of {steps} steps of SGD with momentum {momentum}"
    return counted("fednova", what, round(formula, 2), float(path), "", digits=2)
