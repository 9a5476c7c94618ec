"""Hook of mkdocs that makes the pages of the Python API, and tables of configuration keys.

Every module of the package has one page: a hand-written one that includes it (``::: fedjax_masks.MODULE``) or
one from here. ``<!-- keys: PREFIX -->`` in a page becomes the table of the keys with this prefix
(``run``: of those without one), ``<!-- keys of: ALGORITHM -->`` the table of an algorithm's keys.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

_DOCS = Path(__file__).parent
_PACKAGE = _DOCS.parent / "fedjax_masks"
_INCLUDED = re.compile(r"^::: (\S+)", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?\.?([^`]+)`")
_KEYS = re.compile(r"<!-- keys(?P<of> of)?: (?P<name>\S+) -->")
_API = "API"
_INDEX_BOUND = " and at most 2147483647"  # of every integer, as an index on a device has 32 bits
_RUN = "run"  # stands for the keys without a prefix


class Module(NamedTuple):
    """A module of the package.

    Attributes:
      name: The dotted name.
      summary: The first line of the docstring.
      definitions: The public functions, classes and documented data that the module defines.
      exports: The names of ``__all__``.
      is_package: Whether the module is the ``__init__`` of a package.
    """

    name: str
    summary: str
    definitions: tuple[str, ...]
    exports: tuple[str, ...]
    is_package: bool


@cache
def modules() -> dict[str, Module]:
    """All public modules of the package by name, sorted; packages before their modules."""
    records = [_read(path) for path in _PACKAGE.rglob("*.py") if path.stem != "__main__"]
    return {module.name: module for module in sorted(records) if "._" not in module.name}


def _read(path: Path) -> Module:
    tree = ast.parse(path.read_text("utf-8"))
    parts = path.relative_to(_PACKAGE.parent).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    summary = (ast.get_docstring(tree) or "").partition("\n\n")[0].replace("\n", " ")
    return Module(name, _ROLE.sub(r"`\1`", summary), (*_definitions(tree),), _exports(tree), is_package)


def _definitions(tree: ast.Module) -> Iterator[str]:
    """The names of public definitions; data count where a docstring follows."""
    for node, after in zip(tree.body, [*tree.body[1:], None]):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                pass
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
                    continue
            case _:
                continue
        if not name.startswith("_"):
            yield name


def _exports(tree: ast.Module) -> tuple[str, ...]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return tuple(ast.literal_eval(node.value))
    return ()


@cache
def homes() -> dict[str, str]:
    """The page of every module, relative to the folder of pages; of a hand-written one, if there is one."""
    paths = {name: _generated(module) for name, module in modules().items()}
    for page in sorted(_DOCS.rglob("*.md")):
        for name in _INCLUDED.findall(page.read_text("utf-8")):
            paths[name] = page.relative_to(_DOCS).as_posix()
    return paths


def _generated(module: Module) -> str:
    parts = module.name.split(".")[1:]
    return "/".join(["api", *parts, "index.md"] if module.is_package else ["api", *parts]) + (
        "" if module.is_package else ".md"
    )


def pages() -> dict[str, str]:
    """The pages that are made here: Markdown by path."""
    return {
        path: _package_page(module)
        if module.is_package
        else f"::: {name}\n    options:\n      heading_level: 1\n"
        for name, module in modules().items()
        if (path := homes()[name]).startswith("api/")
    }


def _package_page(package: Module) -> str:
    """A page with the package's modules, the names that it exports, and its own definitions."""
    inner = [m for m in modules().values() if m.name.rpartition(".")[0] == package.name]
    here = PurePosixPath(homes()[package.name]).parent

    def link(module: Module) -> str:
        page = homes()[module.name]
        target = PurePosixPath(page).relative_to(here) if page.startswith("api/") else f"{_up(here)}{page}"
        return f"[`{module.name.rpartition('.')[2]}`]({target})"

    members = json.dumps(package.definitions) if package.definitions else "false"
    lines = [f"::: {package.name}", "    options:", "      heading_level: 1", f"      members: {members}", ""]
    if inner:
        lines += ["| module | content |", "|---|---|"]
        lines += [f"| {link(module)} | {_cell(module.summary)} |" for module in inner]
    if package.exports:
        names = ", ".join(_export(package, name) for name in package.exports)
        lines += ["", f"`{package.name}` exports {names}."]
    return "\n".join([*lines, ""])


def _export(package: Module, name: str) -> str:
    """A name that a package exports; a reference where it has a docstring."""
    inner = [module for module in modules().values() if module.name.startswith(f"{package.name}.")]
    path = f"{package.name}.{name}"
    documented = path in modules() or any(name in module.definitions for module in (package, *inner))
    return f"[`{name}`][{path}]" if documented else f"`{name}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _up(folder: PurePosixPath) -> str:
    return "../" * len(folder.parts)


def _nav() -> list[Any]:
    """The navigation of the API: a section for every package."""
    root, *rest = [module for module in modules().values() if module.is_package]
    nav: list[Any] = [homes()[root.name]]
    for package in rest:
        inner = [m for m in modules().values() if m.name.startswith(f"{package.name}.")]
        own = [
            {m.name.rpartition(".")[2]: homes()[m.name]} for m in inner if homes()[m.name].startswith("api/")
        ]
        nav.append({package.name.partition(".")[2]: [homes()[package.name], *own]})
    return nav


def on_config(config: Any) -> Any:
    """Adds the API to the navigation."""
    config.nav = [*config.nav, {_API: _nav()}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the API."""
    from mkdocs.structure.files import File

    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts tables in the place of the marks for configuration keys."""

    def table(match: re.Match[str]) -> str:
        if match["of"]:
            return _table(_keys("--algorithm", match["name"]))
        prefix = "" if match["name"] == _RUN else match["name"]
        return _table(
            {key: text for key, text in _keys().items() if key.rpartition(".")[0] == prefix.rstrip(".")}
        )

    return _KEYS.sub(table, markdown)


@cache
def _keys(*options: str) -> dict[str, str]:
    """The keys that ``fedjax-masks list keys`` explains, with their explanations."""
    command = [sys.executable, "-m", "fedjax_masks.cli", "list", "keys", *options, "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["keys"]


def _table(keys: dict[str, str]) -> str:
    lines = ["| key | meaning | value | default |", "|---|---|---|---|"]
    for key, text in keys.items():
        meaning, value, default = _cell(text).rsplit("; ", 2)
        value = value.replace(_INDEX_BOUND, "")
        lines.append(f"| `{key}` | {_escaped(meaning)} | {value} | `{default.removeprefix('default ')}` |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Plain text as Markdown: no emphasis and no references."""
    return re.sub(r"([*_\[\]<>`])", r"\\\1", text)
