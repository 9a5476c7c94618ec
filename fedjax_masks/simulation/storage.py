"""Storage of clients' states and of training data between chunks of rounds: options, and the protocol.

:mod:`fedjax_masks.simulation.state_storage` and :mod:`fedjax_masks.simulation.data_storage` make the records.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding

from fedjax_masks.core.choices import DataPlace, StatePlace
from fedjax_masks.core.types import PyTree
from fedjax_masks.simulation.arrays import Examples
from fedjax_masks.simulation.lanes import Lanes
from fedjax_masks.simulation.states import ClientStates, Packing
from fedjax_masks.simulation.store import Store


@dataclass(frozen=True)
class Storage:
    """The places of clients' states and of training data between chunks of rounds; never changes results.

    Attributes:
      clients: The place of the clients' states: all states on every ``device``; a shard on each device of a
        ``mesh``, where the number of clients is divisible by the number of devices; or the ``host``.
        ``auto`` takes the first place that needs at most half of a device's free memory.
      data: The place of the training data: every ``device``, or the ``host``. ``auto`` takes the host if the
        data need more than half of a device's free memory, and those of a chunk's clients need less.
      path: The file of clients' states on the host; None for a file that vanishes with the process.
      checkpoints: The number of kept checkpoints, whose states must stay in the file.
    """

    clients: StatePlace = "auto"
    data: DataPlace = "auto"
    path: Path | None = None
    checkpoints: int = 1


AUTO = Storage()
"""The default places."""

Put = Callable[[PyTree], PyTree]
"""``(host arrays) -> arrays on the program's devices``."""


class StateStorage(NamedTuple):
    """Storage of clients' states and profiles, as a record of functions.

    Attributes:
      name: The place: ``device``, ``mesh`` or ``host``.
      sharding: ``(sharding of other arrays) -> sharding`` of the states between rounds.
      shapes: The shapes of the states that a program gets.
      packing: The packing of one client's state in a program; None for states that are not packed.
      init: ``(states of all clients) -> ClientStates`` before round 0; traced.
      load: ``(ClientStates, ids) -> states`` for a program; ``ids`` are sorted, at most ``max_clients``.
      save: ``(old ClientStates, ids, states after the program) -> ClientStates``.
      prefetch: ``(ClientStates, ids)``: announces the next clients; called while the device computes.
      read: ``(ClientStates, ids) -> states`` of these clients, unpacked.
      max_clients: The largest number of clients that a program can get.
      max_rounds: The largest number of rounds that a program runs.
      store: The file on the host, if any.
    """

    name: StatePlace
    sharding: Callable[[Sharding], Sharding]
    shapes: ClientStates
    packing: Packing | None
    init: Callable[[ClientStates], ClientStates]
    load: Callable[[ClientStates, np.ndarray], ClientStates]
    save: Callable[[ClientStates, np.ndarray, ClientStates], ClientStates]
    prefetch: Callable[[ClientStates, np.ndarray], None]
    read: Callable[[ClientStates, np.ndarray], ClientStates]
    max_clients: int
    max_rounds: int
    store: Store | None = None

    def locate(self, lanes: Lanes[np.ndarray], ids: np.ndarray) -> Lanes[np.ndarray]:
        """Points lanes to the states that ``load`` returns for ``ids``."""
        if self.packing is None:
            return lanes
        # Ids of padding are larger than all clients' ids: their position is beyond the end.
        return lanes._replace(positions=np.searchsorted(ids, lanes.ids).astype(np.int32))


class DataStorage(NamedTuple):
    """Storage of training data, as a record of functions.

    The protocol is that of :class:`StateStorage`, with ``()`` as the state between rounds.

    Attributes:
      shapes: The shapes of the data that a program gets.
      load: ``((), ids) -> data`` of these clients for a program; ``ids`` are sorted.
      prefetch: ``((), ids)``: announces the next clients; called while the device computes.
      locate: ``(lanes, ids) -> lanes`` with offsets that point into the data of ``load``.
    """

    shapes: Examples[jax.ShapeDtypeStruct]
    load: Callable[[tuple[()], np.ndarray], Examples[jax.Array]]
    prefetch: Callable[[tuple[()], np.ndarray], None]
    locate: Callable[[Lanes[np.ndarray], np.ndarray], Lanes[np.ndarray]]
