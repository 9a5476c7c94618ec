"""Options of factories, read from source files because an import would take a second.

The modules of algorithms and models import jax, and every list of keys and every configuration needs their
options. Functions of this package are therefore read by :mod:`ast`; all other functions are imported.
"""

import ast
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from fedjax_masks.core.lazy import load

_PACKAGE, _ROOT = __name__.partition(".")[0], Path(__file__).parents[1]
_IMPORTED = ("collections.abc", "typing", f"{_PACKAGE}.core.options")
_BUILTINS = {kind.__name__: kind for kind in (bool, dict, float, int, list, str, tuple)}

REQUIRED: object = inspect.Parameter.empty


@dataclass(frozen=True)
class Option:
    """One option of a factory: its type and its default.

    Attributes:
      annotation: The type; or its text, for a type that this module cannot evaluate.
      default: The default; :data:`REQUIRED` without one.
    """

    annotation: object
    default: object


@dataclass(frozen=True)
class Signature:
    """The options and the description of a factory.

    Attributes:
      options: The options by name, in order.
      doc: The factory's docstring.
      summary: The first line of the docstring of the factory's module, else of the factory's docstring.
    """

    options: dict[str, Option]
    doc: str
    summary: str


def signature_of(factory: Callable[..., Any] | str) -> Signature:
    """The signature of a function, or of ``"module:name"``.

    >>> sorted(signature_of("fedjax_masks.algorithms.fedprox:fedprox").options)
    ['mu', 'server_optimizer']
    >>> signature_of(lambda task, *, width=3, names=("a",): None).options["width"].annotation
    <class 'int'>
    """
    if callable(factory):
        return _inspect(factory)
    return (_parse(factory) if factory.startswith(f"{_PACKAGE}.") else None) or _inspect(load(factory))


@cache
def _parse(source: str) -> Signature | None:
    """The signature of a function of this package; None where its source is not enough."""
    module, _, name = source.partition(":")
    try:
        file = _file(module)
        function = next(n for n in file.tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
        arguments = zip(function.args.kwonlyargs, function.args.kw_defaults)
        options = {argument.arg: _option(file, argument, default) for argument, default in arguments}
    except (OSError, StopIteration, ValueError):
        return None
    doc = ast.get_docstring(function) or ""
    return Signature(options, doc, _first_line(ast.get_docstring(file.tree) or doc))


def _option(file: "_File", argument: ast.arg, default: ast.expr | None) -> Option:
    """One option of a function in a source file.

    Raises:
      ValueError: The default is no literal.
    """
    value = REQUIRED if default is None else ast.literal_eval(default)
    if argument.annotation is None:
        return Option(_type_of(value), value)
    try:
        return Option(file.evaluate(argument.annotation), value)
    except NameError:
        return Option(ast.unparse(argument.annotation), value)


class _File(dict[str, object]):
    """The values of the names that annotations in a source file use.

    The names are types of Python, names from modules in ``_IMPORTED``, names that the file assigns, and names
    that the file imports from a file of this package that assigns them.

    Attributes:
      tree: The syntax tree of the file.
    """

    def __init__(self, tree: ast.Module) -> None:
        super().__init__(_BUILTINS)
        self.tree = tree
        self._assignments: dict[str, ast.expr] = {}
        self._imports: dict[str, tuple[str, str]] = {}
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self._assignments[node.targets[0].id] = node.value
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
                self._imports |= names

    def __missing__(self, name: str) -> object:
        if name in self._assignments:
            return self.evaluate(self._assignments[name])
        module, original = self._imports[name]
        if module in _IMPORTED:
            return getattr(import_module(module), original)
        if module.startswith(f"{_PACKAGE}."):
            return _file(module)[original]
        raise KeyError(name)

    def evaluate(self, expression: ast.expr) -> object:
        """The value of an expression.

        Raises:
          NameError: A name is not known.
        """
        return eval(compile(ast.Expression(expression), "<annotation>", "eval"), {"__builtins__": {}}, self)


@cache
def _file(module: str) -> _File:
    path = _ROOT.joinpath(*module.split(".")[1:])
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return _File(ast.parse(source.read_text("utf-8")))


def _inspect(function: Callable[..., Any]) -> Signature:
    """The signature of an imported function; parameters with a default are options, too."""
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except Exception:  # an annotation as text may contain any expression
        parameters = inspect.signature(function).parameters
    options = {
        key: Option(_annotation(function, parameter), parameter.default)
        for key, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not REQUIRED
    }
    doc = inspect.getdoc(function) or ""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    return Signature(options, doc, _first_line(getattr(module, "__doc__", None) or doc))


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter) -> object:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return _type_of(parameter.default)
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, getattr(function, "__globals__", {}))
    except Exception:  # a name for type checkers alone: the option is no key, and all others stay keys
        return annotation


def _type_of(default: object) -> object:
    """The type of an option without annotation."""
    if isinstance(default, tuple | list) and len({*map(type, default)}) == 1:
        return Sequence[type(default[0])]
    return type(default)


def _first_line(doc: str) -> str:
    return doc.strip().partition("\n")[0]
