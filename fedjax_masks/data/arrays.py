"""A user's own arrays, checked and brought to one form: channels last, classes from 0.

Labels that run from 1 without gaps become classes from 0, which one logged line says. Everything else
that looks right and is not is refused: labels with gaps, channels in front, owners of other examples.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjax_masks.data.examples import Examples, Source, hold_out

SPLIT = ("x_train", "y_train", "x_test", "y_test")
WHOLE = ("x", "y")
OWNERS = ("client", "client_train", "client_test")

Channels = Literal["auto", "first", "last"]

MOST_CLASSES = 100_000
"""So many classes are accepted; an output layer for them is still one of ordinary size."""

_LOGGER = logging.getLogger("fedjax_masks")
_CHUNK = 4096
_CHANNELS = (1, 3, 4)


class ArrayOptions(NamedTuple):
    """How arrays are to be understood.

    Attributes:
      channels: ``first`` moves the channels of ``[num, channels, height, width]`` to the end; ``last``
        takes images as they are; ``auto`` also, but refuses those that look channel-first.
      relabel: Whether any labels are numbered anew, in sorted order, and not only those from 1.
      classes: Number of classes, some of which may have no examples; None counts the labels, which
        must then have no gaps.
    """

    channels: Channels = "auto"
    relabel: bool = False
    classes: int | None = None


AUTO = ArrayOptions()
"""The options where none are given."""


def checked(name: str, arrays: Mapping[str, np.ndarray], options: ArrayOptions = AUTO) -> Source:
    """Checks and normalises arrays under the keys of :mod:`fedjax_masks.data.files`.

    Raises:
      ValueError: If a key is missing, or an array has a wrong type, shape or value.
    """
    check_keys(name, arrays)
    if _is_whole(arrays):
        everything = _examples(name, arrays, "x", "y", "client", options)
        labels, _, classes = _numbered(name, everything.labels, everything.labels[:0], options, ("y", "y"))
        train, test = hold_out(everything._replace(labels=labels))
    else:
        # One array of owners beside split examples can only be that of the training examples.
        owners = "client_train" if "client_train" in arrays else "client"
        train = _examples(name, arrays, "x_train", "y_train", owners, options)
        test = _examples(name, arrays, "x_test", "y_test", "client_test", options)
        _check_alike(name, train, test)
        if (train.labels.dtype.kind in "US") != (test.labels.dtype.kind in "US"):
            raise refused(name, "y_test", str(test.labels.dtype), f"like y_train: {train.labels.dtype}")
        labels, held, classes = _numbered(name, train.labels, test.labels, options, ("y_train", "y_test"))
        train, test = train._replace(labels=labels), test._replace(labels=held)
    if not len(test.labels):
        group = "class" if train.clients is None else "client"
        raise refused(name, "y", f"one example per {group}", f"two or more examples of a {group}")
    return Source(name, train, test, classes)


def check_keys(name: str, keys: Collection[str], *, there: Collection[str] = ()) -> None:
    """Refuses keys of which a required one is missing.

    Args:
      name: The data set's name.
      keys: The keys that there are.
      there: All names in the file, for the message.

    Raises:
      ValueError: If a key is missing.
    """
    missing = [key for key in (WHOLE if _is_whole(keys) else SPLIT) if key not in keys]
    if missing:
        has = f"; there are {few(sorted(there))}" if there else ""
        raise ValueError(
            f"data set '{name}': {', '.join(missing)} missing; "
            f"accepted: x_train, y_train, x_test and y_test, or x and y{has}"
        )


def used(keys: Collection[str]) -> set[str]:
    """The keys that :func:`checked` reads, of those that there are.

    >>> sorted(used(["x", "y", "client", "client_train"]))
    ['client', 'x', 'y']
    """
    if _is_whole(keys):
        return {*WHOLE, "client"} & {*keys}
    owners = {"client_train" if "client_train" in keys else "client"} & {*keys}
    # Owners of test examples are looked up among those of training examples.
    return owners | ({*SPLIT, "client_test"} if owners else {*SPLIT}) & {*keys}


def few(names: Sequence[Any]) -> str:
    r"""At most five names in a line.

    >>> few(["a", "b"]), few([0, 100, 200, 300, 400, 500, 900])
    ('a, b', '0, 100, 200, 300, ..., 900')
    >>> few(["a\nb"])
    'a\\nb'
    """
    # Names of a file may hold anything, line breaks as well.
    shown = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name)) for name in names]
    return ", ".join(shown if len(shown) <= 5 else [*shown[:4], "...", shown[-1]])


def _is_whole(keys: Collection[str]) -> bool:
    """Whether the keys are those of a data set that is not split yet."""
    return all(key in keys for key in WHOLE) and not any(key in keys for key in SPLIT)


def refused(name: str, key: str, found: str, accepted: str) -> ValueError:
    """The error for an array that is not as it must be."""
    return ValueError(f"data set '{name}': {key}: {found}; accepted: {accepted}")


def _examples(
    name: str, arrays: Mapping[str, np.ndarray], x: str, y: str, ids: str, options: ArrayOptions
) -> Examples:
    inputs = _inputs(name, x, arrays[x], options.channels)
    labels = _labels(name, y, arrays[y], relabel=options.relabel)
    clients = _named(_plain(name, ids, arrays[ids])) if ids in arrays else None
    if len(inputs) != len(labels):
        raise refused(name, y, f"{len(labels)} labels for {len(inputs)} examples in {x}", "one per example")
    if clients is not None and (clients.shape != labels.shape or clients.dtype.kind not in "iuUS"):
        found = f"{clients.dtype} {list(clients.shape)}"
        raise refused(name, ids, found, f"integers or strings [{len(labels)}], one per example of {x}")
    return Examples(inputs, labels, clients)


def _inputs(name: str, key: str, array: np.ndarray, channels: Channels) -> np.ndarray:
    array = _plain(name, key, array)
    found = f"{array.dtype} {list(array.shape)}"
    if not 2 <= array.ndim <= 4 or 0 in array.shape:
        raise refused(
            name, key, found, "[num, features], [num, height, width] or [num, height, width, channels]"
        )
    if array.dtype.kind not in "iufb":
        raise refused(name, key, found, "uint8, integers from 0 to 255, floats, or bool")
    array = _channels_last(name, key, array, channels)
    if array.dtype.kind == "f":
        _check_finite(name, key, array)
    elif array.dtype.kind == "b":
        array = array.astype(np.float32)
    elif array.dtype != np.uint8:
        if array.min() < 0 or array.max() > 255:
            raise refused(name, key, f"integers from {array.min()} to {array.max()}", "0 to 255, or floats")
        # Integers of a table are numbers: only its uint8 may be bytes of flattened images.
        array = array.astype(np.float32 if array.ndim == 2 else np.uint8)
    return array[..., None] if array.ndim == 3 else array


def _channels_last(name: str, key: str, array: np.ndarray, channels: Channels) -> np.ndarray:
    found = f"{array.dtype} {list(array.shape)}"
    if channels == "first":
        if array.ndim != 4:
            raise refused(name, key, f"{found} with data.channels=first", "[num, channels, height, width]")
        return np.moveaxis(array, 1, -1)
    if channels == "auto" and array.ndim == 4 and _looks_first(array.shape):
        accepted = "[num, height, width, channels]; data.channels=first moves channels to the end"
        raise refused(name, key, f"{found} looks channel-first", f"{accepted}, data.channels=last does not")
    return array


def _looks_first(shape: tuple[int, ...]) -> bool:
    """Whether images have a usual number of channels in front only, or any behind which a square follows."""
    _, front, middle, back = shape
    return (front in _CHANNELS and back not in _CHANNELS) or front < middle == back


def _check_finite(name: str, key: str, array: np.ndarray) -> None:
    # In chunks, so that a memory-mapped array is never held as a whole. The cast to float32 is for later:
    # a large mean would swallow small deviations, such as those of timestamps, before they are scaled.
    for start in range(0, len(array), _CHUNK):
        with np.errstate(over="ignore"):
            single = array[start : start + _CHUNK].astype(np.float32, copy=False)
        if not np.isfinite(single).all():
            raise refused(name, key, "values that are NaN or infinite in float32", "finite numbers")


def _plain(name: str, key: str, array: np.ndarray) -> np.ndarray:
    """An ordinary or memory-mapped array, which hides no values."""
    if np.ma.is_masked(array):
        raise refused(name, key, "masked values", "plain arrays; fill or leave out what is masked")
    return array if isinstance(array, np.memmap) else np.asarray(array)


def _named(array: np.ndarray) -> np.ndarray:
    """Strings, or integers, that come as objects, in an array of their own type."""
    if array.dtype.kind not in "OT":
        return array
    for kind in (str, bool | np.bool_, int | np.integer):
        if array.size and all(isinstance(value, kind) for value in array.flat):
            return np.array(array.tolist())
    return array


def _labels(name: str, key: str, array: np.ndarray, *, relabel: bool) -> np.ndarray:
    array = _named(_plain(name, key, array))
    found = f"{array.dtype} {list(array.shape)}"
    if array.ndim == 1 and array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.ndim == 1 and array.dtype.kind == "f" and (np.abs(array) < 2**53).all():
        whole = array.astype(np.int64)
        if (whole == array).all():
            return whole
    if array.ndim != 1 or array.dtype.kind not in ("iuUS" if relabel else "iu"):
        strings = array.ndim == 1 and array.dtype.kind in "US"
        accepted = "integers [num]; data.relabel=true numbers strings" if strings else "integers [num]"
        raise refused(name, key, found, accepted)
    return array


def _numbered(
    name: str, train: np.ndarray, test: np.ndarray, options: ArrayOptions, keys: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels as classes from 0.

    Args:
      name: The data set's name.
      train: Labels that decide which classes there are.
      test: Labels that must be among them.
      options: Of the arrays.
      keys: What the labels are called.

    Returns:
      ``int32`` classes of both, and the number of classes.
    """
    present, held = np.unique(train), np.unique(test)
    if options.relabel:
        return _relabelled(name, train, test, options.classes, keys)
    low, high = int(min([*present, *held])), int(max([*present, *held]))
    if low < 0:
        accepted = "0 and up; data.relabel=true numbers any labels"
        raise refused(name, keys[0] if low == present[0] else keys[1], f"label {low}", accepted)
    classes = len(present) if options.classes is None else options.classes
    # The largest label is the number of classes where they are counted from 1.
    base = int(low == 1 and (present[-1] if options.classes is None else high) == classes)
    if options.classes is None and not np.array_equal(present - base, np.arange(classes)):
        found = f"{classes} different labels from {present[0]} to {present[-1]}"
        gaps = f", data.classes={high + 1} accepts classes without examples" if high < MOST_CLASSES else ""
        accepted = f"0 to num_classes - 1 without gaps; data.relabel=true numbers them anew{gaps}"
        raise refused(name, keys[0], found, accepted)
    for key, labels in zip(keys, (present, held)):
        if len(labels) and labels[-1] - base >= classes:
            as_in = f"as in {keys[0]}" if options.classes is None else "data.classes"
            raise refused(name, key, f"label {labels[-1]}", f"{base} to {classes - 1 + base}, {as_in}")
    if base:
        _LOGGER.warning("data set '%s': labels 1 to %d are classes 0 to %d", name, classes, classes - 1)
    return (train - base).astype(np.int32), (test - base).astype(np.int32), classes


def _relabelled(
    name: str, train: np.ndarray, test: np.ndarray, classes: int | None, keys: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Any labels, numbered in sorted order."""
    present = np.unique(train)
    unknown = np.setdiff1d(test, present)
    if len(unknown):
        raise refused(name, keys[1], f"label {unknown[0]}", f"the labels of {keys[0]}")
    if classes is not None and len(present) > classes:
        raise refused(name, keys[0], f"{len(present)} different labels", f"data.classes={classes} at most")
    if not np.array_equal(present, np.arange(len(present))):
        _LOGGER.warning(
            "data set '%s': labels %s are classes 0 to %d", name, few(present.tolist()), len(present) - 1
        )
    numbered, held = (np.searchsorted(present, labels).astype(np.int32) for labels in (train, test))
    return numbered, held, len(present) if classes is None else classes


def _check_alike(name: str, train: Examples, test: Examples) -> None:
    kinds = {some.inputs.dtype.kind for some in (train, test)}
    if train.inputs.shape[1:] != test.inputs.shape[1:] or len(kinds) > 1:
        found = f"{test.inputs.dtype} examples of {list(test.inputs.shape[1:])}"
        raise refused(
            name, "x_test", found, f"like x_train: {train.inputs.dtype} {list(train.inputs.shape[1:])}"
        )
