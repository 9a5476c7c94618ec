"""A user's own arrays, checked and brought to one form: channels last, classes from 0.

Arrays that look right and are not are refused: channels in front, labels with gaps, client ids of other
examples.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from fedjax_masks.core.errors import UserError
from fedjax_masks.data.array_checks import abbreviate, array_error, form, native_array, plain_array
from fedjax_masks.data.examples import Examples, Source, hold_out
from fedjax_masks.data.inputs import Channels, check_inputs
from fedjax_masks.data.labels import check_labels, number_classes

SPLIT = ("x_train", "y_train", "x_test", "y_test")
WHOLE = ("x", "y")
OWNERS = ("client", "client_train", "client_test")


class ArrayOptions(NamedTuple):
    """The interpretation of arrays.

    Attributes:
      channels: ``first`` moves the channels of ``[num, channels, height, width]`` to the end; ``last``
        takes images as they are; ``auto`` also, but refuses those that look channel-first.
      relabel: Whether any labels are numbered anew, in sorted order, and not only those from 1.
      classes: The number of classes, some of which may have no examples; None counts the labels, which
        must then have no gaps.
    """

    channels: Channels = "auto"
    relabel: bool = False
    classes: int | None = None


AUTO = ArrayOptions()
"""The default interpretation."""


def check_arrays(name: str, arrays: Mapping[str, np.ndarray], options: ArrayOptions = AUTO) -> Source:
    """Checks and normalizes arrays under the keys of :mod:`fedjax_masks.data.files`.

    Args:
      name: The data set's name.
      arrays: The arrays by key.
      options: The interpretation of the arrays.

    Raises:
      UserError: A key is missing, or an array has a wrong type, shape or value.
    """
    check_keys(name, arrays)
    if _is_whole(arrays):
        everything = _examples(name, arrays, "x", "y", "client", options)
        no_labels, keys = everything.labels[:0], ("y", "y")
        labels, _, classes = _classes(name, everything.labels, no_labels, keys, options)
        train, test = hold_out(everything._replace(labels=labels))
    else:
        # One array of client ids beside split examples can only be that of the training examples.
        owners = "client_train" if "client_train" in arrays else "client"
        train = _examples(name, arrays, "x_train", "y_train", owners, options)
        test = _examples(name, arrays, "x_test", "y_test", "client_test", options)
        _check_test(name, train, test)
        keys = ("y_train", "y_test")
        train_labels, test_labels, classes = _classes(name, train.labels, test.labels, keys, options)
        train, test = train._replace(labels=train_labels), test._replace(labels=test_labels)
    if not len(test.labels):
        group = "class" if train.clients is None else "client"
        constraint = f"have two or more examples of some {group}, one of them for testing"
        raise array_error(name, "y", constraint, f"has one example per {group}")
    return Source(name, train, test, classes)


def check_keys(name: str, keys: Collection[str], *, names: Collection[str] = ()) -> None:
    """Refuses keys of which a required one is missing.

    Args:
      name: The data set's name.
      keys: The keys of the arrays.
      names: All names in the file, for the message.

    Raises:
      UserError: A key is missing.
    """
    missing_keys = [key for key in (WHOLE if _is_whole(keys) else SPLIT) if key not in keys]
    if missing_keys:
        content = f"; it has {abbreviate(sorted(names))}" if names else ""
        raise UserError(
            f"data.name={name!r}: must have x_train, y_train, x_test and y_test, or x and y, and lacks "
            f"{', '.join(missing_keys)}{content}"
        )


def keys_in_use(keys: Collection[str]) -> set[str]:
    """The keys that :func:`check_arrays` reads, of those that are present.

    >>> sorted(keys_in_use(["x", "y", "client", "client_train"]))
    ['client', 'x', 'y']
    """
    if _is_whole(keys):
        return {*WHOLE, "client"} & {*keys}
    owners = {"client_train" if "client_train" in keys else "client"} & {*keys}
    # Client ids of test examples are looked up among those of training examples.
    return owners | ({*SPLIT, "client_test"} if owners else {*SPLIT}) & {*keys}


def _is_whole(keys: Collection[str]) -> bool:
    """Whether the keys are those of a data set that is not split yet."""
    return all(key in keys for key in WHOLE) and not any(key in keys for key in SPLIT)


def _examples(
    name: str, arrays: Mapping[str, np.ndarray], x: str, y: str, ids: str, options: ArrayOptions
) -> Examples:
    inputs = check_inputs(name, x, arrays[x], options.channels)
    labels = check_labels(name, y, arrays[y], relabel=options.relabel)
    clients = native_array(plain_array(name, ids, arrays[ids])) if ids in arrays else None
    if len(inputs) != len(labels):
        fact = f"has {len(labels)} labels for {len(inputs)} examples"
        raise array_error(name, y, f"have one label per example of {x}", fact)
    if clients is not None and (clients.shape != labels.shape or clients.dtype.kind not in "iuUS"):
        constraint = f"be integers or strings [{len(labels)}], one per example of {x}"
        raise array_error(name, ids, constraint, f"is {form(clients)}")
    return Examples(inputs, labels, clients)


def _check_test(name: str, train: Examples, test: Examples) -> None:
    """Checks that test examples have the shape and kinds of training examples."""
    kinds = {examples.inputs.dtype.kind for examples in (train, test)}
    if train.inputs.shape[1:] != test.inputs.shape[1:] or len(kinds) > 1:
        constraint = f"be like x_train, {train.inputs.dtype} examples of {list(train.inputs.shape[1:])}"
        fact = f"has {test.inputs.dtype} examples of {list(test.inputs.shape[1:])}"
        raise array_error(name, "x_test", constraint, fact)
    if (train.labels.dtype.kind in "US") != (test.labels.dtype.kind in "US"):
        raise array_error(name, "y_test", f"be like y_train, {train.labels.dtype}", f"is {test.labels.dtype}")


def _classes(
    name: str, train: np.ndarray, test: np.ndarray, keys: tuple[str, str], options: ArrayOptions
) -> tuple[np.ndarray, np.ndarray, int]:
    return number_classes(name, train, test, keys, relabel=options.relabel, classes=options.classes)
