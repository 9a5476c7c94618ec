"""The scale of inputs: networks learn from values of about one.

Models bring bytes from [0, 255] to [-1, 1] and use floats as they are. So integers of a small range
(grey levels from 0 to 16, flags), floats of another size, and tables whose columns differ by orders of
magnitude do not train without scaling. All statistics are those of the training examples; test examples
are scaled by the same numbers.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from fedjax_masks.core.messages import warn
from fedjax_masks.data.examples import Source

Scale = Literal["auto", "none", "minmax", "standardize"]

_BRIGHT = 64  # a quarter of a byte's range
_WIDE = 128  # half of it
_LARGE, _UNEVEN, _OFFSET, _RARE = 3.0, 60.0, 2.0, 12.0
_NARROW, _FLAT, _FEW = 0.5, 0.1, 0.1
_CHUNK = 1 << 22  # values of a memory-mapped array that are in memory at once


class Statistics(NamedTuple):
    """Statistics of each column of a table or each channel of images: ``float64[columns]``.

    Attributes:
      low: The smallest value.
      high: The largest value.
      mean: The mean.
      deviation: The standard deviation.
    """

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


def scale_inputs(source: Source, scale: Scale = "auto") -> Source:
    """Brings the inputs of a data set to the scale that networks expect.

    Args:
      source: The data set.
      scale: ``none`` keeps the inputs. ``minmax`` brings the smallest and the largest training value to -1
        and 1. ``standardize`` brings each column of a table, or each channel of images, to mean 0 and
        standard deviation 1. ``auto`` keeps, to the bit, inputs that train without scaling; it scales
        others by the rule of :func:`choose_scale`, and logs that in one line.

    Returns:
      The data set. Inputs are float32, or uint8 where they are bytes of images or ``scale`` is ``none``.
      Scaling takes place in float64.

    Example:
      >>> from fedjax_masks.data.examples import Examples
      >>> grey = Examples(np.array([0, 16, 4], np.float32).reshape(3, 1, 1, 1), np.zeros(3, np.int32))
      >>> scale_inputs(Source("grey", grey, grey, 1), "minmax").test.inputs.ravel().tolist()
      [-1.0, 1.0, -0.5]
    """
    inputs = source.train.inputs
    if scale == "none" or (scale == "auto" and inputs.dtype == np.uint8 and are_bytes(inputs)):
        return _map_inputs(source, lambda array: array if array.dtype == np.uint8 else _to_float32(array))
    stats = statistics(inputs)
    if scale == "auto":
        scale = choose_scale(stats, table=inputs.ndim == 2)
        if scale != "none":
            span = f"{stats.low.min():.4g} to {stats.high.max():.4g}"
            warn(
                f"data set '{source.name}': inputs from {span}: scaled by data.scale={scale}; none keeps them"
            )
        else:
            return _map_inputs(source, _to_float32)
    center, width = _affine(stats, scale)
    return _map_inputs(source, lambda array: _apply(array, center, width))


def choose_scale(stats: Statistics, *, table: bool) -> Scale:
    """Chooses the scaling of inputs for ``auto``.

    Inputs train without scaling (``none``) if every column or channel has a root mean square of at most 3
    and a range of at least a 60th of the largest range and half of its own mean, and some column has a range
    of 0.5 or a standard deviation of 0.1. Else tables are standardized, as are images with channels of unlike
    ranges; other images are scaled by ``minmax``. Constant columns do not count, nor do columns that hardly
    ever vary; a tenth of all columns may be dark like the border of flattened images.

    >>> def by_range(*ends):
    ...     low, high = np.array(ends, float).T
    ...     return Statistics(low, high, (low + high) / 2, (high - low) / 4)
    >>> choose_scale(by_range([0, 255]), table=False), choose_scale(by_range([-3, 3]), table=False)
    ('minmax', 'none')
    >>> tables = by_range([0, 1], [0, 0.001]), by_range([1.9, 2])
    >>> choose_scale(tables[0], table=True), choose_scale(tables[1], table=True)
    ('standardize', 'standardize')
    """
    spread = stats.high - stats.low
    varying = spread > 0
    if not varying.any():
        return "none"
    # The deviation of a flag that is rarely set is small, its range is not.
    common = varying & (_RARE * stats.deviation >= spread)
    tiny = varying & (_UNEVEN * spread < spread.max())
    # A border pixel of flattened images is tiny too; it shares its minimum with all pixels, and is rare.
    border = stats.low == stats.low.min()
    uneven = bool((tiny & common & ~border).any()) or float(tiny[varying].mean()) > _FEW
    offset = bool((common & (_OFFSET * spread < np.abs(stats.mean))).any())
    large = np.hypot(stats.mean, stats.deviation).max() > _LARGE
    flat = spread.max() < _NARROW and stats.deviation.max() < _FLAT
    if not (uneven or offset or large or flat):
        return "none"
    return "standardize" if table or uneven else "minmax"


def are_bytes(inputs: np.ndarray) -> bool:
    """Whether integers from 0 to 255 are bytes of images, and not numbers.

    Bytes of images reach a quarter of their range. In a table, which may hold flattened images, most columns
    that vary do so over half of the range. Constant inputs count as bytes.
    """
    if inputs.ndim > 2:
        constant = all((chunk == inputs.flat[0]).all() for chunk in _chunks(inputs))
        return constant or any(chunk.max() >= _BRIGHT for chunk in _chunks(inputs))
    high = np.max([chunk.max(0) for chunk in _chunks(inputs)], axis=0)
    spread = high - np.min([chunk.min(0) for chunk in _chunks(inputs)], axis=0)
    return not spread.any() or float(np.mean(spread[spread > 0] >= _WIDE)) > 0.5


def statistics(inputs: np.ndarray) -> Statistics:
    """Statistics of inputs, read in chunks.

    >>> statistics(np.array([[1, 5], [3, 5]], np.float32)).deviation.tolist()
    [1.0, 0.0]
    """
    columns, number = inputs.shape[-1], inputs.size // inputs.shape[-1]
    first = np.asarray(inputs[0], np.float64).reshape(-1, columns)[0]
    low, high, total, squares = first, first, np.zeros(columns), np.zeros(columns)
    for chunk in _chunks(inputs):
        # Differences from the first row: squares of a large mean would swallow a small deviation.
        values = chunk.reshape(-1, columns) - first
        low, high = np.minimum(low, values.min(0) + first), np.maximum(high, values.max(0) + first)
        total, squares = total + values.sum(0), squares + np.square(values).sum(0)
    mean = total / number
    return Statistics(low, high, first + mean, np.sqrt(np.maximum(squares / number - mean**2, 0)))


def _affine(stats: Statistics, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """The number that becomes 0, and the distance from it that becomes 1."""
    if scale == "minmax":
        low, high = stats.low.min(), stats.high.max()
        center, width = np.asarray((low + high) / 2), np.asarray((high - low) / 2)
    else:
        center, width = stats.mean, stats.deviation
    return center, np.where(width > 0, width, 1)


def _map_inputs(source: Source, change: Callable[[np.ndarray], np.ndarray]) -> Source:
    train, test = (part._replace(inputs=change(part.inputs)) for part in (source.train, source.test))
    return source._replace(train=train, test=test)


def _to_float32(inputs: np.ndarray) -> np.ndarray:
    """Inputs as float32; memory-mapped ones of this dtype stay on disk."""
    return inputs if inputs.dtype == np.float32 else _apply(inputs, np.zeros(()), np.ones(()))


def _apply(inputs: np.ndarray, center: np.ndarray, width: np.ndarray) -> np.ndarray:
    out, start = np.empty(inputs.shape, np.float32), 0
    for chunk in _chunks(inputs):
        out[start : start + len(chunk)] = (chunk - center) / width
        start += len(chunk)
    return out


def _chunks(inputs: np.ndarray) -> Iterator[np.ndarray]:
    size = max(1, _CHUNK // max(1, inputs[0].size))
    return (inputs[start : start + size] for start in range(0, len(inputs), size))
