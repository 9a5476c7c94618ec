"""The runs that a sweep's file asks for.

The file is a configuration like that of a single run, a ``[grid]`` of keys with lists of values, and
``[[runs]]`` tables for what grids cannot say; each is merged over the configuration and may have a grid
of its own::

    rounds = 20
    [data]
    partition = "shards:2"
    [grid]
    seed = [0, 1, 2]
    [[runs]]
    algorithm.name = "fedavg"
    grid.algorithm.lr = [0.03, 0.1]
    [[runs]]
    name = "fedmask-kept"
    algorithm = { name = "fedmask", keep_scores = true }
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_masks.config import Config, make_config, read_file
from fedjax_masks.errors import UserError
from fedjax_masks.trees import flat

_PARTS = ("algorithm", "model", "data")
_UNSAFE = re.compile(r"[^\w.+]+")


class Job(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: Of its directory.
      setting: What it is a seed of: its name without the seed.
      config: Its configuration.
      varied: The values of the grid's keys.
    """

    name: str
    setting: str
    config: Config
    varied: dict[str, Any]


def read_sweep(path: str | Path) -> list[Job]:
    """The runs that a file asks for, in its order.

    Raises:
      UserError: The file cannot be read, a key does not exist, a list is empty or none, a value is
        not accepted, or two runs have the same name.
    """
    values = read_file(path)
    tables = values.pop("runs", [{}])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UserError("runs: one or more [[runs]] tables are accepted")
    base, grid = _split(values)
    jobs = [job for table in tables for job in _expand(base, grid, table)]
    names = [job.name for job in jobs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"runs: two are called {name!r}; accepted are different names, as by name = ...")
    return jobs


def _split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What is fixed, and what is a grid's."""
    grid = {key.removeprefix("grid."): value for key, value in values.items() if key.startswith("grid.")}
    for key, value in grid.items():
        if not isinstance(value, list) or not value:
            raise UserError(f"grid.{key}={value!r}: a list of one or more values is accepted")
    fixed = {key: value for key, value in values.items() if not key.startswith("grid.")}
    if "grid" in fixed:
        raise UserError(f"grid={fixed['grid']!r}: a [grid] table of keys with lists is accepted")
    return _named(fixed), _named(grid)


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """``algorithm`` stands for ``algorithm.name``."""
    return {f"{key}.name" if key in _PARTS else key: value for key, value in values.items()}


def _expand(
    base: Mapping[str, Any], grid: Mapping[str, list[Any]], table: Mapping[str, Any]
) -> Iterator[Job]:
    """The runs of one table."""
    fixed, own_grid = _split(flat(table))
    label = fixed.pop("name", None)
    if label is not None and not (isinstance(label, str) and re.fullmatch(r"[\w.+-]+", label)):
        raise UserError(f"runs.name={label!r}: letters, digits and any of . + - _ are accepted")
    axes = {key: options for key, options in grid.items() if key not in fixed} | own_grid
    for point in itertools.product(*axes.values()):
        varied = dict(zip(axes, point))
        config = make_config({**base, **fixed, **varied})
        setting = _text(label or config.algorithm.name, varied, leave=("algorithm.name", "seed"))
        yield Job(_text(setting, {"seed": config.seed} if "seed" in varied else {}), setting, config, varied)


def _text(label: str, values: Mapping[str, Any], leave: Sequence[str] = ()) -> str:
    """A directory's name.

    >>> _text("fedavg", {"algorithm.lr": 0.1, "data.partition": "shards:2"})
    'fedavg,lr=0.1,partition=shards-2'
    """
    shown = {key.rpartition(".")[2]: value for key, value in values.items() if key not in leave}
    return ",".join([label, *(f"{key}={_UNSAFE.sub('-', str(value))}" for key, value in shown.items())])
