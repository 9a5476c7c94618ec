"""Nested mappings with dotted keys."""

from collections.abc import Mapping
from typing import Any


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested mappings, by keys joined with dots.

    >>> flat({"rounds": 2, "data": {"name": "digits"}})
    {'rounds': 2, 'data.name': 'digits'}
    """
    values: dict[str, Any] = {}
    for key, value in tree.items():
        inner = flat(value) if isinstance(value, Mapping) else None
        values |= {key: value} if inner is None else {f"{key}.{name}": leaf for name, leaf in inner.items()}
    return values
