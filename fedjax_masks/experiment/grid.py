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
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_masks.core.errors import UserError
from fedjax_masks.core.trees import flat
from fedjax_masks.experiment.config import Config, make_config, read_file

_PARTS = ("algorithm", "model", "data")
MAX_RUNS = 10_000
"""Runs that a sweep may ask for."""

_UNSAFE = re.compile(r"[^\w.+]+")
_MAX_BYTES = 255  # of a name in common file systems
_RESERVED = ("runs.csv", "sweep.json", "runs.csv.partial", "sweep.json.partial")


class Job(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: Of its directory.
      setting: What it is a seed of: its name without seeds, of the run or of the partition.
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
        not accepted, a name cannot be a directory's, two runs have the same one, or there are more runs
        than :data:`MAX_RUNS`.
    """
    values = read_file(path)
    tables = values.pop("runs", [{}])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UserError("runs: one or more [[runs]] tables are accepted")
    base, grid = _split(values)
    plans = [_plan(grid, table) for table in tables]
    number = sum(math.prod(map(len, plan.axes.values())) for plan in plans)
    if number > MAX_RUNS:
        raise UserError(
            f"grid={number} runs: must be at most {MAX_RUNS}; shorten its lists, or divide them into sweeps"
        )
    jobs = [job for plan in plans for job in _expand(base, plan)]
    name, uses = Counter(job.name for job in jobs).most_common(1)[0]
    if uses > 1:
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


class _Plan(NamedTuple):
    """One table: its label, what is fixed in it, and the lists over which its runs go."""

    label: str | None
    fixed: dict[str, Any]
    axes: dict[str, list[Any]]


def _plan(grid: Mapping[str, list[Any]], table: Mapping[str, Any]) -> _Plan:
    fixed, own_grid = _split(flat(table))
    label = fixed.pop("name", None)
    if label is not None and not (isinstance(label, str) and re.fullmatch(r"(?!\.)[\w.+-]+", label)):
        raise UserError(
            f"runs.name={label!r}: letters, digits and any of . + - _ are accepted, and no dot in front"
        )
    axes = {key: options for key, options in grid.items() if key not in fixed} | own_grid
    return _Plan(label, fixed, axes)


def _expand(base: Mapping[str, Any], plan: _Plan) -> Iterator[Job]:
    """The runs of one table."""
    for point in itertools.product(*plan.axes.values()):
        varied = dict(zip(plan.axes, point))
        config = make_config({**base, **plan.fixed, **varied})
        seeds = {key: value for key, value in varied.items() if key.rpartition(".")[2] == "seed"}
        setting = _text(plan.label or config.algorithm.name, varied, leave=("algorithm.name", *seeds))
        name = ",".join([setting, *(f"{key}={_shown(value)}" for key, value in seeds.items())])
        _check_name(name)
        yield Job(name, setting, config, varied)


def _check_name(name: str) -> None:
    """Raises UserError where a name cannot be that of a run's directory."""
    if (size := len(os.fsencode(name))) > _MAX_BYTES:
        raise UserError(
            f"runs.name={name[:40]}...: must be at most {_MAX_BYTES} bytes, has {size}; "
            "[[runs]] tables with names of their own can stand for a grid of long values"
        )
    if name in _RESERVED:
        raise UserError(f"runs.name={name!r}: must not be that of a file of the sweep; choose another name")


def _text(label: str, values: Mapping[str, Any], leave: Sequence[str] = ()) -> str:
    """A setting's name; keys are told by their last parts where these differ.

    >>> _text("fedavg", {"algorithm.lr": 0.1, "data.partition": "shards:2"})
    'fedavg,lr=0.1,partition=shards-2'
    >>> _text("fedavg", {"algorithm.lr": 0.1, "server_optimizer.lr": 1.0})
    'fedavg,algorithm.lr=0.1,server_optimizer.lr=1.0'
    """
    shown = {key: value for key, value in values.items() if key not in leave}
    ends = Counter(key.rpartition(".")[2] for key in shown)
    words = {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in shown}
    return ",".join([label, *(f"{words[key]}={_shown(value)}" for key, value in shown.items())])


def _shown(value: Any) -> str:
    return _UNSAFE.sub("-", str(value))
