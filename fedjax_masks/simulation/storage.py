"""Where clients' states lie between rounds: on every device, in parts, or in a file on the host.

These are the states that clients have, and what the server keeps of each. On the host they are packed, and
only the rows of the clients that a program needs move. A client that has never taken part has no row there:
its state follows from the seed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding

from fedjax_masks.core import trees
from fedjax_masks.core.choices import DataPlace, StatePlace
from fedjax_masks.simulation.mapping import SPLIT, OfClients, Rows
from fedjax_masks.simulation.memory import available_bytes, peak_bytes
from fedjax_masks.simulation.packing import Packing, packing_of
from fedjax_masks.simulation.store import Store


@dataclass(frozen=True)
class Storage:
    """What is asked of where things lie between chunks of rounds; never changes results.

    Attributes:
      clients: Of the clients' states: all of them on every ``device``, a part on each device of a
        ``mesh`` where their number divides, or on the ``host``. ``auto`` takes the first that needs no more
        than half of a device's free memory.
      data: Of the training data: on every ``device``, or on the ``host``; ``auto`` alike.
      path: The clients' file on the host; None for one that vanishes with the process.
      checkpoints: How many checkpoints are kept, whose rows must stay.
    """

    clients: StatePlace = "auto"
    data: DataPlace = "auto"
    path: Path | None = None
    checkpoints: int = 1


AUTO = Storage()

Put = Callable[[Any], Any]


class Programs(NamedTuple):
    """What the programs of a simulation ask of a place.

    Attributes:
      cohort: Clients per round.
      chunk: The largest number of rounds that will be asked for.
      devices: How many devices they run on.
      put: Host arrays to where arrays lie.
    """

    cohort: int
    chunk: int
    devices: int
    put: Put


class Residence(NamedTuple):
    """A place for what there is of every client, as a record of functions.

    Attributes:
      name: ``device``, ``mesh`` or ``host``.
      sharding: ``(where all else lies) -> where`` it lies.
      shapes: Of what a program gets.
      packing: How a program reads one client's; None where the rows are the states themselves.
      init: ``(states of all clients) -> OfClients``, traced.
      load: ``(OfClients, ids) -> `` what a program gets; ``ids`` are sorted, and at most ``limit``.
      save: ``(OfClients before, ids, what the program gave back) -> OfClients``.
      prefetch: ``(OfClients, ids)``: announces whose states will be loaded next.
      read: ``(OfClients, ids) -> their states``.
      limit: How many clients a program can get.
      rounds: How many rounds it can run with them.
      store: The file on the host, if any.
    """

    name: StatePlace
    sharding: Callable[[Sharding], Sharding]
    shapes: OfClients
    packing: Packing | None
    init: Callable[[OfClients], OfClients]
    load: Callable[[OfClients, np.ndarray], OfClients]
    save: Callable[[OfClients, np.ndarray, OfClients], OfClients]
    prefetch: Callable[[OfClients, np.ndarray], None]
    read: Callable[[OfClients, np.ndarray], OfClients]
    limit: int
    rounds: int
    store: Store | None = None

    def point(self, rows: Rows, ids: np.ndarray) -> Rows:
        """Points rows at what :attr:`load` gives for ``ids``."""
        if self.packing is None:
            return rows
        return rows._replace(at=np.searchsorted(ids, rows.ids).astype(np.int32))


def on_device(shapes: OfClients, num_clients: int, *, chunk: int, split: bool = False) -> Residence:
    """All clients' states are on the devices, and every program gets all.

    Args:
      shapes: Of all clients' states.
      num_clients: Of the task.
      chunk: The largest number of rounds that will be asked for.
      split: Every device has a part of them, where their number divides; else all.
    """

    def sharding(place: Sharding) -> Sharding:
        if not (split and isinstance(place, NamedSharding)) or num_clients % place.mesh.size:
            return place
        return NamedSharding(place.mesh, SPLIT)

    return Residence(
        name="mesh" if split else "device",
        sharding=sharding,
        shapes=shapes,
        packing=None,
        init=lambda states: states,
        load=lambda own, ids: own,
        save=lambda before, ids, after: after,
        prefetch=lambda own, ids: None,
        read=lambda own, ids: jax.tree.map(lambda a: a[ids], own),
        limit=num_clients,
        rounds=chunk,
    )


def on_host(
    shapes: OfClients,
    num_clients: int,
    storage: Storage,
    initial: Callable[[], OfClients],
    programs: Programs,
) -> Residence:
    """Packed rows in a file, of the clients that have taken part.

    Args:
      shapes: Of all clients' states.
      num_clients: Of the task.
      storage: What is asked of the file.
      initial: ``() -> states of all clients`` before round 0, traced. Only some rows of it are ever
        computed, which costs little where all clients start alike, see :func:`trees.replicate`.
      programs: They run fewer rounds where the rows of a chunk would take half of a device's free memory.

    Raises:
      MemoryError: Clients do not start alike, and there is no room for all their states.
    """
    client = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), shapes)
    packing = packing_of(client)
    store = Store(packing.row_bytes, storage.path, checkpoints=storage.checkpoints)
    cohort_bytes, put = programs.cohort * packing.row_bytes, programs.put
    rounds = int(max(1, min(programs.chunk, _room(programs.devices) // cohort_bytes)))
    limit = min(rounds * programs.cohort, num_clients)
    borrowed = jax.ShapeDtypeStruct((limit, packing.row_bytes), jnp.uint8)

    def pack(ids: jax.Array) -> jax.Array:
        states = jax.tree.map(lambda a: a.at[ids].get(mode="clip"), initial())
        return jax.vmap(packing.pack)(states)

    newcomers = jax.jit(pack).lower(jax.ShapeDtypeStruct((limit,), jnp.int32)).compile()
    need, available = peak_bytes(newcomers), available_bytes()
    if available is not None and need > available:
        raise MemoryError(
            f"clients' states before their first round need {need / 1e9:.1f} GB, {available / 1e9:.1f} GB "
            "are free; accepted on the host is an algorithm whose clients start alike"
        )

    def load(own: OfClients, ids: np.ndarray) -> OfClients:
        slots = np.asarray(own.clients)[ids]
        rows = np.zeros(borrowed.shape, np.uint8)
        known = np.flatnonzero(slots >= 0)
        rows[known] = store.read(slots[known])
        new = np.flatnonzero(slots < 0)
        if len(new):
            padded = np.pad(ids[new].astype(np.int32), (0, limit - len(new)))
            rows[new] = np.asarray(newcomers(padded))[: len(new)]
        return OfClients(put(rows), ())

    def save(before: OfClients, ids: np.ndarray, after: OfClients) -> OfClients:
        slots = np.array(before.clients)
        slots[ids] = store.write(np.asarray(after.clients)[: len(ids)], slots[ids])
        return OfClients(put(slots), ())

    def prefetch(own: OfClients, ids: np.ndarray) -> None:
        slots = np.asarray(own.clients)[ids]
        store.announce(slots[slots >= 0])

    return Residence(
        name="host",
        sharding=lambda place: place,
        shapes=OfClients(borrowed, ()),
        packing=packing,
        init=lambda states: OfClients(jnp.full(num_clients, -1, jnp.int32), ()),
        load=load,
        save=save,
        prefetch=prefetch,
        read=lambda own, ids: jax.vmap(packing.unpack)(load(own, ids).clients[: len(ids)]),
        limit=limit,
        rounds=rounds,
        store=store,
    )


def choose(
    shapes: OfClients,
    num_clients: int,
    storage: Storage,
    initial: Callable[[], OfClients],
    programs: Programs,
) -> Residence:
    """The place that was asked for, or that suits; see :func:`on_host`.

    Raises:
      ValueError: Parts or the host were asked for, and there are several processes.
    """
    where = storage.clients
    if jax.process_count() > 1:
        if where not in ("auto", "device"):
            raise ValueError(f"storage.clients={where!r}: accepted is 'device' with several processes")
        return on_device(shapes, num_clients, chunk=programs.chunk)
    if where == "auto":
        where = _fitting(trees.num_bytes(shapes), num_clients, programs.devices)
    if where == "host" and jax.tree.leaves(shapes):
        return on_host(shapes, num_clients, storage, initial, programs)
    return on_device(shapes, num_clients, chunk=programs.chunk, split=where == "mesh")


def _fitting(size: int, num_clients: int, devices: int) -> StatePlace:
    """The first place where states of ``size`` bytes take no more than half of a device's free memory."""
    room = _room(devices)
    if size <= room:
        return "device"
    divides = devices > 1 and num_clients % devices == 0
    return "mesh" if divides and size / devices <= room else "host"


def _room(devices: int) -> float:
    """Half of a device's free memory, in bytes; a CPU's devices share one."""
    free = available_bytes()
    sharers = devices if jax.default_backend() == "cpu" else 1
    return math.inf if free is None else free / 2 / sharers
