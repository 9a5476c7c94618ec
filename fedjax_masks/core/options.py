"""Conversion and checks of option values by the type of an annotation."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from fedjax_masks.core.conversion import NONE, convert, is_union
from fedjax_masks.core.errors import UserError


@dataclass(frozen=True)
class Bounds:
    """Bounds of a number, for use inside ``typing.Annotated``.

    Attributes:
      low: The smallest value.
      high: The largest value.
      above: Whether values must be above ``low``, which is then excluded.
      below: Whether values must be below ``high``, which is then excluded.

    >>> 0 in Bounds(0, above=True), str(Bounds(0, 1, below=True))
    (False, 'at least 0 and below 1')
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low:.10g}"
        high = f" and {'below' if self.below else 'at most'} {self.high:.10g}"
        return low if self.high == math.inf else low + high


Count = Annotated[int, Bounds(1, 2**31 - 1)]  # an index on a device has 32 bits
Natural = Annotated[int, Bounds(0, 2**31 - 1)]
Seed = Annotated[int, Bounds(0, 2**32 - 1)]
Share = Annotated[float, Bounds(0, 1)]
PositiveShare = Annotated[float, Bounds(0, 1, above=True)]
Rate = Annotated[float, Bounds(0, above=True)]
Momentum = Annotated[float, Bounds(0, 1, below=True)]
Decay = Annotated[float, Bounds(0)]

_SCALARS: Mapping[object, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a finite number",
    str: "text",
    NONE: "none",
}


def is_plain(annotation: object) -> bool:
    """Whether values of a type can be written in a configuration file or on a command line.

    >>> is_plain(Literal["a", "b"] | None), is_plain(Sequence[int]), is_plain(object)
    (True, True, False)
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated or origin is Sequence:
        return is_plain(arguments[0])
    if is_union(annotation):
        return all(map(is_plain, arguments))
    return origin is Literal or annotation in _SCALARS


def describe(annotation: object) -> str:
    """The values of a type, in words.

    >>> describe(Rate | None)
    'a finite number above 0 or none'
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return f"{describe(arguments[0])} {arguments[1]}"
    if origin is Sequence:
        return f"a list of {describe(arguments[0])}".replace("list of an integer", "list of integers")
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if is_union(annotation):
        return " or ".join(map(describe, arguments))
    return _SCALARS[annotation]


def coerce(key: str, value: object, annotation: object) -> Any:
    """Converts a value to a type.

    Args:
      key: The value's key, for the message.
      value: A value, or its text.
      annotation: A plain type, see :func:`is_plain`.

    Raises:
      UserError: The value is not of the type, or out of its bounds.

    >>> coerce("rounds", "12", Count), coerce("model.hidden", "64,32", Sequence[int])
    (12, (64, 32))
    """
    try:
        return convert(value, annotation)
    except (ValueError, TypeError, OverflowError, RecursionError):
        text = value if isinstance(value, str) else repr(value)
        raise UserError(f"{key}={text}: must be {describe(annotation)}") from None


def check(key: str, value: object, annotation: object) -> None:
    """Checks an argument from Python by the rule of :func:`coerce`, with the same message.

    A traced value passes: its bounds were checked before it was traced.

    Raises:
      UserError: The value is not of the type, or out of its bounds.

    >>> check("epochs", 1.5, Count)
    Traceback (most recent call last):
    fedjax_masks.core.errors.UserError: epochs=1.5: must be an integer at least 1 and at most 2147483647
    """
    if hasattr(value, "aval"):
        return
    plain = _plain(value)
    if coerce(key, plain, annotation) != plain:
        raise UserError(f"{key}={value!r}: must be {describe(annotation)}")


def _plain(value: object) -> object:
    """A value without NumPy's types; lists become tuples."""
    to_list = getattr(value, "tolist", None)
    value = value if to_list is None else to_list()
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


P = ParamSpec("P")
R = TypeVar("R")


def checks_options(factory: Callable[P, R]) -> Callable[P, R]:
    """Decorates a factory, whose keyword arguments are then checked against their annotations.

    Only plain types are checked, see :func:`is_plain`; the errors are those of the command line.

    >>> @checks_options
    ... def prune(model, *, share: Share = 0.5): ...
    >>> prune(None, share=2)
    Traceback (most recent call last):
    fedjax_masks.core.errors.UserError: share=2: must be a finite number at least 0 and at most 1
    """

    @functools.cache  # annotations are strings of the module until it is complete
    def annotations() -> dict[str, object]:
        return {
            name: kind
            for name, kind in get_type_hints(factory, include_extras=True).items()
            if is_plain(kind)
        }

    @functools.wraps(factory)
    def checking(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in kwargs.items():
            if name in annotations():
                check(name, value, annotations()[name])
        return factory(*args, **kwargs)

    return checking
