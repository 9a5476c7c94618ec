"""The text form of a partition: ``base[+modifier...]``, each ``name[:argument...]``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from fedjax_masks.core.errors import UserError
from fedjax_masks.core.synonyms import nearest_partition
from fedjax_masks.data.partitions import PARTITIONS, Partition
from fedjax_masks.data.skew import MODIFIERS, Modifier


@dataclass(frozen=True)
class Spec:
    """A parsed partition.

    Attributes:
      text: The text form.
      name: The base partition's name.
      base: The base partition.
      arguments: The base partition's arguments.
      modifiers: Changes to the clients' examples after the division, with their arguments, in order.
    """

    text: str
    name: str
    base: Partition
    arguments: tuple[Any, ...]
    modifiers: tuple[tuple[Modifier, tuple[Any, ...]], ...]


def parse(text: str) -> Spec:
    """Parses a partition; a text that starts with a modifier modifies ``iid``.

    >>> parse("lotteryfl:2:0.25").arguments
    (2, 0.25)
    >>> spec = parse("shards:2+corrupt_labels:0,7")
    >>> spec.name, len(spec.modifiers)
    ('shards', 1)

    Raises:
      UserError: A name is unknown, or an argument is refused.
    """
    first, *rest = text.split("+")
    if _name(first) in MODIFIERS:
        first, rest = "iid", [first, *rest]
    choices = PARTITIONS if _name(first) in PARTITIONS else PARTITIONS | MODIFIERS
    base = PARTITIONS.get(_name(first)) or _refuse_name(text, first, list(choices))
    arguments = _arguments(text, first, base.usage, base.arguments, base.required)
    modifiers = []
    for part in rest:
        modifier = MODIFIERS.get(_name(part)) or _refuse_name(text, part, list(MODIFIERS))
        modifiers.append((modifier, _arguments(text, part, modifier.usage, modifier.arguments, None)))
    return Spec(text, _name(first), base, arguments, tuple(modifiers))


def _name(part: str) -> str:
    return part.partition(":")[0]


def _refuse_name(text: str, part: str, names: Sequence[str]) -> NoReturn:
    match = nearest_partition(part, names)
    hint = f"; did you mean '{match}'?" if match else ""
    raise UserError(f"partition={text!r}: must name one of {', '.join(names)}, not '{_name(part)}'{hint}")


def _arguments(
    text: str, part: str, usage: str, readers: Sequence[Callable[[str], Any]], required: int | None
) -> tuple[Any, ...]:
    words = part.split(":")[1:]
    try:
        if not (len(readers) if required is None else required) <= len(words) <= len(readers):
            raise ValueError
        return tuple(read(word) for read, word in zip(readers, words))
    except ValueError:
        raise UserError(f"partition={text!r}: must have the form {usage}, not '{part}'") from None
