"""Plain arrays, and errors about arrays that are not."""

from collections.abc import Sequence

import numpy as np

from fedjax_masks.core.errors import UserError
from fedjax_masks.core.messages import printable


def array_error(name: str, key: str, constraint: str, fact: str) -> UserError:
    """The error for an array that does not fulfil a constraint.

    Args:
      name: The data set's name.
      key: The array's key.
      constraint: The constraint, behind "must".
      fact: The array's property that violates it, behind "it".

    >>> print(array_error("npz:a.npz", "y", "be integers [num]", "is float64 [4]"))
    data.name='npz:a.npz': y must be integers [num]; it is float64 [4]
    """
    return UserError(f"data.name={name!r}: {key} must {constraint}; it {fact}")


def form(array: np.ndarray) -> str:
    """The dtype and shape of an array in a message.

    >>> form(np.zeros((2, 3)))
    'float64 [2, 3]'
    """
    return f"{array.dtype} {list(array.shape)}"


def abbreviate(names: Sequence[object]) -> str:
    r"""At most five names in a line.

    >>> abbreviate(["a", "b"]), abbreviate([0, 100, 200, 300, 400, 500, 900])
    ('a, b', '0, 100, 200, 300, ..., 900')
    >>> abbreviate(["a\nb"])
    'a\\nb'
    """
    words = [printable(str(name)) for name in names]
    return ", ".join(words if len(words) <= 5 else [*words[:4], "...", words[-1]])


def plain_array(name: str, key: str, array: np.ndarray) -> np.ndarray:
    """An ordinary or memory-mapped array.

    Raises:
      UserError: The array has masked values.
    """
    if np.ma.is_masked(array):
        raise array_error(name, key, "be a plain array", "has masked values; fill them or leave them out")
    return array if isinstance(array, np.memmap) else np.asarray(array)


def native_array(array: np.ndarray) -> np.ndarray:
    """An array of objects that are all strings, or all integers, as an array of that type."""
    if array.dtype.kind not in "OT":
        return array
    for kind in (str, bool | np.bool_, int | np.integer):
        if array.size and all(isinstance(value, kind) for value in array.flat):
            return np.array(array.tolist())
    return array
