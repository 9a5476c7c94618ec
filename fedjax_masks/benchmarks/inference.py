"""Latency of models that masks have made smaller: masked and dense against compacted."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_masks import models
from fedjax_masks.algorithm import Params
from fedjax_masks.algorithms.fedmask import fedmask
from fedjax_masks.benchmarks import measure
from fedjax_masks.compaction import compact, parameter_count
from fedjax_masks.data import synthetic_task
from fedjax_masks.masks import mask_params
from fedjax_masks.models import Model
from fedjax_masks.simulation import make_simulation

_TURNS = 200


class _Deployed(NamedTuple):
    """A trained model as a device would get it.

    Attributes:
      model: The model.
      params: Its parameters, zero where the mask is.
      density: Share of the masked parameters that is left.
      images: ``[32, *input_shape]``.
    """

    model: Model
    params: Params
    density: float
    images: jax.Array


def _fedmask_lenet(rounds: int, plan: str) -> _Deployed:
    """One client's own LeNet."""
    task = synthetic_task((28, 28, 1), 10, [40] * 20, noise=0.5)
    model = models.lenet(task)
    algorithm = fedmask(model, optax.sgd(100.0), epochs=5, batch_size=10)
    simulation = make_simulation(algorithm, task, cohort=20, chunk=rounds, plan=plan)
    state, metrics = simulation.run(simulation.init(), 0, rounds)
    mask = jax.tree.map(lambda a: a[0], state.clients).value
    params = mask_params(model.kernels, state.common, mask)
    return _Deployed(model, params, float(metrics.mean("density")[-1]), jnp.asarray(task.test_inputs[:32]))


_SYSTEMS: Mapping[str, Callable[[int, str], _Deployed]] = {"fedmask": _fedmask_lenet}


def bench_inference(*, rounds: int, plan: str = "auto", systems: tuple[str, ...] = ()) -> dict[str, Any]:
    """Trains small models, removes what their masks have emptied, and times both forms in turn.

    Args:
      rounds: Rounds of training.
      plan: The execution plan of the training.
      systems: Names of algorithms; all by default.

    Returns:
      ``latency_speedup`` by algorithm and batch size, the median over pairs; under each algorithm's
      name what was compared.
    """
    compared = {name: _compare(_SYSTEMS[name](rounds, plan)) for name in systems or _SYSTEMS}
    return {
        "device": measure.device(),
        "latency_speedup": {name: figures.pop("speedup") for name, figures in compared.items()},
        **compared,
    }


def _compare(deployed: _Deployed) -> dict[str, Any]:
    model, params, density, images = deployed
    small, small_params = compact(model, params)
    latency, speedup, difference = {}, {}, 0.0
    for batch in (1, 32):
        x = images[:batch]
        masked = partial(jax.jit(model.apply), params, x)
        compacted = partial(jax.jit(small.apply), small_params, x)
        difference = max(difference, float(jnp.max(jnp.abs(masked() - compacted()))))
        taken = measure.in_turns({"masked": masked, "compacted": compacted}, _TURNS)
        latency[str(batch)] = {f"{form}_ms": measure.median_ms(s) for form, s in taken.items()}
        speedup[str(batch)] = measure.speedup(taken["masked"], taken["compacted"])
    return {
        "model": model.name,
        "density": round(density, 4),
        "parameters_dense": parameter_count(params),
        "parameters_compacted": parameter_count(small_params),
        "max_logit_difference": difference,
        "latency": latency,
        "speedup": speedup,
    }
