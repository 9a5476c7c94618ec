"""Populations from text: mixes of device and link profiles, or traces of measured devices."""

import csv
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import numpy as np

from fedjax_masks.core.errors import UserError, regular_file, unknown_name
from fedjax_masks.core.options import Bounds, Decay, Rate, Share, coerce
from fedjax_masks.costs.profiles import DEVICES, LINKS, Device, Fleet, Link, Population

__all__ = [
    "DEVICES",
    "LINKS",
    "Device",
    "Fleet",
    "Link",
    "Population",
    "make_population",
    "read_trace",
]

_CONDITIONS: Mapping[str, tuple[float, object]] = {
    "deadline": (math.inf, Rate),
    "dropout": (0.0, Share),
    "available": (1.0, Share),
    "overhead": (0.0, Decay),
    "spread": (0.0, Annotated[float, Bounds(0, 10)]),
}
"""The default and the type of each condition of a population."""

_LARGEST = float(np.finfo(np.float32).max)


def make_population(spec: str, num_clients: int, *, seed: int = 0) -> Population:
    """Makes a population from text.

    Args:
      spec: ``DEVICE@LINK``, or a mix ``DEVICE:SHARE+DEVICE:SHARE@LINK:SHARE+LINK:SHARE``, or
        ``trace:FILE.csv``, see :func:`read_trace`. Then, after commas, ``deadline=SECONDS``,
        ``dropout=SHARE``, ``available=SHARE``, ``overhead=BYTES``, and ``spread=SIGMA``: the rates of every
        device and link are multiplied by log-normal factors with this standard deviation of the logarithm.
      num_clients: The number of clients.
      seed: Seed of the assignment of devices to clients.

    Raises:
      UserError: The text or a file has another form, or a number is out of range.

    >>> population = make_population("rpi3:1+rpi4:3@wifi,deadline=60", 8)
    >>> sorted(population.fleet.flops.tolist())[:3], population.deadline
    ([1200000000.0, 1200000000.0, 2500000000.0], 60.0)
    """
    source, *texts = spec.split(",")
    conditions = {name: default for name, (default, _) in _CONDITIONS.items()}
    for text in texts:
        key, _, value = text.partition("=")
        if key not in _CONDITIONS:
            raise unknown_name("devices", key, _CONDITIONS)
        conditions[key] = coerce(f"devices.{key}", value, _CONDITIONS[key][1])
    rng = np.random.default_rng([seed, num_clients])
    if source.startswith("trace:"):
        fleet = read_trace(source.removeprefix("trace:"), num_clients)
    else:
        device, _, link = source.partition("@")
        fleet = Fleet(*_assign(device, DEVICES, num_clients, rng), *_assign(link, LINKS, num_clients, rng))
    spread = conditions.pop("spread")
    return replace(Population(_with_spread(fleet, spread, rng)), **conditions)


def _with_spread(fleet: Fleet, spread: float, rng: np.random.Generator) -> Fleet:
    """The fleet, with its rates multiplied by log-normal factors."""
    if not spread:
        return fleet
    (num_clients,) = np.shape(fleet.flops)
    factors = {
        name: np.exp(spread * rng.standard_normal(num_clients)).astype(np.float32)
        for name in ("flops", "memory", "up", "down")
    }
    return fleet._replace(**{name: getattr(fleet, name) * factor for name, factor in factors.items()})


def read_trace(path: str, num_clients: int) -> Fleet:
    """Reads a fleet from a CSV file.

    Args:
      path: The file, with the field names of :class:`Fleet` as its header, and one line per client.
      num_clients: The number of clients.

    Raises:
      UserError: There is no such file, a column is missing, a value is not a number above 0 (latency:
        at least 0), or the number of lines is not the number of clients.
    """
    key = f"devices=trace:{path}"
    try:
        with open(regular_file(path), newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{key}: must be a CSV file: {error}") from None
    if len(lines) != num_clients:
        raise UserError(f"{key}: must have {num_clients} rows, one per client, and has {len(lines)}")
    for name in Fleet._fields:
        if name not in lines[0]:
            raise UserError(f"{key}: must have the columns {', '.join(Fleet._fields)}; {name!r} is missing")
    columns = [
        [
            coerce(f"{path}: row {number}: {name}", line[name], _column_type(name))
            for number, line in enumerate(lines, 1)
        ]
        for name in Fleet._fields
    ]
    return Fleet(*np.array(columns, np.float32))


def _column_type(name: str) -> object:
    return Annotated[float, Bounds(0, _LARGEST, above=name != "latency")]


def _assign(mix: str, profiles: Mapping[str, tuple], num: int, rng: np.random.Generator) -> np.ndarray:
    """Assigns profiles to clients in proportion to their shares: ``float32[fields, num]``."""
    names, shares = [], []
    for part in mix.split("+"):
        name, colon, share = part.partition(":")
        if name not in profiles:
            raise unknown_name("devices", name, profiles)
        names.append(name)
        shares.append(coerce(f"devices.{name}", share, Rate) if colon else 1.0)
    edges = np.round(np.cumsum(shares) / np.sum(shares) * num).astype(int)
    choices = rng.permutation(np.searchsorted(edges, np.arange(num), side="right"))
    return np.array([profiles[name] for name in names], np.float32)[choices].T
