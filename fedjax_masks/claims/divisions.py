"""Published divisions of data sets among clients, which depend on labels alone."""

from typing import Any

import numpy as np

from fedjax_masks.claims.claim import Claim
from fedjax_masks.claims.counts import exact_claim, list_claim
from fedjax_masks.core.algorithm import Task
from fedjax_masks.data import label_histogram, task_from_arrays

DIVISION = (4096, 5674, 4534, 476, 5052, 5256, 7867, 6039, 5711, 5295)
"""Images per client of CIFAR-10, Dirichlet 0.1, ten clients, NumPy's legacy generator, seed 2020."""

CLASSES = {3: (0, 0, 74, 3, 3, 37, 0, 0, 288, 71), 5: (0, 0, 1, 0, 0, 0, 0, 4183, 1072, 0)}
"""Images per class of two of these clients, by the client's number."""


def balanced(per_class: int, classes: int = 10, **options: Any) -> Task:
    """A task with equally many examples of each class; the input of an example is its number.

    Args:
      per_class: Training examples of each class, 5,000 in CIFAR-10; the test set has 100 of each.
      classes: The number of classes.
      **options: Options of :func:`fedjax_masks.data.task_from_arrays`.
    """
    labels, test_labels = np.tile(np.arange(classes), per_class), np.repeat(np.arange(classes), 100)
    inputs, test_inputs = (np.arange(len(y), dtype=np.float32)[:, None] for y in (labels, test_labels))
    return task_from_arrays(inputs, labels, test_inputs, test_labels, scale="none", **options)


def dirichlet(system: str) -> list[Claim]:
    """Claims on the draw from a Dirichlet distribution that the authors' logs of ADP report."""
    task = balanced(5_000, clients=10, partition="dirichlet:0.1", seed=2020)
    histogram = label_histogram(task)
    figures = {
        "images per client (logs)": (DIVISION, task.train.sizes.tolist()),
        **{
            f"images per class of client {client} (logs)": (images, histogram[client].tolist())
            for client, images in CLASSES.items()
        },
    }
    conditions = "CIFAR-10, Dirichlet 0.1, ten clients, seed 2020"
    return [
        list_claim(system, claim, logged, ours, conditions=conditions, basis="authors' code")
        for claim, (logged, ours) in figures.items()
    ]


def shards(system: str) -> Claim:
    """Check of the mean number of classes of a client with five shards."""
    classes = (label_histogram(balanced(5_000, clients=100, partition="shards:5")) > 0).sum(1)
    quantity = "mean number of classes of a client with five label-sorted shards of 100 images"
    conditions = "CIFAR-10, 100 clients"
    return exact_claim(system, quantity, 4.1, classes.mean(), "", conditions=conditions, digits=1)
