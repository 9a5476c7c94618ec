"""The algorithms that the contract suite runs over: a new one is one line in CASES."""

from collections.abc import Callable
from functools import cache, partial

import jax.numpy as jnp
import numpy as np
import optax

import fedjax_masks as fm
from fedjax_masks.communication import codecs
from fedjax_masks.core.algorithm import ClientData, FederatedAlgorithm, Task
from fedjax_masks.data import synthetic_task
from fedjax_masks.models import Model
from fedjax_masks.simulation import arrays
from fedjax_masks.simulation.lanes import Lanes
from fedjax_masks.simulation.mapping import Block
from fedjax_masks.transforms import compression, privacy, robust

_fedmask = partial(fm.fedmask, trainer=optax.adam(0.1), score_scale=0.3, batch_size=4)


def every_other(model: Model) -> dict[str, np.ndarray]:
    first = model.kernels[0]
    return {first.name: np.arange(first.outputs) % 2 == 0}


CASES: dict[str, Callable[[Model], FederatedAlgorithm]] = {
    "fedavg": lambda model: fm.fedavg(model, optax.sgd(0.1), batch_size=4),
    "fedavg-wired": lambda model: compression.with_codecs(
        fm.fedavg(model, optax.sgd(0.1), batch_size=4, server_optimizer=optax.sgd(1.0, momentum=0.5)),
        up=codecs.chain(codecs.top_k(0.2), codecs.quantize(8)),
        down=codecs.quantize(8),
    ),
    "fedavg-robust": lambda model: robust.with_robust_merge(
        fm.fedavg(model, optax.sgd(0.1), batch_size=4), robust.clip_to_median(1.5), robust.trimmed_mean(0.2)
    ),
    "fedavg-private": lambda model: compression.with_codecs(
        privacy.with_equal_weights(fm.fedavg(model, optax.sgd(0.1), batch_size=4)),
        up=codecs.clip_and_noise(1.0, 0.01, cohort=COHORT),
    ),
    "fedprox": lambda model: fm.fedprox(model, optax.sgd(0.1), batch_size=4, mu=0.1),
    "fedsgd": lambda model: fm.fedsgd(model, optax.sgd(0.5, momentum=0.5), batch_size=4),
    "lgfedavg": lambda model: fm.lgfedavg(model, optax.sgd(0.1), batch_size=4),
    "perfedavg": lambda model: fm.perfedavg(model, optax.sgd(0.1), batch_size=4, alpha=0.1, support=8),
    "topk": lambda model: fm.topk(model, optax.sgd(0.1), batch_size=4),
    "sign": lambda model: fm.sign(model, optax.sgd(0.1), batch_size=4),
    "heterofl": lambda model: fm.heterofl(model, optax.sgd(0.1), batch_size=4, ratios=(1.0, 0.3)),
    "fednova": lambda model: fm.fednova(model, optax.sgd(0.05, momentum=0.5), batch_size=4),
    "scaffold": lambda model: fm.scaffold(model, optax.sgd(0.1), batch_size=4),
    "fedskel": lambda model: fm.fedskel(
        model, optax.sgd(0.1), batch_size=4, ratios=(0.3, 1.0), updates=1, prune_dense=True, warm_up=1
    ),
    "fedskel-cycle": lambda model: fm.fedskel(
        model,
        optax.sgd(0.1),
        batch_size=4,
        ratios=(0.3, 1.0),
        updates=1,
        prune_dense=True,
        dense_neurons="active",
        cohorts="cycle",
        rest="own",
        absent="ignore",
    ),
    "masked-fedavg": lambda model: fm.masked_fedavg(
        model, optax.sgd(0.1), batch_size=4, filters=every_other(model), prune_bias=True
    ),
    "masked-fedavg-median": lambda model: robust.with_robust_merge(
        CASES["masked-fedavg"](model), robust.median()
    ),
    "mpfl": lambda model: fm.mpfl(
        model, optax.sgd(0.1), batch_size=4, iterations=2, search_epochs=2, prune_dense=True
    ),
    # A large epsilon, for the reason above fedmask-entropy.
    "fedpm": lambda model: fm.fedpm(model, optax.adam(0.3, eps=1e-3), epochs=3, batch_size=4),
    "lotteryfl": lambda model: fm.lotteryfl(model, optax.sgd(0.1), epochs=2, batch_size=4, held_out=3),
    "feddst": lambda model: fm.feddst(
        model, optax.sgd(0.1), batch_size=4, sparsity=0.5, adjust_every=2, adjust_share=0.3
    ),
    "ecofed": lambda model: fm.ecofed(model, optax.sgd(0.1), batch_size=4, split=model.splits[0]),
    "splitfed": lambda model: fm.splitfed(model, optax.sgd(0.1), batch_size=4, split=model.splits[0]),
    "lgl": lambda model: fm.lgl(model, optax.sgd(0.1), batch_size=4, split=model.splits[0]),
    "fedgkt": lambda model: fm.fedgkt(model, optax.sgd(0.1), batch_size=4, split=model.splits[0]),
    "local": lambda model: fm.local(model, optax.sgd(0.1), batch_size=4),
    "adp": lambda model: fm.adp(model, optax.sgd(0.02), batch_size=4, federation="scaffold", l1=1e-3),
    "adp-salient": lambda model: fm.adp(
        model, optax.sgd(0.02), batch_size=4, upload_share=0.5, threshold=1e-3
    ),
    "adp-warm": lambda model: fm.adp(model, optax.sgd(0.02), batch_size=4, warm_up=2),
    "fedmask": lambda model: _fedmask(model, epochs=2),
    "fedmask-own": lambda model: _fedmask(
        model, epochs=1, start="own", encoding="structure", keep_scores=True
    ),
    # Weights of one magnitude let gradients cancel; Adam makes a whole step of what rounding leaves.
    "fedmask-entropy": lambda model: compression.with_codecs(
        fm.fedmask(model, optax.sgd(30.0), score_scale=0.3, batch_size=4, weights="constant"),
        up=codecs.entropy(),
        down=codecs.entropy(),
    ),
}


def every_filter(model: Model) -> dict[str, np.ndarray]:
    return {kernel.name: np.ones(kernel.outputs, bool) for kernel in model.kernels[:-1]}


_TWICE = fm.Trainer(optax.sgd(0.1), epochs=2, batch_size=4)

# Settings under which an algorithm is FedAvg, bytes up included.
FEDAVG_LIMITS: dict[str, Callable[[Model], FederatedAlgorithm]] = {
    "fedprox": lambda model: fm.fedprox(model, _TWICE, mu=0.0),
    "topk": lambda model: fm.topk(model, _TWICE, fraction=1.0),
    "lgfedavg": lambda model: fm.lgfedavg(model, _TWICE, shared=("dense1", "dense2")),
    "heterofl": lambda model: fm.heterofl(model, _TWICE, ratios=(1.0,), own_classes=False),
    "masked-fedavg": lambda model: fm.masked_fedavg(model, _TWICE, filters=every_filter(model)),
    "lotteryfl": lambda model: fm.lotteryfl(model, _TWICE, prune_share=0.0, held_out=0),
    "feddst": lambda model: fm.feddst(model, _TWICE, sparsity=0.0, adjust_every=1, adjust_share=0.0),
    "entropy": lambda model: compression.with_codecs(fm.fedavg(model, _TWICE), up=codecs.entropy()),
    "robust": lambda model: robust.with_robust_merge(fm.fedavg(model, _TWICE)),
}


def fedavg_twice(model: Model) -> FederatedAlgorithm:
    """The parent of :data:`FEDAVG_LIMITS`."""
    return fm.fedavg(model, _TWICE)


NUM_CLIENTS = 9
COHORT = 5

# What a case runs on, unless it says otherwise: the shape of inputs, and a small model for them.
KINDS: dict[str, tuple[tuple[int, ...], Callable[[Task], Model]]] = {
    "mlp": ((6,), partial(fm.models.mlp, hidden=(32,))),
    "cnn": ((8, 8, 1), fm.models.cnn),
    "small-cnn": ((8, 8, 1), lambda task: fm.models.cnn(task).rebuild((6, 8, 16, task.num_classes))),
}


def kind_of(name: str, other: str = "mlp") -> str:
    """Gates need convolutions; all else runs on a perceptron, or on another kind."""
    return "small-cnn" if name.startswith("adp") else other


@cache
def task(shape: tuple[int, ...] = (6,), num_classes: int = 3) -> Task:
    """Ragged clients, one of them with a single example."""
    sizes = np.array([7, 12, 1, 20, 9, 5, 16, 11, 8])
    return synthetic_task(shape, num_classes, sizes, seed=3, noise=0.3)


@cache
def algorithm(name: str, kind: str | None = None) -> FederatedAlgorithm:
    """A case on a small model, of its own kind or of another."""
    kind = kind or kind_of(name)
    return CASES[name](KINDS[kind][1](task_for(kind)))


def task_for(kind: str) -> Task:
    return task(KINDS[kind][0])


def data_of(task: Task, client: int, tier: int = 0) -> ClientData:
    """One client's training data, as its training function sees them."""
    examples, capacity = arrays.train_examples(task), arrays.capacity(task)
    lane = Lanes(
        *map(jnp.int32, (client, task.train.offsets[client], task.train.sizes[client], tier, client))
    )
    return arrays.client_data(examples, lane, Block(lane.sizes, lane.tiers), capacity)
