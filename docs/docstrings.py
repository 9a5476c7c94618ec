"""Extension of griffe that brings docstrings to Markdown.

Roles such as ``:func:`fedavg` `` become mkdocs' cross-references to documented objects, doctests become code
blocks, and the docstring of a callable protocol is read with the signature of its ``__call__``.
"""

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"(?:^|(?<=\n))([ ]*)>>> .*?(?=\n[ ]*\n|\Z)", re.DOTALL)
_ROLE = re.compile(r":(class|data|func|mod|meth|attr|exc):`([~.]*)([^`]+)`")
_LITERAL = re.compile(r"::\n(?=[ ]*\n)")
_CALL = "__call__"


class Markdown(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Rewrites the docstring of one object; all objects are loaded by now."""
        if obj.docstring is None:
            return
        text = _ROLE.sub(lambda match: _link(match, obj, loader), obj.docstring.value)
        text = _LITERAL.sub(":\n", text)
        obj.docstring.value = _DOCTEST.sub(r"\1```python\n\g<0>\n\1```", text)
        if obj.is_class and _CALL in obj.members:
            obj.docstring.parent = obj.members[_CALL]  # pyright: ignore[reportAttributeAccessIssue]


def _link(match: re.Match[str], obj: griffe.Object, loader: griffe.GriffeLoader) -> str:
    """The cross-reference that takes the place of a role; a plain name where nothing is documented."""
    role, prefix, name = match.groups()
    label = name if role == "mod" and not prefix else name.rpartition(".")[2]
    path = _resolve(name, obj)
    if not path.startswith("fedjax_masks"):
        path = _by_suffix(name, loader)
        if path is None:
            return f"`{name}`"
    try:
        target = loader.modules_collection[path]
        target = target.final_target if target.is_alias else target
    except (KeyError, griffe.GriffeError):
        griffe.logger.warning("%s: :%s:`%s`: must name an object of the package", obj.path, role, name)
        return f"`{label}`"
    documented = target.has_docstring and not any(part.startswith("_") for part in target.path.split("."))
    return f"[`{label}`][{target.canonical_path}]" if documented else f"`{label}`"


def _resolve(name: str, obj: griffe.Object) -> str:
    """The path of a name as the object's module sees it."""
    first, *rest = name.split(".")
    try:
        return ".".join([obj.resolve(first), *rest])
    except griffe.NameResolutionError:
        return name


def _by_suffix(name: str, loader: griffe.GriffeLoader) -> str | None:
    """The path of the one object of the package whose path ends with a dotted name."""
    module, _, last = name.rpartition(".")
    package = loader.modules_collection["fedjax_masks"]
    paths = [
        m.path for m in _modules(package) if module and m.path.endswith(f".{module}") and last in m.members
    ]
    return f"{paths[0]}.{last}" if len(paths) == 1 else None


def _modules(package: griffe.Module) -> list[griffe.Module]:
    inner = [module for module in package.modules.values() if not module.is_alias]
    return [package, *(deeper for module in inner for deeper in _modules(module))]
