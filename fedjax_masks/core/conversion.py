"""Conversion of values, and of their text, to the plain types of options; see :func:`convert`."""

import math
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Literal, TypeVar, Union, get_args, get_origin

NONE = type(None)
Value = TypeVar("Value")


def is_union(annotation: object) -> bool:
    """Whether a type is a union, in either notation."""
    return get_origin(annotation) in (Union, types.UnionType)


def convert(value: object, annotation: object) -> object:
    """Converts a value to a type.

    Args:
      value: A value, or its text.
      annotation: A plain type, see :func:`fedjax_masks.core.options.is_plain`.

    Raises:
      ValueError, TypeError, OverflowError or RecursionError: The value is not of the type, or is out of its
        bounds.

    >>> convert("2", int | None), convert("none", int | None), convert("1,2", Sequence[float])
    (2, None, (1.0, 2.0))
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        converted = convert(value, arguments[0])
        return _require(converted in arguments[1], converted)
    if origin is Literal:
        return _require(value in arguments, value)
    if origin is Sequence:
        items = _items(value) if isinstance(value, str) else value
        if not isinstance(items, Iterable):
            raise TypeError
        return tuple(convert(item, arguments[0]) for item in items)
    if is_union(annotation):
        return _convert_to_first(value, sorted(arguments, key=lambda kind: kind is not NONE))
    return _CONVERTERS[annotation](value)


def _items(text: str) -> list[object]:
    """The items of a list in text: words and numbers between commas, or a list of TOML or JSON.

    >>> _items("64, 32"), _items("[conv1,dense1]"), _items('["conv1", "dense1"]'), _items("[]")
    (['64', '32'], ['conv1', 'dense1'], ['conv1', 'dense1'], [])
    """
    text = text.strip()
    inner = text[1:-1].strip() if text.startswith("[") and text.endswith("]") else text
    if any(mark in inner for mark in "\"'[]"):
        return tomllib.loads(f"items = [{inner}]")["items"]
    if not inner:
        return _require(inner != text, [])
    return [item.strip() for item in inner.removesuffix(",").split(",")]


def _convert_to_first(value: object, annotations: Sequence[object]) -> object:
    """Converts a value to the first of several types that it fits."""
    *others, last = annotations
    for annotation in others:
        try:
            return convert(value, annotation)
        except (ValueError, TypeError, OverflowError):
            continue
    return convert(value, last)


def _require(condition: bool, value: Value) -> Value:
    """The value, where the condition holds; raises ValueError where it does not."""
    if not condition:
        raise ValueError
    return value


def _integer(value: object) -> int:
    if isinstance(value, str):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError


def _number(value: object) -> float:
    number = float(value) if isinstance(value, str | float) else float(_integer(value))
    return _require(math.isfinite(number), number)


def _truth(value: object) -> bool:
    words: Mapping[object, bool] = {"true": True, "false": False, True: True, False: False}
    return words[_require(isinstance(value, bool | str) and value in words, value)]


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError


def _none(value: object) -> None:
    return _require(value is None or value == "none", None)


_CONVERTERS: Mapping[object, Callable[[object], object]] = {
    bool: _truth,
    int: _integer,
    float: _number,
    str: _text,
    NONE: _none,
}
