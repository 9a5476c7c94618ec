"""Imports at first use, so that a command without arrays starts without jax."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any


def load(source: str) -> Any:
    """Imports an object of a module.

    Args:
      source: ``"module:name"``.

    >>> load("math:sqrt")(4.0)
    2.0
    """
    module, _, name = source.partition(":")
    return getattr(import_module(module), name)


class Functions(Mapping[str, Callable[..., Any]]):
    """Functions by name; a look-up imports the function.

    Attributes:
      sources: ``"module:name"`` of each function, by the function's name.

    >>> functions = Functions({"root": "math:sqrt"})
    >>> list(functions), functions["root"](4.0)
    (['root'], 2.0)
    """

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = dict(sources)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return load(self.sources[name])

    def __contains__(self, name: object) -> bool:  # a mapping's own would import the function
        return name in self.sources

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


def exports(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package that imports names at first use (PEP 562).

    Args:
      package: The package's name.
      homes: The package's public names, by the module that defines them.
    """
    modules = {name: module for module, names in homes.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = load(f"{package}.{modules[name]}:{name}")
        vars(sys.modules[package])[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return __getattr__, __dir__
