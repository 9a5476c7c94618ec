"""Published divisions of data sets among clients, which depend on their labels alone."""

from typing import Any

import numpy as np

from fedjax_masks.claims.claim import Claim, counted, listed
from fedjax_masks.core.algorithm import Task
from fedjax_masks.data import label_histogram, task_from_arrays

DIVISION = (4096, 5674, 4534, 476, 5052, 5256, 7867, 6039, 5711, 5295)
"""Images per client of CIFAR-10, Dirichlet 0.1, ten clients, NumPy's legacy generator, seed 2020."""

CLASSES = {3: (0, 0, 74, 3, 3, 37, 0, 0, 288, 71), 5: (0, 0, 1, 0, 0, 0, 0, 4183, 1072, 0)}
"""Two of these clients' images per class."""


def balanced(per_class: int, classes: int = 10, **options: Any) -> Task:
    """A division of as many examples of each class, as CIFAR-10 has 5,000; each example is its own number.

    Args:
      per_class: Training examples of each class; there are 100 test examples.
      classes: Number of classes.
      **options: Of :func:`fedjax_masks.data.task_from_arrays`.
    """
    labels, test = np.tile(np.arange(classes), per_class), np.repeat(np.arange(classes), 100)
    inputs, test_inputs = (np.arange(len(some), dtype=np.float32)[:, None] for some in (labels, test))
    return task_from_arrays(inputs, labels, test_inputs, test, scale="none", **options)


def dirichlet(system: str) -> list[Claim]:
    """The rows of a published draw."""
    task = balanced(5_000, clients=10, partition="dirichlet:0.1", seed=2020)
    what, histogram = "CIFAR-10, Dirichlet 0.1, ten clients, seed 2020", label_histogram(task)
    return [
        listed(system, f"images per client, {what}", DIVISION, task.train.sizes.tolist()),
        *(
            listed(
                system, f"images per class of client {client}, {what}", classes, histogram[client].tolist()
            )
            for client, classes in CLASSES.items()
        ),
    ]


def shards(system: str) -> Claim:
    """How many classes a client of five shards has."""
    classes = (label_histogram(balanced(5_000, clients=100, partition="shards:5")) > 0).sum(1)
    return counted(
        system, "classes per client, of five label-sorted shards of 100", 4.1, classes.mean(), "", digits=1
    )
