"""The runs of a sweep, by its file.

The file is a configuration like that of a single run, a ``[grid]`` of keys with lists of values, and
``[[runs]]`` tables for combinations that are no grid; each table is merged over the configuration and may
have a separate grid::

    rounds = 20
    [data]
    partition = "shards:2"
    [grid]
    seed = [0, 1, 2]
    [[runs]]
    algorithm.name = "fedavg"
    grid.algorithm.lr = [0.03, 0.1]
    [[runs]]
    name = "fedmask-scores"
    algorithm = { name = "fedmask", keep_scores = true }
"""

import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_masks.core.errors import UserError
from fedjax_masks.core.nested import flat
from fedjax_masks.experiment.config import Config, make_config, read_file

_PARTS = ("algorithm", "model", "data")
MAX_RUNS = 10_000
"""The largest number of runs in a sweep."""

_UNSAFE = re.compile(r"[^\w.+]+")
_MAX_BYTES = 255  # the length of a name in common file systems
_RESERVED = ("runs.csv", "sweep.json", "runs.csv.partial", "sweep.json.partial")


class Job(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: The name of its directory.
      setting: The name without seeds of run and partition; runs of one setting differ only in seeds.
      config: Its configuration.
      grid_values: The values of the grid's keys.
    """

    name: str
    setting: str
    config: Config
    grid_values: dict[str, Any]


def read_sweep(path: str | Path) -> list[Job]:
    """The runs of a sweep's file, in its order.

    Raises:
      UserError: The file cannot be read, a key does not exist, a list is empty or no list, a value is
        refused, a name cannot be a directory's, two runs have the same name, or there are more runs than
        :data:`MAX_RUNS`.
    """
    values = read_file(path)
    tables = values.pop("runs", [{}])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UserError("runs: must be one or more [[runs]] tables")
    base, grid = _split(values)
    plans = [_make_plan(grid, table) for table in tables]
    number = sum(math.prod(map(len, plan.axes.values())) for plan in plans)
    if number > MAX_RUNS:
        raise UserError(
            f"grid={number} runs: must be at most {MAX_RUNS}; shorten its lists, or divide them into sweeps"
        )
    jobs = [job for plan in plans for job in _expand(base, plan)]
    name, uses = Counter(job.name for job in jobs).most_common(1)[0]
    if uses > 1:
        raise UserError(f"runs: must have different names, and two are {name!r}; set name = ... in a table")
    return jobs


def _split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The plain keys and values, and those of the grid."""
    grid = {key.removeprefix("grid."): value for key, value in values.items() if key.startswith("grid.")}
    for key, value in grid.items():
        if not isinstance(value, list) or not value:
            raise UserError(f"grid.{key}={value!r}: must be a list of one or more values")
    plain = {key: value for key, value in values.items() if not key.startswith("grid.")}
    if "grid" in plain:
        raise UserError(f"grid={plain['grid']!r}: must be a [grid] table of keys with lists")
    return _full_keys(plain), _full_keys(grid)


def _full_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by full keys: the key ``algorithm`` stands for ``algorithm.name``."""
    return {f"{key}.name" if key in _PARTS else key: value for key, value in values.items()}


class _Plan(NamedTuple):
    """One table of runs.

    Attributes:
      label: The table's name.
      values: Values that all its runs share.
      axes: Keys with lists; there is a run for each combination.
    """

    label: str | None
    values: dict[str, Any]
    axes: dict[str, list[Any]]


def _make_plan(grid: Mapping[str, list[Any]], table: Mapping[str, Any]) -> _Plan:
    values, table_grid = _split(flat(table))
    label = values.pop("name", None)
    if label is not None and not (isinstance(label, str) and re.fullmatch(r"(?!\.)[\w.+-]+", label)):
        raise UserError(
            f"runs.name={label!r}: must be letters, digits and any of . + - _, without a dot in front"
        )
    axes = {key: options for key, options in grid.items() if key not in values} | table_grid
    return _Plan(label, values, axes)


def _expand(base: Mapping[str, Any], plan: _Plan) -> Iterator[Job]:
    """The runs of one table."""
    for point in itertools.product(*plan.axes.values()):
        grid_values = dict(zip(plan.axes, point))
        config = make_config({**base, **plan.values, **grid_values})
        seeds = {key: value for key, value in grid_values.items() if key.rpartition(".")[2] == "seed"}
        others = {k: value for k, value in grid_values.items() if k not in ("algorithm.name", *seeds)}
        setting = _setting(plan.label or config.algorithm.name, others)
        name = ",".join([setting, *(f"{key}={_safe_text(value)}" for key, value in seeds.items())])
        _check_name(name)
        yield Job(name, setting, config, grid_values)


def _check_name(name: str) -> None:
    """Raises UserError if a name cannot be that of a run's directory."""
    if (size := len(os.fsencode(name))) > _MAX_BYTES:
        raise UserError(
            f"runs.name={name[:40]}...: must be at most {_MAX_BYTES} bytes, has {size}; "
            "replace a grid of long values by [[runs]] tables with a name"
        )
    if name in _RESERVED:
        raise UserError(f"runs.name={name!r}: must not be that of a file of the sweep; choose another name")


def _setting(label: str, values: Mapping[str, Any]) -> str:
    """A setting's name, with the last parts of keys where these differ.

    >>> _setting("fedavg", {"algorithm.lr": 0.1, "data.partition": "shards:2"})
    'fedavg,lr=0.1,partition=shards-2'
    >>> _setting("fedavg", {"algorithm.lr": 0.1, "server_optimizer.lr": 1.0})
    'fedavg,algorithm.lr=0.1,server_optimizer.lr=1.0'
    """
    ends = Counter(key.rpartition(".")[2] for key in values)
    words = {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in values}
    return ",".join([label, *(f"{words[key]}={_safe_text(value)}" for key, value in values.items())])


def _safe_text(value: object) -> str:
    """A value in the name of a directory."""
    return _UNSAFE.sub("-", str(value))
