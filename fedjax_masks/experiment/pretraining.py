"""Pre-training without downloads: where a run's parameters come from, if not from chance alone.

Sources are fractals, the examples of the data set that no client has, or a file. What is trained is
kept in the cache under a digest of all that decides it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_masks.algorithms.fedavg import fedavg
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Params, Task
from fedjax_masks.core.errors import UserError, unknown, unlogged
from fedjax_masks.core.options import Count, Rate, Seed
from fedjax_masks.core.progress import working
from fedjax_masks.data.cache import cached
from fedjax_masks.data.fractals import fractal_images
from fedjax_masks.data.tasks import index_of
from fedjax_masks.experiment.loop import simulate
from fedjax_masks.models import Model, Problem, parameters

SOURCES = ("random", "fractal", "public", "npz:FILE", "safetensors:FILE", "orbax:DIR")
_HELD_OUT = 6  # every so many examples one tests what was learned


@dataclass(frozen=True)
class Pretraining:
    """Where a run's parameters come from.

    Attributes:
      source: ``random``; ``fractal``: trained to tell fractals apart; ``public``: trained on examples
        of the data set that no client has (so in-domain); :func:`~fedjax_masks.models.parameters.read`
        tells which files.
      until: The last stage that is taken over; none is all but the output layer, or all of a file.
      epochs: Passes over the source's images.
      batch_size: Examples per step.
      lr: Of SGD with Nesterov momentum 0.9 and weight decay 5e-4, a tenth from half of the steps on and a
        hundredth from four fifths on (Wu et al. 2024, arXiv 2304.05495).
      classes: Classes of fractals.
      per_class: Fractals of each.
      seed: Of fractals, parameters and the order of examples.
    """

    source: str = "random"
    until: str | None = None
    epochs: Count = 20
    batch_size: Count = 50
    lr: Rate = 0.01
    classes: Count = 60
    per_class: Count = 100
    seed: Seed = 0


class Pretrained(NamedTuple):
    """What a source gives.

    Attributes:
      params: Nested dicts of arrays, by stage.
      accuracy: On the source's held-out images; None of a file.
    """

    params: Params
    accuracy: float | None


def start_from(model: Model, params: Params) -> Model:
    """The model, whose initial parameters are given for some of its stages and else random.

    Raises:
      UserError: The parameters are of another model.

    Example:
      >>> from types import SimpleNamespace
      >>> from fedjax_masks.models import cnn
      >>> model = cnn(SimpleNamespace(input_shape=(8, 8, 1), num_classes=2))
      >>> given = {"conv1": jax.tree.map(jnp.ones_like, model.init(jax.random.key(0))["conv1"])}
      >>> params = start_from(model, given).init(jax.random.key(1))
      >>> float(params["conv1"]["kernel"].mean()), float(params["conv2"]["bias"].max())
      (1.0, 0.0)
    """
    own = trees.flat(jax.eval_shape(model.init, jax.random.key(0)))
    given = trees.flat(params)
    for name, array in given.items():
        shape = own[name].shape if name in own else None
        if shape != array.shape:
            has = "no such parameter" if shape is None else f"shape {shape}"
            raise UserError(f"pretraining: {name} has shape {array.shape}, model={model.name!r} has {has}")
    missing = [name for name in own if name.split(".")[0] in params and name not in given]
    if missing:
        raise UserError(f"pretraining: {missing[0]} is missing; accepted are whole stages of {model.name!r}")
    fixed = jax.tree.map(jnp.asarray, dict(params))
    return model._replace(init=lambda key: {**model.init(key), **fixed})


def pretrain(
    make_model: Callable[[Problem], Model],
    task: Task,
    options: Pretraining,
    *,
    cache_dir: str | Path | None = None,
) -> Pretrained:
    """Gets the parameters of a source, from the cache where they have been trained before.

    Args:
      make_model: Makes the model for a problem; fractals have classes of their own.
      task: The federated task.
      options: What to do.
      cache_dir: See :func:`fedjax_masks.data.cache.cache_root`.

    Raises:
      UserError: There is no such source, a file is none of this model, every example belongs to some
        client, or there is no such stage.
    """
    model = make_model(task)
    stages = [*model.splits, model.kernels[-1].path[0]]
    if options.until is not None and options.until not in stages:
        raise unknown("pretraining.until", options.until, stages)
    kind, _, path = options.source.partition(":")
    from_file = kind in parameters.FORMATS and bool(path)
    if from_file:
        found = Pretrained(parameters.read(options.source), None)
    elif options.source in ("fractal", "public"):
        found = _trained(make_model, _problem(task, options), options, cache_dir)
    elif options.source == "random":
        found = Pretrained({}, None)
    else:
        raise unknown("pretraining.source", options.source, SOURCES)
    last = len(stages) if from_file else len(stages) - 1
    wanted = stages[: last if options.until is None else stages.index(options.until) + 1]
    start_from(model, {name: stage for name, stage in found.params.items() if name in wanted})
    return found._replace(params={name: found.params[name] for name in wanted if name in found.params})


def _problem(task: Task, options: Pretraining) -> Task:
    """What to train on: a task of one client."""
    if options.source == "fractal":
        if len(task.input_shape) != 3:
            raise UserError(f"pretraining.source=fractal: inputs have shape {task.input_shape}; needs images")
        with working("fractal images"):
            inputs, labels = fractal_images(
                task.input_shape, classes=options.classes, per_class=options.per_class, seed=options.seed
            )
        classes = options.classes
    else:
        rows = np.setdiff1d(np.arange(len(task.labels)), task.train.rows)
        if len(rows) < _HELD_OUT:
            raise UserError(
                "pretraining.source=public: all examples belong to clients; "
                "data.examples_per_client leaves some to the public"
            )
        inputs, labels, classes = task.inputs[rows], task.labels[rows], task.num_classes
    held = np.arange(len(labels)) % _HELD_OUT == 0
    train, test = (index_of([np.arange(np.sum(part))]) for part in (~held, held))
    return Task(
        options.source, inputs[~held], labels[~held], inputs[held], labels[held], train, test, classes
    )


def _trained(
    make_model: Callable[[Problem], Model], problem: Task, options: Pretraining, cache_dir: Any
) -> Pretrained:
    model = make_model(problem)
    shapes = {
        name: leaf.shape for name, leaf in trees.flat(jax.eval_shape(model.init, jax.random.key(0))).items()
    }
    chosen = {key: value for key, value in asdict(options).items() if key != "until"}
    digest = hashlib.sha256(json.dumps([model.name, shapes, chosen]).encode())
    for array in (problem.inputs, problem.labels):
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)

    def build() -> Mapping[str, np.ndarray]:
        steps = options.epochs * -(-len(problem.labels) // options.batch_size)
        rate = optax.piecewise_constant_schedule(options.lr, {steps // 2: 0.1, 4 * steps // 5: 0.1})
        optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, 0.9, nesterov=True))
        # One client that has everything, for one round: centralised training.
        algorithm = fedavg(model, optimizer, epochs=options.epochs, batch_size=options.batch_size)
        with unlogged("fedjax_masks.core.training"):  # a schedule within one round is what it is meant to be
            run = simulate(algorithm, problem, rounds=1, cohort=1, seed=options.seed, progress=False)
        accuracy = np.asarray(run.evaluation.global_accuracy, np.float32)
        return {"accuracy": accuracy, **trees.flat(jax.device_get(run.state.server.params))}

    steps = f"{options.epochs} epochs of {len(problem.labels)} examples"
    with working(f"pre-training on {options.source}, {steps}"):
        arrays = cached(f"pretrained-{digest.hexdigest()[:20]}", build, cache_dir=cache_dir)
    accuracy = float(arrays.pop("accuracy"))
    return Pretrained(parameters.nested({name: np.array(array) for name, array in arrays.items()}), accuracy)
