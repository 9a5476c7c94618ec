"""Inputs of a user's own arrays, in one form: channels last, uint8 or floats."""

from typing import Literal

import numpy as np

from fedjax_masks.data.array_checks import array_error, form, plain_array

Channels = Literal["auto", "first", "last"]

_CHUNK = 4096
_USUAL_CHANNELS = (1, 3, 4)


def check_inputs(name: str, key: str, array: np.ndarray, channels: Channels) -> np.ndarray:
    """Checks inputs and brings them to one form.

    Args:
      name: The data set's name.
      key: The array's key.
      array: ``[num, features]``, ``[num, height, width]`` or ``[num, height, width, channels]``; integers
        from 0 to 255, floats, or bool.
      channels: See :class:`fedjax_masks.data.arrays.ArrayOptions`.

    Returns:
      ``[num, features]`` or ``[num, height, width, channels]``. Integers of images are uint8; other
      integers, but for a table of uint8, and bools are float32; floats keep their dtype.

    Raises:
      UserError: The array has another shape or dtype, or values out of range.
    """
    array = plain_array(name, key, array)
    if not 2 <= array.ndim <= 4 or 0 in array.shape:
        shapes = "[num, features], [num, height, width] or [num, height, width, channels]"
        raise array_error(name, key, f"be {shapes}", f"is {form(array)}")
    if array.dtype.kind not in "iufb":
        types = "uint8, integers from 0 to 255, floats, or bool"
        raise array_error(name, key, f"be {types}", f"is {form(array)}")
    array = _channels_last(name, key, array, channels)
    if array.dtype.kind == "f":
        _check_finite(name, key, array)
    elif array.dtype.kind == "b":
        array = array.astype(np.float32)
    elif array.dtype != np.uint8:
        if array.min() < 0 or array.max() > 255:
            values = f"has integers from {array.min()} to {array.max()}"
            raise array_error(name, key, "be integers from 0 to 255, or floats", values)
        # Integers of a table are numbers: only its uint8 may be bytes of flattened images.
        array = array.astype(np.float32 if array.ndim == 2 else np.uint8)
    return array[..., None] if array.ndim == 3 else array


def _channels_last(name: str, key: str, array: np.ndarray, channels: Channels) -> np.ndarray:
    if channels == "first":
        if array.ndim != 4:
            shape = "be [num, channels, height, width] with data.channels=first"
            raise array_error(name, key, shape, f"is {form(array)}")
        return np.moveaxis(array, 1, -1)
    if channels == "auto" and array.ndim == 4 and _looks_first(array.shape):
        fact = f"is {form(array)} and looks channel-first"
        remedy = "data.channels=first moves channels to the end, data.channels=last does not"
        raise array_error(name, key, "be [num, height, width, channels]", f"{fact}; {remedy}")
    return array


def _looks_first(shape: tuple[int, ...]) -> bool:
    """Whether images have a usual number of channels in front only, or any in front of a larger square."""
    _, front, middle, back = shape
    return (front in _USUAL_CHANNELS and back not in _USUAL_CHANNELS) or front < middle == back


def _check_finite(name: str, key: str, array: np.ndarray) -> None:
    # In chunks, so that a memory-mapped array is never held as a whole. The cast to float32 is for later:
    # a large mean would swallow small deviations, such as those of timestamps, before they are scaled.
    for start in range(0, len(array), _CHUNK):
        with np.errstate(over="ignore"):
            chunk = array[start : start + _CHUNK].astype(np.float32, copy=False)
        if not np.isfinite(chunk).all():
            raise array_error(name, key, "be finite", "has values that are NaN or infinite in float32")
