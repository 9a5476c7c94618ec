"""Savings of skeletons: ``fedjax-masks bench --workload fedskel-backward``.

ResNet-18 on 32 x 32 images runs ten steps with minibatches of 50 in a loop, as in an epoch of the published
clients. Each dense layer uses the fastest of our lowerings, each skeleton the lowering of a simulation. Both
run in turns, so that other load of the machine slows both alike. A speed-up is the median over the turns.
"""

import collections
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks import models
from fedjax_masks.algorithms.skeletons import keep_count
from fedjax_masks.benchmarks import measure
from fedjax_masks.benchmarks.skeleton_rounds import round_speedup
from fedjax_masks.core import training, trees
from fedjax_masks.core.algorithm import Params, PyTree
from fedjax_masks.data import synthetic_task
from fedjax_masks.models import Layer, Model
from fedjax_masks.ops.conv import Lowering

RATIOS = (0.4, 0.2, 0.1)
_BATCH = 50
_STEPS = 10


class _Conv(NamedTuple):
    """A convolution of a model.

    Attributes:
      op: The linear map of the layer.
      in_shape: The shape of one minibatch of inputs.
      kernel_shape: The shape of the kernel.
      first: Whether the inputs are the images, whose gradient is not needed.
    """

    op: partial[jax.Array]
    in_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    first: bool

    def __str__(self) -> str:
        height, width, _, outputs = self.kernel_shape
        inputs = "x".join(map(str, self.in_shape[1:]))
        return f"{inputs} {height}x{width} {outputs} /{self.op.keywords['strides'][0]}"


def bench_skeleton(*, rounds: int, plan: str = "auto", name: str = "resnet18") -> dict[str, Any]:
    """Measures the backward pass of every convolution, whole training steps, and whole rounds.

    Args:
      rounds: The number of turns; at least 5 are measured.
      plan: The execution plan of the rounds.
      name: The name of the model.

    Returns:
      ``conv_backward_speedup`` and ``training_step_speedup`` by ratio; ``training_step_ms`` by ratio, and of
      the forward pass alone, which is the same for all ratios; ``layers``: milliseconds of a step, speed-ups
      and roofline by layer; ``conv_backward_ms``: sums over the layers by ratio, and of the rooflines at
      ratio 0.1; ``round_time_ratio``: the time of a round of 10 clients at ratio 0.1 over that at ratio 1;
      ``rates``: the rates of matrix products and of memory.
    """
    turns, rates = max(5, rounds), measure.rates()
    task = synthetic_task((32, 32, 3), 10, np.full(10, 2 * _BATCH), test_per_client=1)
    model = models.build_model(name, task)
    layers, totals = {}, collections.defaultdict(lambda: np.zeros(turns))
    for conv, count in _convolutions(model).items():
        seconds, lowering = _backward_seconds(conv, turns)
        for ratio, times in seconds.items():
            totals[ratio] += count * np.array(times)
        layers[str(conv)] = {
            "count": count,
            "dense_lowering": lowering,
            "ms": {str(r): round(measure.median_ms(t) / _STEPS, 3) for r, t in seconds.items()},
            "speedup": {str(r): measure.speedup(seconds[1.0], seconds[r]) for r in RATIOS},
            "roofline_ms": _roofline(conv, RATIOS[-1], rates),
        }
    programs = {r: _training_steps(model, r) for r in (1.0, *RATIOS)}
    programs |= {"forward": _training_steps(model, 1.0, forward_alone=True)}
    steps = measure.time_in_turns(programs, turns, title="training steps by ratio")
    return {
        "device": measure.device(),
        "conv_backward_speedup": {str(r): measure.speedup(totals[1.0], totals[r]) for r in RATIOS},
        "conv_backward_ms": {str(r): round(measure.median_ms(t) / _STEPS, 2) for r, t in totals.items()}
        | {"bound": round(sum(a["count"] * a["roofline_ms"]["bound"] for a in layers.values()), 2)},
        "training_step_speedup": {str(r): measure.speedup(steps[1.0], steps[r]) for r in RATIOS},
        "training_step_ms": {str(r): round(measure.median_ms(t) / _STEPS, 2) for r, t in steps.items()},
        "round_time_ratio": round(1 / round_speedup(model, task, plan), 3),
        "rates": rates._asdict(),
        "layers": layers,
    }


def _convolutions(model: Model) -> dict[_Conv, int]:
    """The different convolutions of a model, with their numbers."""
    counts: collections.Counter[_Conv] = collections.Counter()
    ops: dict[tuple[object, ...], partial[jax.Array]] = {}

    def count(layer: Layer, x: jax.Array) -> tuple[jax.Array, None]:
        if layer.kind == "conv":
            assert isinstance(layer.op, partial)
            # Partial functions are never equal; one stands for all layers with the same options.
            op = ops.setdefault((x.shape, layer.kernel.shape, str(layer.op.keywords)), layer.op)
            counts[_Conv(op, x.shape, layer.kernel.shape, not counts)] += 1
        return layer(x), None

    images = jax.ShapeDtypeStruct((_BATCH, *model.input_shape), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    jax.eval_shape(lambda params, x: model.forward(params, x, hook=count)[0], params, images)
    return counts


def _backward_seconds(conv: _Conv, turns: int) -> tuple[dict[float, list[float]], str]:
    """Seconds of the backward pass by ratio, and the name of the dense lowering."""
    dense = {"default": _backward(conv, 1.0)}
    for lowering in sorted(set(get_args(Lowering)) - {"lax"}):  # lax is tens of times slower in loops
        try:
            dense[lowering] = _backward(conv, 1.0, lowering)
        except ValueError:  # the lowering does not support this kernel
            continue
    trial = measure.time_in_turns(dense, 3, title=f"{conv}, dense, by lowering")
    fastest = min((min(times), name) for name, times in trial.items())[1]
    calls = {1.0: dense[fastest]} | {ratio: _backward(conv, ratio) for ratio in RATIOS}
    return measure.time_in_turns(calls, turns, title=f"{conv}, by ratio"), fastest


def _roofline(conv: _Conv, ratio: float, rates: measure.Rates) -> dict[str, float]:
    """Bounds of a skeleton's backward pass, in milliseconds.

    Returns:
      ``products``: time of its FLOPs at the machine's rate. ``products_at_shape``: time of its two thin
      products, measured alone with their operands in memory; it shows the rate that XLA reaches for these
      shapes. ``arrays``: time of reading the whole gradient of the output, as the filters of a skeleton lie
      in all cache lines, and with a stride, of spreading the input's gradient over its pixels. ``patches``:
      time of writing patches of the output's gradient, in the order of each product. ``bound``: the sum of
      the last three.
    """
    height, width, inputs, outputs = conv.kernel_shape
    pixels = math.prod(conv.in_shape[:3])
    out_pixels = pixels // math.prod(conv.op.keywords["strides"])
    spread = pixels * inputs if out_pixels < pixels else 0
    taps, gradients = height * width * keep_count(outputs, ratio), 1 if conv.first else 2
    bounds = {
        "products": 2 * gradients * out_pixels * taps * inputs / rates.gflops / 1e6,
        "products_at_shape": _thin_products_ms(out_pixels, taps, inputs, gradients),
        "arrays": 4 * (out_pixels * outputs + spread) / rates.gbytes / 1e6,
        "patches": 4 * gradients * out_pixels * taps / rates.gbytes / 1e6,
    }
    bounds["bound"] = sum(bounds.values()) - bounds["products"]
    return {name: round(ms, 2) for name, ms in bounds.items()}


def _thin_products_ms(pixels: int, taps: int, inputs: int, gradients: int) -> float:
    """Milliseconds of the products: kernel gradient from patches and input, input gradient from patches."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (taps, pixels), (pixels, inputs), (pixels, taps), (taps, inputs)
    operands = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes)]

    def products(operands: Sequence[jax.Array]) -> list[jax.Array]:
        patches_t, x, patches, kernel = operands
        return [patches_t @ x, patches @ kernel][:gradients]

    results = trees.zeros_like(jax.eval_shape(products, operands))

    def step(_: jax.Array, carry: PyTree) -> PyTree:
        operands, _ = jax.lax.optimization_barrier(carry)
        return operands, products(operands)

    times = measure.time_in_turns({0: _loop(step, (operands, results))}, 5, title="two thin products")
    return measure.median_ms(times[0]) / _STEPS


def _loop(step: Callable[[jax.Array, PyTree], PyTree], carry: PyTree) -> Callable[[], PyTree]:
    """A call that runs ten steps in one program; each call reuses the memory of the last one."""
    run = jax.jit(lambda carry: jax.lax.fori_loop(0, _STEPS, step, carry), donate_argnums=0)
    return measure.repeat(run, carry)


def _backward(conv: _Conv, ratio: float, lowering: Lowering | None = None) -> Callable[[], PyTree]:
    """A call of the backward pass alone, ten times in a loop, with the residuals of the forward pass."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], conv.in_shape), jax.random.normal(keys[1], conv.kernel_shape)
    skeleton = None if ratio == 1 else _spread(conv.kernel_shape[3], ratio)
    op = partial(conv.op, skeleton=skeleton, lowering=lowering)
    y, pull = jax.jit(lambda x, kernel: jax.vjp(op, x, kernel))(x, kernel)
    gradients = slice(1 if conv.first else 0, 2)

    def step(_: jax.Array, carry: PyTree) -> PyTree:
        pull, dy, _ = jax.lax.optimization_barrier(carry)  # each pass waits for the one before it
        return pull, dy, pull(dy)[gradients]

    dy = jax.random.normal(keys[2], y.shape)
    grads = trees.zeros_like(jax.eval_shape(lambda: pull(dy)[gradients]))
    return _loop(step, (pull, dy, grads))


def _spread(outputs: int, ratio: float) -> jax.Array:
    """A skeleton with filters spread evenly over the outputs."""
    return jnp.linspace(0, outputs - 1, keep_count(outputs, ratio)).astype(jnp.int32)


def _training_steps(model: Model, ratio: float, *, forward_alone: bool = False) -> Callable[[], PyTree]:
    """A call of ten training steps in a loop, as a client trains.

    The time of a program with a single step would include the allocation of its memory.
    """
    params = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (_BATCH, *model.input_shape))
    batch = training.Batch(x, jnp.arange(_BATCH) % 10, jnp.ones(_BATCH, bool), jnp.int32(0))
    skeletons = {k.name: _spread(k.outputs, ratio) for k in model.kernels if k.kind == "conv" and ratio < 1}

    def hook(layer: Layer, x: jax.Array) -> tuple[jax.Array, None]:
        return layer(x, skeletons.get(layer.name)), None

    def loss(params: Params) -> jax.Array:
        return training.mean_cross_entropy(model.forward(params, batch.inputs, hook=hook)[0], batch)

    def step(_: jax.Array, params: Params) -> Params:
        return jax.tree.map(lambda w, g: w - 0.01 * g, params, jax.grad(loss)(params))

    def forward(_: jax.Array, params: Params) -> Params:
        first = model.kernels[0].path  # each pass waits for the one before it
        return trees.put(params, first, trees.get(params, first) + 1e-30 * loss(params))

    return _loop(forward if forward_alone else step, params)
