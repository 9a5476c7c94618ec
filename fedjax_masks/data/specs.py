"""The text form of a partition: ``base[+modifier...]``, each ``name[:argument...]``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedjax_masks.core.synonyms import meant_partition
from fedjax_masks.data.partitions import PARTITIONS, Partition
from fedjax_masks.data.skew import MODIFIERS, Modifier


@dataclass(frozen=True)
class Spec:
    """A parsed partition.

    Attributes:
      text: What the user wrote.
      name: The base partition's name.
      base: The base partition.
      arguments: Its arguments.
      modifiers: What is done to the clients' examples afterwards, with arguments, in order.
    """

    text: str
    name: str
    base: Partition
    arguments: tuple[Any, ...]
    modifiers: tuple[tuple[Modifier, tuple[Any, ...]], ...]


def parse(text: str) -> Spec:
    """Parses a partition; one that starts with a modifier modifies ``iid``.

    >>> parse("lotteryfl:2:0.25").arguments
    (2, 0.25)
    >>> spec = parse("shards:2+corrupt_labels:0,7")
    >>> spec.name, len(spec.modifiers)
    ('shards', 1)

    Raises:
      ValueError: If a name is unknown or an argument is not accepted.
    """
    first, *rest = text.split("+")
    if _name(first) in MODIFIERS:
        first, rest = "iid", [first, *rest]
    known = PARTITIONS if _name(first) in PARTITIONS else PARTITIONS | MODIFIERS
    base = PARTITIONS.get(_name(first)) or _unknown(text, first, list(known))
    arguments = _arguments(text, first, base.usage, base.arguments, base.required)
    modifiers = []
    for part in rest:
        modifier = MODIFIERS.get(_name(part)) or _unknown(text, part, list(MODIFIERS))
        modifiers.append((modifier, _arguments(text, part, modifier.usage, modifier.arguments, None)))
    return Spec(text, _name(first), base, arguments, tuple(modifiers))


def _name(part: str) -> str:
    return part.partition(":")[0]


def _unknown(text: str, part: str, names: Sequence[str]) -> Any:
    near = meant_partition(part, names)
    hint = f" (did you mean '{near}'?)" if near else ""
    raise ValueError(f"partition '{text}': no '{_name(part)}'{hint}; accepted: {', '.join(names)}")


def _arguments(
    text: str, part: str, usage: str, readers: Sequence[Callable[[str], Any]], required: int | None
) -> tuple[Any, ...]:
    given = part.split(":")[1:]
    try:
        if not (len(readers) if required is None else required) <= len(given) <= len(readers):
            raise ValueError
        return tuple(read(value) for read, value in zip(readers, given))
    except ValueError:
        raise ValueError(f"partition '{text}': '{part}' is not of the form {usage}") from None
