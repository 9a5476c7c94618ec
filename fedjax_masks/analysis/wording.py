"""Texts for figures: percentages, quantities with SI prefixes, lists, names of files."""

import json
import re
from collections.abc import Iterable
from typing import Any

NOT_APPLICABLE = "n/a"
DIVERGED = "diverged"


def enumeration(values: Iterable[Any]) -> str:
    """A list of values; consecutive whole numbers appear as a range.

    >>> enumeration([0, 1, 2, 3]), enumeration([0, 2]), enumeration([0, 1])
    ('0 to 3', '0, 2', '0, 1')
    """
    unique = list(dict.fromkeys(values))
    if len(unique) > 2 and unique == list(range(unique[0], unique[0] + len(unique))):
        return f"{unique[0]} to {unique[-1]}"
    return ", ".join(map(str, unique))


def as_text(value: object) -> str:
    """A JSON value as text; strings are without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def slug(*words: str) -> str:
    """A name for a file and an anchor, made from words.

    >>> slug("target-global", "digits, shards:2"), slug("target-global", "")
    ('target-global-digits-shards-2', 'target-global')
    """
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def percent(value: float | None, half_width: float | None = None) -> str:
    """An accuracy in [0, 1] as a percentage, with its confidence interval if there is one.

    >>> percent(0.9312), percent(0.9312, 0.015), percent(None)
    ('93.1 %', '93.1 ± 1.5 %', 'n/a')
    """
    if value is None:
        return NOT_APPLICABLE
    return f"{100 * value:.1f} %" if half_width is None else f"{100 * value:.1f} ± {100 * half_width:.1f} %"


def quantity(value: float | None) -> str:
    """A number with three significant digits; only a very small one has an exponent.

    >>> quantity(0.01), quantity(12), quantity(1234.5), quantity(0), quantity(3e-7), quantity(None)
    ('0.0100', '12.0', '1,234', '0', '3.00e-07', 'n/a')
    """
    if value is None:
        return NOT_APPLICABLE
    if value == 0 or abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if abs(value) >= 0.0001 else f"{value:.2e}"


def si(value: float, unit: str) -> str:
    """A quantity with three significant digits and an SI prefix; seconds have no prefix.

    >>> si(12_345_678, "B"), si(0.0, "J"), si(950.0, "s")
    ('12.3 MB', '0 J', '950 s')
    """
    if unit == "s":
        return f"{quantity(value)} s"
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    power = max((n for n in range(len(prefixes)) if abs(value) >= 0.9995 * 1000**n), default=0)
    scaled = value / 1000**power
    text = f"{scaled:.0f}" if abs(scaled) >= 99.95 or value == 0 else f"{scaled:#.3g}"
    return f"{text} {prefixes[power]}{unit}"
