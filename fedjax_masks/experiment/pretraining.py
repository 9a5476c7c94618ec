"""Pre-training without downloads: the sources of a run's initial parameters.

Sources are fractals, the examples of the data set that no client has, or a file. Trained parameters are
stored in the cache, under a digest of all that they depend on.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_masks.algorithms.fedavg import fedavg
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import Params, Task
from fedjax_masks.core.errors import UserError, unknown_name
from fedjax_masks.core.optimizers import ScheduledRound
from fedjax_masks.core.progress import activity
from fedjax_masks.core.training import Trainer
from fedjax_masks.data.augment import AUGMENTATIONS
from fedjax_masks.data.cache import load_or_build
from fedjax_masks.data.fractals import fractal_images
from fedjax_masks.data.tasks import index_of
from fedjax_masks.experiment.loop import simulate
from fedjax_masks.experiment.sections import PretrainingConfig
from fedjax_masks.models import Model, Problem, parameters

SOURCES = ("random", "fractal", "public", "npz:FILE", "safetensors:FILE", "orbax:DIR")
_TEST_EVERY = 6  # one in so many examples is for testing


class Pretrained(NamedTuple):
    """Parameters of a source.

    Attributes:
      params: Nested dicts of arrays, by stage.
      accuracy: The accuracy on test images of the source; None for a file.
    """

    params: Params
    accuracy: float | None


def start_from(model: Model, params: Params) -> Model:
    """The model, with given initial parameters for some stages and random ones for the others.

    Args:
      model: The model.
      params: Nested dicts of arrays, by stage; each stage complete.

    Raises:
      UserError: The parameters do not fit the model.

    Example:
      >>> from types import SimpleNamespace
      >>> from fedjax_masks.models import cnn
      >>> model = cnn(SimpleNamespace(input_shape=(8, 8, 1), num_classes=2))
      >>> ones = {"conv1": jax.tree.map(jnp.ones_like, model.init(jax.random.key(0))["conv1"])}
      >>> params = start_from(model, ones).init(jax.random.key(1))
      >>> float(params["conv1"]["kernel"].mean()), float(params["conv2"]["bias"].max())
      (1.0, 0.0)
    """
    model_leaves = trees.flat(jax.eval_shape(model.init, jax.random.key(0)))
    leaves = trees.flat(params)
    for name, array in leaves.items():
        shape = model_leaves[name].shape if name in model_leaves else None
        if shape != array.shape:
            fact = "no such parameter" if shape is None else f"shape {shape}"
            raise UserError(
                f"pretraining.source: must fit model={model.name!r}; {name} has shape {array.shape}, the "
                f"model has {fact}"
            )
    for name in model_leaves:
        if name.split(".")[0] in params and name not in leaves:
            raise UserError(
                f"pretraining.source: must hold whole stages of model={model.name!r}; {name} is missing"
            )
    arrays = jax.tree.map(jnp.asarray, dict(params))
    return model._replace(init=lambda key: {**model.init(key), **arrays})


def pretrain(
    make_model: Callable[[Problem], Model],
    task: Task,
    options: PretrainingConfig,
    *,
    cache_dir: str | Path | None = None,
) -> Pretrained:
    """Trains or reads the parameters of a source; results of earlier training come from the cache.

    Args:
      make_model: Makes the model for a problem, since fractals have other classes than the task.
      task: The federated task.
      options: The source and its training.
      cache_dir: The folder of the cache, see :func:`fedjax_masks.data.cache.cache_root`.

    Raises:
      UserError: There is no such source, a file does not fit the model, every example belongs to some
        client, or there is no such stage.
    """
    model = make_model(task)
    stages = [*model.splits, model.kernels[-1].path[0]]
    if options.until is not None and options.until not in stages:
        raise unknown_name("pretraining.until", options.until, stages)
    kind, _, path = options.source.partition(":")
    is_file = kind in parameters.FORMATS and bool(path)
    if is_file:
        result = Pretrained(parameters.read(options.source), None)
    elif options.source in ("fractal", "public"):
        result = _train(make_model, _problem(task, options), options, cache_dir)
    elif options.source == "random":
        result = Pretrained({}, None)
    else:
        raise unknown_name("pretraining.source", options.source, SOURCES)
    last = len(stages) if is_file else len(stages) - 1
    selection = stages[: last if options.until is None else stages.index(options.until) + 1]
    start_from(model, {name: stage for name, stage in result.params.items() if name in selection})
    return result._replace(params={name: result.params[name] for name in selection if name in result.params})


def _problem(task: Task, options: PretrainingConfig) -> Task:
    """The data of a source, as a task of one client."""
    if options.source == "fractal":
        if len(task.input_shape) != 3:
            raise UserError(
                f"pretraining.source=fractal: must go with images; the inputs have shape {task.input_shape}"
            )
        with activity("fractal images"):
            inputs, labels = fractal_images(
                task.input_shape,
                classes=options.classes,
                per_class=options.per_class,
                seed=options.seed,
                style=options.style,
            )
        classes = options.classes
    else:
        rows = np.setdiff1d(np.arange(len(task.labels)), task.train.rows)
        if len(rows) < _TEST_EVERY:
            raise UserError(
                "pretraining.source=public: must find examples that no client has, and all belong to "
                "clients; data.examples_per_client leaves some out"
            )
        inputs, labels, classes = task.inputs[rows], task.labels[rows], task.num_classes
    test = np.arange(len(labels)) % _TEST_EVERY == 0
    train_index, test_index = (index_of([np.arange(np.sum(part))]) for part in (~test, test))
    return Task(
        options.source,
        inputs[~test],
        labels[~test],
        inputs[test],
        labels[test],
        train_index,
        test_index,
        classes,
    )


def _train(
    make_model: Callable[[Problem], Model],
    problem: Task,
    options: PretrainingConfig,
    cache_dir: str | Path | None,
) -> Pretrained:
    """Trains a model, or loads it from the cache."""
    model = make_model(problem)
    shapes = {
        name: leaf.shape for name, leaf in trees.flat(jax.eval_shape(model.init, jax.random.key(0))).items()
    }
    settings = {key: value for key, value in asdict(options).items() if key != "until"}
    digest = hashlib.sha256(json.dumps([model.name, shapes, settings]).encode())
    for array in (problem.inputs, problem.labels):
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)

    def build() -> Mapping[str, np.ndarray]:
        steps = options.epochs * -(-len(problem.labels) // options.batch_size)
        rate = optax.piecewise_constant_schedule(options.lr, {steps // 2: 0.1, 4 * steps // 5: 0.1})
        optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, 0.9, nesterov=True))
        # One client that has all data, for one round: centralized training.
        trainer = Trainer(
            ScheduledRound(*optimizer),
            epochs=options.epochs,
            batch_size=options.batch_size,
            augment=AUGMENTATIONS[options.augment],
        )
        run = simulate(fedavg(model, trainer), problem, rounds=1, cohort=1, seed=options.seed, progress=False)
        accuracy = np.asarray(run.evaluation.global_accuracy, np.float32)
        return {"accuracy": accuracy, **trees.flat(jax.device_get(run.state.server.params))}

    steps = f"{options.epochs} epochs of {len(problem.labels)} examples"
    with activity(f"pre-training on {options.source}, {steps}"):
        arrays = load_or_build(f"pretrained-{digest.hexdigest()[:20]}", build, cache_dir=cache_dir)
    accuracy = float(arrays.pop("accuracy"))
    return Pretrained(parameters.nested({name: np.array(array) for name, array in arrays.items()}), accuracy)
