"""Schedules over rounds, in the notation of configurations; a call of a schedule imports jax."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from fedjax_masks.core.errors import UserError

if TYPE_CHECKING:
    import jax
    import optax

SCHEDULES: Mapping[str, str] = MappingProxyType(
    {
        "exponential:FACTOR": "times FACTOR after every round",
        "cosine": "half a cosine, down to 0 at the end of the run",
        "cosine:FLOOR": "the same, down to FLOOR",
        "step:ROUNDS:FACTOR": "times FACTOR after every so many rounds",
        "warmup:ROUNDS": "linearly up, to 1 in round ROUNDS",
    }
)
"""The notation of schedules, and their meaning."""


class _Factor(NamedTuple):
    """One factor of a schedule: a name in :data:`SCHEDULES`, and numbers."""

    name: str
    numbers: tuple[float, ...]


def parse_schedule(text: str, rounds: int) -> "optax.Schedule":
    """Makes a schedule, ``(round index) -> factor``, from text.

    Args:
      text: A schedule in the notation of :data:`SCHEDULES`, or several joined by ``+``, which are multiplied.
      rounds: Rounds of the whole run.

    Raises:
      UserError: The text is no schedule, or a number is out of range.

    >>> schedule = parse_schedule("warmup:2+step:10:0.5", 20)
    >>> [float(schedule(index)) for index in (0, 1, 9, 10)]
    [0.5, 1.0, 1.0, 0.5]
    """
    factors = [_parse_factor(part.strip(), text) for part in text.split("+")]

    def schedule(index: "jax.typing.ArrayLike") -> "jax.Array":
        import jax.numpy as jnp

        product = jnp.float32(1)
        for factor in factors:
            product *= _make_schedule(factor, rounds)(index)
        return product

    return schedule


def _parse_factor(part: str, text: str) -> _Factor:
    name, *words = part.split(":")
    try:
        numbers = tuple(map(float, words))
    except ValueError:
        numbers = None
    match name, numbers:
        case "exponential", (factor,) if 0 < factor <= 1:
            pass
        case "cosine", () | (_,) if all(0 <= floor < 1 for floor in numbers or ()):
            pass
        case "step", (every, factor) if every >= 1 and every.is_integer() and factor > 0:
            pass
        case "warmup", (length,) if length >= 1 and length.is_integer():
            pass
        case _:
            raise UserError(
                f"training.schedule={text}: must be one of {', '.join(SCHEDULES)}, or several joined by +"
            )
    return _Factor(name, numbers or ())


def _make_schedule(factor: _Factor, rounds: int) -> "optax.Schedule":
    import jax.numpy as jnp
    import optax

    first, *_ = (*factor.numbers, 0.0)
    match factor.name:
        case "exponential":
            return optax.exponential_decay(1.0, 1, first)
        case "cosine":
            return optax.cosine_decay_schedule(1.0, rounds, first)
        case "step":
            return optax.exponential_decay(1.0, int(first), factor.numbers[1], staircase=True)
        case _:
            return lambda index: jnp.minimum(1.0, (index + 1) / first)
