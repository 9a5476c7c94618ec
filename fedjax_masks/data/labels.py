"""Labels of a user's own arrays, as classes from 0.

Labels that run from 1 without gaps become classes from 0; one logged line says so. Labels with gaps are
refused, unless options tell the number of classes or ask for new numbers.
"""

import numpy as np

from fedjax_masks.core.messages import warn
from fedjax_masks.data.array_checks import abbreviate, array_error, form, native_array, plain_array

MAX_CLASSES = 100_000
"""The largest number of classes; an output layer for them is still one of ordinary size."""


def check_labels(name: str, key: str, array: np.ndarray, *, relabel: bool) -> np.ndarray:
    """Checks labels and brings whole floats and bools to integers.

    Args:
      name: The data set's name.
      key: The array's key.
      array: ``[num]``: integers, bools, whole floats; strings with ``relabel``.
      relabel: Whether the labels are numbered anew later.

    Returns:
      ``[num]`` integers, or strings.

    Raises:
      UserError: The array has another shape or dtype, or fractions.
    """
    array = native_array(plain_array(name, key, array))
    if array.ndim == 1 and array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.ndim == 1 and array.dtype.kind == "f" and (np.abs(array) < 2**53).all():
        integers = array.astype(np.int64)
        if (integers == array).all():
            return integers
    if array.ndim != 1 or array.dtype.kind not in ("iuUS" if relabel else "iu"):
        strings = array.ndim == 1 and array.dtype.kind in "US"
        remedy = "; data.relabel=true numbers strings" if strings else ""
        raise array_error(name, key, "be integers [num]", f"is {form(array)}{remedy}")
    return array


def number_classes(
    name: str,
    train: np.ndarray,
    test: np.ndarray,
    keys: tuple[str, str],
    *,
    relabel: bool,
    classes: int | None,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Numbers labels as classes from 0.

    Args:
      name: The data set's name.
      train: Training labels, which decide on the classes.
      test: Test labels, which must be among them.
      keys: The keys of the two arrays.
      relabel: Whether any labels are numbered anew, in sorted order.
      classes: The number of classes; None counts the training labels.

    Returns:
      ``int32`` classes of both, and the number of classes.

    Raises:
      UserError: A label is negative, too large or missing in the training labels, or the labels have gaps.
    """
    if relabel:
        return _relabel(name, train, test, keys, classes)
    train_labels, test_labels = np.unique(train), np.unique(test)
    low, high = int(min([*train_labels, *test_labels])), int(max([*train_labels, *test_labels]))
    if low < 0:
        key = keys[0] if low == train_labels[0] else keys[1]
        raise array_error(name, key, "be 0 or more", f"has label {low}; data.relabel=true numbers any labels")
    num_classes = len(train_labels) if classes is None else classes
    # The largest label is the number of classes where they are counted from 1.
    base = int(low == 1 and (train_labels[-1] if classes is None else high) == num_classes)
    if classes is None and not np.array_equal(train_labels - base, np.arange(num_classes)):
        fact = f"has {num_classes} different labels from {train_labels[0]} to {train_labels[-1]}"
        remedy = "data.relabel=true numbers them anew"
        if high < MAX_CLASSES:
            remedy += f", data.classes={high + 1} allows classes without examples"
        raise array_error(name, keys[0], "be 0 to num_classes - 1 without gaps", f"{fact}; {remedy}")
    for key, labels in zip(keys, (train_labels, test_labels)):
        if len(labels) and labels[-1] - base >= num_classes:
            reason = f"the labels of {keys[0]}" if classes is None else "by data.classes"
            constraint = f"be from {base} to {num_classes - 1 + base}, {reason}"
            raise array_error(name, key, constraint, f"has label {labels[-1]}")
    if base:
        warn(f"data set '{name}': labels 1 to {num_classes} are classes 0 to {num_classes - 1}")
    return (train - base).astype(np.int32), (test - base).astype(np.int32), num_classes


def _relabel(
    name: str, train: np.ndarray, test: np.ndarray, keys: tuple[str, str], classes: int | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Any labels, numbered in sorted order."""
    labels = np.unique(train)
    unknown = np.setdiff1d(test, labels)
    if len(unknown):
        raise array_error(
            name, keys[1], f"have the labels of {keys[0]}", f"has label {abbreviate(unknown[:1].tolist())}"
        )
    if classes is not None and len(labels) > classes:
        constraint = f"have at most data.classes={classes} different labels"
        raise array_error(name, keys[0], constraint, f"has {len(labels)}")
    if not np.array_equal(labels, np.arange(len(labels))):
        values = abbreviate(labels.tolist())
        warn(f"data set '{name}': labels {values} are classes 0 to {len(labels) - 1}")
    train, test = (np.searchsorted(labels, values).astype(np.int32) for values in (train, test))
    return train, test, len(labels) if classes is None else classes
