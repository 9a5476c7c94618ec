"""The start of ``mpfl_sparsity.py``: random initial weights, or pre-trained ones."""

from functools import partial
from pathlib import Path

import numpy as np
from mpfl_models import make_model

import fedjax_masks as fm
from fedjax_masks.data.tasks import index_of
from fedjax_masks.experiment.pretraining import pretrain, start_from
from fedjax_masks.experiment.sections import PretrainingConfig
from fedjax_masks.models import Model


def starting_model(
    name: str,
    task: fm.Task,
    *,
    source: str = "random",
    epochs: int = 20,
    public: int = 4000,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> Model:
    """The model with the initial weights of a source; its output layer is random.

    The published start is a network that was trained on ImageNet, with a new output layer.

    Args:
      name: A key of :data:`mpfl_models.WIDTHS`.
      task: The federated task.
      source: ``random``, ``public``, ``fractal`` or a file, see :mod:`fedjax_masks.experiment.pretraining`.
      epochs: Epochs of training on the source's images.
      public: Examples of the source ``public``, none of which a client has; a sixth is for testing.
      seed: The seed of fractals, parameters and the order of examples, and of the choice of public examples.
      cache_dir: The folder of the cache of trained parameters.
    """
    model = make_model(task, name)
    if source == "random":
        return model
    options = PretrainingConfig(source=source, epochs=epochs, seed=seed)
    data = public_task(task, public, seed=seed) if source == "public" else task
    trained = pretrain(partial(make_model, name=name), data, options, cache_dir=cache_dir)
    return start_from(model, trained.params)


def public_task(task: fm.Task, number: int, *, seed: int) -> fm.Task:
    """A task without clients' examples: some of the examples that no client has."""
    rows = np.setdiff1d(np.arange(len(task.labels)), task.train.rows)
    rows = np.random.default_rng(seed).permutation(rows)[:number]
    nobody = index_of([np.array([], np.int32)])
    return fm.Task(
        name=task.name,
        inputs=task.inputs[rows],
        labels=task.labels[rows],
        test_inputs=task.test_inputs,
        test_labels=task.test_labels,
        train=nobody,
        test=nobody,
        num_classes=task.num_classes,
    )
