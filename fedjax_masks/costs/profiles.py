"""Profiles of devices and links, and the population of a simulation.

The profiles are round figures, our choice, for orders of magnitude; ``trace:FILE.csv`` reads measured ones.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import jax
    import numpy as np

Real: TypeAlias = "np.ndarray | jax.Array | float"
"""A number, or an array of numbers."""


class Device(NamedTuple):
    """The rates and powers of a device.

    Attributes:
      flops: FLOP/s that training reaches.
      memory: Bandwidth of the memory, in bytes per second.
      compute_watts: Power of computing, in watts.
      radio_watts: Power of sending and receiving, in watts.
    """

    flops: float
    memory: float
    compute_watts: float
    radio_watts: float


class Link(NamedTuple):
    """A network connection.

    Attributes:
      up: Bits per second to the server.
      down: Bits per second from the server.
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
"""Links of 5, 20 and 60 Mbit/s, with round trips of 50 ms."""


class Fleet(NamedTuple):
    """The clients' devices and links: the fields of :class:`Device` and :class:`Link`.

    Every field is ``float32[num_clients]``, in the same units; of one client, it is a single number.
    """

    flops: Real
    memory: Real
    compute_watts: Real
    radio_watts: Real
    up: Real
    down: Real
    latency: Real


@dataclass(frozen=True, eq=False)
class Population:
    """The devices of a simulation, and the conditions of its rounds.

    Attributes:
      fleet: The clients' devices and links.
      server: The server's device.
      deadline: Length of a round in seconds; later uploads are left out.
      dropout: The probability that a client disappears after it has received its message.
      available: The probability that a client of the cohort is available; the server sends nothing to others.
      overhead: Bytes around every message, which take time and are part of no payload.
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
