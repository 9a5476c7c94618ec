"""Latency of models that masks make smaller: the masked dense form against the compacted form."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_masks import models
from fedjax_masks.algorithms.fedavg import fedavg
from fedjax_masks.algorithms.fedmask import fedmask
from fedjax_masks.algorithms.masked_fedavg import survivors
from fedjax_masks.algorithms.mpfl import mpfl_search
from fedjax_masks.benchmarks import measure
from fedjax_masks.core.algorithm import FederatedAlgorithm, Params, State, Task
from fedjax_masks.core.masks import density, mask_params, prune
from fedjax_masks.core.progress import activity, say
from fedjax_masks.data import synthetic_task
from fedjax_masks.models import Model, gated
from fedjax_masks.models.compaction import compact, keep_outputs, parameter_count
from fedjax_masks.models.gates import channel_activity, channels_in_use, inference_macs
from fedjax_masks.simulation import make_simulation
from fedjax_masks.simulation.records import RoundMetrics

_TURNS = 200


class _Deployed(NamedTuple):
    """A trained model in the two forms for a device.

    Attributes:
      masked: The model and its parameters, which are zero where the mask is False.
      compacted: The smaller model and its parameters.
      images: ``[32, *input_shape]``: images for the measurement.
      figures: Further figures of the model, by name.
    """

    masked: tuple[Model, Params]
    compacted: tuple[Model, Params]
    images: jax.Array
    figures: dict[str, float]


def _fedmask(rounds: int, plan: str) -> _Deployed:
    """LeNet with the mask of one client of FedMask."""
    task = synthetic_task((28, 28, 1), 10, [40] * 20, noise=0.5)
    model = models.lenet(task)
    algorithm = fedmask(model, optax.sgd(100.0), epochs=5, batch_size=10)
    state, metrics = _train(algorithm, task, rounds, plan)
    mask = jax.tree.map(lambda a: a[0], state.clients).value
    params = mask_params(model.kernels, state.server.weights, mask)
    figures = {"density": float(metrics.mean("density")[-1])}
    return _Deployed((model, params), compact(model, params), jnp.asarray(task.test_inputs[:32]), figures)


def _mpfl(rounds: int, plan: str) -> _Deployed:
    """VGG11 with initial weights; five iterations of MPFL's votes have pruned half of its filters."""
    del rounds
    task = synthetic_task((32, 32, 3), 10, [20] * 4, noise=0.5)
    model = models.vgg11(task, channels=(16, 32, 64, 64, 128, 128, 128, 128), hidden=(128, 128))
    algorithm = mpfl_search(model, optax.sgd(0.03), epochs=1)
    state, _ = _train(algorithm, task, 6, plan)
    filters = state.server.filters
    initial = state.server.initial
    params = prune(initial, survivors(model.kernels, initial, filters, prune_bias=True))
    figures = {"density": float(density(filters))}
    return _Deployed((model, params), compact(model, params), jnp.asarray(task.test_inputs[:32]), figures)


def _adp(rounds: int, plan: str) -> _Deployed:
    """A gated network without the channels that are active in less than a tenth of one client's examples."""
    task = synthetic_task((28, 28, 1), 10, [40] * 10, noise=0.5)
    model = gated(models.cnn(task), ratio=0.5)
    state, _ = _train(fedavg(model, optax.sgd(0.03)), task, rounds, plan)
    params, inputs = state.server.params, jnp.asarray(task.inputs[task.train.rows[:40]])
    small = keep_outputs(model, params, channels_in_use(channel_activity(model, params, inputs), 0.1))
    images = inputs[:32]
    total = sum(k.positions * math.prod(k.shape) for k in model.kernels)
    macs = {
        f"{name}_macs": float(np.mean(sum(inference_macs(m, _active(m, p, images)))) / total)
        for name, (m, p) in {"gated": (model, params), "compacted": small}.items()
    }
    return _Deployed((model, params), small, images, macs)


def _train(algorithm: FederatedAlgorithm, task: Task, rounds: int, plan: str) -> tuple[State, RoundMetrics]:
    """Runs some rounds with all clients."""
    simulation = make_simulation(algorithm, task, cohort=task.num_clients, chunk=rounds, plan=plan)
    state, (metrics,) = simulation.run(simulation.init(), 0, rounds)
    return state, metrics


def _active(model: Model, params: Params, images: jax.Array) -> dict[str, jax.Array]:
    """The channels that are active for each image, by gate."""
    return {name: gate.active for name, gate in model.forward(params, images)[1].items()}


_SYSTEMS: Mapping[str, Callable[[int, str], _Deployed]] = {"fedmask": _fedmask, "mpfl": _mpfl, "adp": _adp}


def bench_inference(*, rounds: int, plan: str = "auto", systems: tuple[str, ...] = ()) -> dict[str, Any]:
    """Trains small models, removes their masked parts, and times both forms in turns.

    Args:
      rounds: The number of training rounds, for the models that are trained.
      plan: The execution plan of the training.
      systems: Names of algorithms; all by default.

    Returns:
      ``latency_speedup`` by algorithm and batch size, the median over pairs; and under each algorithm's name
      the figures of both forms. The logits of both forms are equal up to rounding, except for ADP, whose
      compacted network lacks channels that are rarely active. ADP's MACs are counted per example, relative to
      the network without gates.
    """
    compared = {name: _compare(name, _train_one(name, rounds, plan)) for name in systems or _SYSTEMS}
    return {
        "device": measure.device(),
        "latency_speedup": {name: figures.pop("speedup") for name, figures in compared.items()},
        **compared,
    }


def _train_one(name: str, rounds: int, plan: str) -> _Deployed:
    say(f"{name}: training")
    with activity(f"{name}: training"):
        return _SYSTEMS[name](rounds, plan)


def _compare(name: str, deployed: _Deployed) -> dict[str, Any]:
    """The figures of both forms of one model."""
    (model, params), (small, small_params), images, figures = deployed
    latency, speedup, difference, largest = {}, {}, 0.0, 0.0
    for batch in (1, 32):
        x = images[:batch]
        masked = partial(jax.jit(model.apply), params, x)
        compacted = partial(jax.jit(small.apply), small_params, x)
        difference = max(difference, float(jnp.max(jnp.abs(masked() - compacted()))))
        largest = max(largest, float(jnp.max(jnp.abs(masked()))))
        forms = {"masked": masked, "compacted": compacted}
        times = measure.time_in_turns(forms, _TURNS, title=f"{name}, batch {batch}")
        latency[str(batch)] = {f"{form}_ms": measure.median_ms(s) for form, s in times.items()}
        speedup[str(batch)] = measure.speedup(times["masked"], times["compacted"])
    return {
        "model": model.name,
        **{name: round(value, 4) for name, value in figures.items()},
        "parameters_masked": parameter_count(params),
        "parameters_compacted": parameter_count(small_params),
        "max_logit": largest,
        "max_logit_difference": difference,
        "latency": latency,
        "speedup": speedup,
    }
