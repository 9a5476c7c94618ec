"""Where examples come from: embedded digits, prepared tensorflow-datasets, users' own arrays.

A source is found by name: ``digits`` (real images inside scikit-learn, no download), ``npz:PATH``
and ``npy:DIR`` (a user's own arrays), and the name of any image classification data set of
tensorflow-datasets, with its configuration where it has several (``emnist/byclass``).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

#: Data sets by name, each with one line of help.
DATASETS: dict[str, str] = {
    "digits": "1,797 handwritten digits, 8x8x1, 10 classes; embedded, no download",
    "mnist": "70,000 handwritten digits, 28x28x1, 10 classes",
    "fashion_mnist": "70,000 articles of clothing, 28x28x1, 10 classes",
    "emnist/byclass": "814,255 handwritten characters, 28x28x1, 62 classes",
    "emnist/balanced": "131,600 handwritten characters, 28x28x1, 47 classes",
    "cifar10": "60,000 photographs, 32x32x3, 10 classes",
    "cifar100": "60,000 photographs, 32x32x3, 100 classes",
    "svhn_cropped": "99,289 house numbers, 32x32x3, 10 classes",
    "npz:PATH": "your own x_train, y_train, x_test, y_test (or x, y) in one .npz file",
    "npy:DIR": "the same arrays as single .npy files, memory-mapped",
}


class Examples(NamedTuple):
    """Labelled examples.

    Attributes:
      inputs: ``[num, *input_shape]``, uint8 (0 to 255) or float32; may be memory-mapped.
      labels: ``int32[num]``.
      clients: ``[num]``: the natural client of each example, integers or strings, or None.
    """

    inputs: np.ndarray
    labels: np.ndarray
    clients: np.ndarray | None = None


class Source(NamedTuple):
    """A data set before it is divided among clients.

    Attributes:
      name: The name it was asked for by.
      train: The training examples.
      test: The test examples.
      num_classes: Number of classes; every label is below it.
    """

    name: str
    train: Examples
    test: Examples
    num_classes: int


def load_source(
    name: str, *, data_dir: str | Path | None = None, cache_dir: str | Path | None = None
) -> Source:
    """Loads a data set by name.

    Args:
      name: A key of :data:`DATASETS`, ``npz:PATH``, ``npy:DIR``, or any image classification
        data set of tensorflow-datasets.
      data_dir: Where prepared tensorflow-datasets lie. Nothing is downloaded when it is given;
        without it the library's own folder is used and a missing data set is downloaded.
      cache_dir: Where decoded arrays are kept; by default ``$FEDJAX_MASKS_CACHE``, else
        ``~/.cache/fedjax_masks``.

    Raises:
      ValueError: If there is no such data set, or it cannot be read.
    """
    # Imported here, since both modules build on the types above.
    from fedjax_masks.data import files, prepared

    if name == "digits":
        return digits()
    kind, separator, path = name.partition(":")
    if separator and kind in ("npz", "npy"):
        return (files.read_npz if kind == "npz" else files.read_npy)(Path(path).expanduser())
    return prepared.read(name, data_dir=data_dir, cache_dir=cache_dir)


def digits() -> Source:
    """scikit-learn's 1,797 handwritten digits: ``uint8[num, 8, 8, 1]``, a fifth held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError("data set 'digits' needs scikit-learn: pip install scikit-learn") from None
    images, labels = load_digits(return_X_y=True)
    # 17 grey levels, 0 to 16, spread over a byte like every other image here.
    inputs = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    train, test = hold_out(Examples(inputs, np.asarray(labels, np.int32)))
    return Source("digits", train, test, 10)


def hold_out(examples: Examples, *, fraction: float = 0.2) -> tuple[Examples, Examples]:
    """Splits off test examples, the same ones every time.

    The fraction is taken from each natural client where there are any, else from each class,
    so that no client and no class of two or more examples goes without.

    Returns:
      Training and test examples, both in their original order.
    """
    groups = examples.labels if examples.clients is None else examples.clients
    _, group = np.unique(groups, return_inverse=True)
    order = np.random.RandomState(0).permutation(len(group))
    order = order[np.argsort(group[order], kind="stable")]
    sizes = np.bincount(group)
    rank = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    quota = np.where(sizes > 1, np.maximum(1, np.rint(fraction * sizes)), 0)
    held = np.zeros(len(group), bool)
    held[order] = rank < np.repeat(quota, sizes)
    return _take(examples, ~held), _take(examples, held)


def _take(examples: Examples, chosen: np.ndarray) -> Examples:
    clients = examples.clients
    return Examples(
        examples.inputs[chosen], examples.labels[chosen], None if clients is None else clients[chosen]
    )
