"""Devices, links, and the clock that runs by them.

A client's time in a round is that of its own computation and its own exact bytes and messages: FLOPs
at the rate that its device reaches, what its matrix products write through its memory (FLOPs alone
underestimate early layers), bits over its link, and half a round trip per message. The profiles are
round figures, our choice, for orders of magnitude; ``trace:FILE.csv`` takes measured ones.
"""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core.errors import UserError, regular_file, unknown


class Device(NamedTuple):
    """What a device can do.

    Attributes:
      flops: FLOP/s that training reaches.
      memory: Bytes per second that its memory moves.
      compute_watts: Power while it computes.
      radio_watts: Power while it sends or receives.
    """

    flops: float
    memory: float
    compute_watts: float
    radio_watts: float


class Link(NamedTuple):
    """A network connection.

    Attributes:
      up: Bits per second towards the server.
      down: Bits per second from it.
      latency: Seconds of a round trip.
    """

    up: float
    down: float
    latency: float


DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        "rpi3": Device(1.2e9, 1.5e9, 4.0, 1.0),
        "rpi4": Device(2.5e9, 4.0e9, 6.0, 1.2),
        "jetson-nano": Device(40e9, 20e9, 10.0, 1.5),
        "jetson-tx2": Device(110e9, 45e9, 15.0, 1.5),
        "phone-low": Device(2e9, 5e9, 2.0, 1.0),
        "phone-mid": Device(8e9, 12e9, 3.0, 1.0),
        "phone-high": Device(30e9, 30e9, 5.0, 1.2),
        "server": Device(10e12, 1e12, 300.0, 10.0),
    }
)
"""Raspberry Pi 3 and 4, Jetson Nano and TX2, three classes of phones, a server with an accelerator."""

LINKS: Mapping[str, Link] = MappingProxyType(
    {"3g": Link(5e6, 5e6, 0.05), "4g": Link(20e6, 20e6, 0.05), "wifi": Link(60e6, 60e6, 0.05)}
)
"""5, 20 and 60 Mbit/s, 50 ms."""


_HIGHEST = {"spread": 10.0, "dropout": 1.0, "available": 1.0}


class Fleet(NamedTuple):
    """The clients' devices and links, in the units of :class:`Device` and :class:`Link`.

    Attributes: ``float32[num_clients]`` each.
    """

    flops: Any
    memory: Any
    compute_watts: Any
    radio_watts: Any
    up: Any
    down: Any
    latency: Any


@dataclass(frozen=True, eq=False)
class Population:
    """Who takes part in a simulation, and under which conditions.

    Attributes:
      fleet: The clients.
      server: The server.
      deadline: Seconds after which a round is over; an update that comes later is left out.
      dropout: The probability that a client vanishes after it has received its message.
      available: The probability that a drawn client is there at all; one that is not is never asked.
      overhead: Bytes around every message. They take time, and are not part of any payload.
    """

    fleet: Fleet
    server: Device = DEVICES["server"]
    deadline: float = math.inf
    dropout: float = 0.0
    available: float = 1.0
    overhead: float = 0.0

    @property
    def loses_clients(self) -> bool:
        """Whether a client of a cohort may be missing from its merge."""
        return self.deadline < math.inf or self.dropout > 0 or self.available < 1


class Spent(NamedTuple):
    """What a client's round takes.

    Attributes:
      seconds: ``float32[]``.
      joules: ``float32[]``.
    """

    seconds: jax.Array
    joules: jax.Array


def spent(
    client: Fleet, bits_up: Any, bits_down: Any, *, flops: Any, traffic: Any = 0.0, messages: Any = 2.0
) -> Spent:
    """Time and energy of one client's round.

    Args:
      client: One client's row of a fleet, or all rows at once.
      bits_up: Bits that it sends.
      bits_down: Bits that it receives.
      flops: FLOPs that it computes.
      traffic: Bytes that its products read and write.
      messages: Messages in both directions.

    >>> rpi = Fleet(*DEVICES["rpi4"], *LINKS["wifi"])
    >>> took = spent(rpi, 60e6, 0, flops=5e9)  # a second to send, two to compute, and a round trip
    >>> round(float(took.seconds), 3), round(float(took.joules), 3)
    (3.05, 13.2)
    """
    computing = jnp.float32(flops) / client.flops + jnp.float32(traffic) / client.memory
    talking = jnp.float32(bits_up) / client.up + jnp.float32(bits_down) / client.down
    waiting = jnp.float32(messages) * client.latency / 2
    joules = computing * client.compute_watts + talking * client.radio_watts
    return Spent(computing + talking + waiting, joules)


def round_seconds(
    population: Population, seconds: np.ndarray, lost: np.ndarray, server_flops: np.ndarray
) -> np.ndarray:
    """How long rounds take: as long as their slowest client, or until the deadline; then the server works.

    Args:
      population: The deadline, and the server.
      seconds: ``[rounds, cohort]``: the clients' own.
      lost: ``bool[rounds, cohort]``: who never answered. The server waits for them until the
        deadline; without one, it learns of it.
      server_flops: ``[rounds]``.

    Returns:
      ``float64[rounds]``.
    """
    answered = np.where(lost, 0.0, np.asarray(seconds, np.float64)).max(1)
    if math.isfinite(population.deadline):
        answered = np.where(lost.any(1), population.deadline, np.minimum(answered, population.deadline))
    return answered + server_flops / population.server.flops


def make_population(spec: str, num_clients: int, *, seed: int = 0) -> Population:
    """Reads a population.

    Args:
      spec: ``DEVICE@LINK``, or a mix ``DEVICE:SHARE+DEVICE:SHARE@LINK:SHARE+LINK:SHARE``, or
        ``trace:FILE.csv`` with a row per client and the columns of :class:`Fleet`. Behind it, after
        commas, ``deadline=SECONDS``, ``dropout=SHARE``, ``available=SHARE``,
        ``overhead=BYTES``, and ``spread=SIGMA``: the rates of every device and link are multiplied by
        log-normal factors of this width.
      num_clients: The number of clients.
      seed: Decides which client has which device.

    Raises:
      UserError: The text is not of this form, a file is not, or a number is out of range.

    >>> population = make_population("rpi3:1+rpi4:3@wifi,deadline=60", 8)
    >>> sorted(population.fleet.flops.tolist())[:3], population.deadline
    ([1200000000.0, 1200000000.0, 2500000000.0], 60.0)
    """
    who, *conditions = spec.split(",")
    options = {"deadline": math.inf, "dropout": 0.0, "available": 1.0, "overhead": 0.0, "spread": 0.0}
    for condition in conditions:
        key, _, value = condition.partition("=")
        if key not in options:
            raise unknown("devices", key, options)
        options[key] = _number(spec, condition, value, low=0, high=_HIGHEST.get(key, math.inf))
    if options["deadline"] == 0:
        raise UserError(f"devices={spec}: deadline=0; accepted is above 0")
    rng = np.random.default_rng([seed, num_clients])
    if who.startswith("trace:"):
        fleet = read_trace(who.removeprefix("trace:"), num_clients)
    else:
        device, _, link = who.partition("@")
        fleet = Fleet(
            *_deal(spec, device, DEVICES, num_clients, rng), *_deal(spec, link, LINKS, num_clients, rng)
        )
    spread = options.pop("spread")
    if spread:
        factors = {
            name: np.exp(spread * rng.standard_normal(num_clients)).astype(np.float32)
            for name in ("flops", "memory", "up", "down")
        }
        fleet = fleet._replace(**{name: getattr(fleet, name) * f for name, f in factors.items()})
    return replace(Population(fleet), **options)


def read_trace(path: str, num_clients: int) -> Fleet:
    """Reads ``Fleet`` from a CSV file with its field names as the header and a row per client.

    Raises:
      UserError: There is no such file, a column is missing, a value is not a number above 0 (latency:
        at least 0), or the number of rows is not that of the clients.
    """
    try:
        with open(regular_file(path), newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"devices=trace:{path}: {error}; accepted is a CSV file") from None
    if len(rows) != num_clients:
        raise UserError(f"devices=trace:{path}: {len(rows)} rows; accepted are {num_clients}, one per client")
    columns, most = [], float(np.finfo(np.float32).max)
    for name in Fleet._fields:
        if name not in rows[0]:
            raise UserError(
                f"devices=trace:{path}: no column {name!r}; needed are {', '.join(Fleet._fields)}"
            )
        low = 0 if name == "latency" else math.ulp(0)
        columns.append(
            [
                _number(f"trace:{path}", f"{name} of row {i}", row[name], low=low, high=most)
                for i, row in enumerate(rows, 1)
            ]
        )
    return Fleet(*np.array(columns, np.float32))


def _deal(
    spec: str, mix: str, profiles: Mapping[str, tuple], num: int, rng: np.random.Generator
) -> np.ndarray:
    """Deals profiles out in proportion to their shares: ``float32[fields, num]``."""
    names, shares = [], []
    for part in mix.split("+"):
        name, colon, share = part.partition(":")
        if name not in profiles:
            raise unknown("devices", name, profiles)
        names.append(name)
        shares.append(_number(spec, part, share, low=math.ulp(0)) if colon else 1.0)
    edges = np.round(np.cumsum(shares) / np.sum(shares) * num).astype(int)
    of = rng.permutation(np.searchsorted(edges, np.arange(num), side="right"))
    return np.array([profiles[name] for name in names], np.float32)[of].T


def _number(spec: str, part: str, text: Any, *, low: float, high: float = math.inf) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not (low <= value <= high and math.isfinite(value)):
        above = "above 0" if low else "at least 0"
        most = f" and at most {high:g}" if math.isfinite(high) else ""
        raise UserError(f"devices={spec}: {part}; accepted is a number {above}{most}")
    return value
