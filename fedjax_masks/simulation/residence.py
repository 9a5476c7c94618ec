"""Where the clients' states lie between rounds: on every device, in parts, or in a file on the host.

On the host they are packed, and only the rows of the clients that a program needs move. A client that
has never taken part has no row there: its state follows from the seed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding

from fedjax_masks import trees
from fedjax_masks.simulation.layout import SPLIT, Rows
from fedjax_masks.simulation.memory import available_bytes, peak_bytes
from fedjax_masks.simulation.packing import Packing, packing_of
from fedjax_masks.simulation.store import Store

Where = Literal["auto", "device", "host"]
WhereClients = Literal["auto", "device", "mesh", "host"]


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

    clients: WhereClients = "auto"
    data: Where = "auto"
    path: Path | None = None
    checkpoints: int = 1


AUTO = Storage()


Put = Callable[[Any], Any]


class Residence(NamedTuple):
    """A place for the clients' states, as a record of functions.

    Between rounds, :attr:`State.clients` is of the place's own kind: on devices the states
    themselves; on the host ``int32[num_clients]``, each client's slot in the store, -1 for none.

    Attributes:
      name: ``device``, ``mesh`` or ``host``.
      sharding: ``(where all else lies) -> where`` :attr:`State.clients` lies.
      shapes: The clients' states as a program gets them.
      packing: How a program reads one client's; None where they are the states themselves.
      init: ``(states of all clients) -> clients``, traced.
      load: ``(clients, ids) -> `` what a program gets; ``ids`` are sorted, and at most ``limit``.
      save: ``(clients before, ids, what the program gave back) -> clients``.
      announce: ``(clients, ids)``: whose states will be loaded next.
      read: ``(clients, ids) -> their states``.
      limit: How many clients a program can get.
      store: The file on the host, if any.
    """

    name: WhereClients
    sharding: Callable[[Sharding], Sharding]
    shapes: Any
    packing: Packing | None
    init: Callable[[Any], Any]
    load: Callable[[Any, np.ndarray], Any]
    save: Callable[[Any, np.ndarray, Any], Any]
    announce: Callable[[Any, np.ndarray], None]
    read: Callable[[Any, np.ndarray], Any]
    limit: int
    store: Store | None = None

    def point(self, rows: Rows, ids: np.ndarray) -> Rows:
        """Points rows at what :attr:`load` gives for ``ids``."""
        if self.packing is None:
            return rows
        return rows._replace(at=np.searchsorted(ids, rows.ids).astype(np.int32))


def on_device(shapes: Any, num_clients: int, *, split: bool = False) -> Residence:
    """All clients' states are on the devices, and every program gets all.

    Args:
      shapes: Of all clients' states.
      num_clients: Of the task.
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
        load=lambda clients, ids: clients,
        save=lambda before, ids, after: after,
        announce=lambda clients, ids: None,
        read=lambda clients, ids: jax.tree.map(lambda a: a[ids], clients),
        limit=num_clients,
    )


def on_host(
    shapes: Any, num_clients: int, storage: Storage, initial: Callable[[], Any], *, limit: int, put: Put
) -> Residence:
    """Packed rows in a file, of the clients that have taken part.

    Args:
      shapes: Of all clients' states.
      num_clients: Of the task.
      storage: What is asked of the file.
      initial: ``() -> states of all clients`` before round 0, traced. Only some rows of it are ever
        computed, which costs little where all clients start alike, see :func:`trees.replicate`.
      limit: How many clients a program can get.
      put: Host arrays to where arrays lie.

    Raises:
      MemoryError: Clients do not start alike, and there is no room for all their states.
    """
    client = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), shapes)
    packing = packing_of(client)
    store = Store(packing.row_bytes, storage.path, checkpoints=storage.checkpoints)
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

    def load(clients: jax.Array, ids: np.ndarray) -> jax.Array:
        slots = np.asarray(clients)[ids]
        rows = np.zeros(borrowed.shape, np.uint8)
        known = np.flatnonzero(slots >= 0)
        rows[known] = store.read(slots[known])
        new = np.flatnonzero(slots < 0)
        if len(new):
            padded = np.pad(ids[new].astype(np.int32), (0, limit - len(new)))
            rows[new] = np.asarray(newcomers(padded))[: len(new)]
        return put(rows)

    def save(before: jax.Array, ids: np.ndarray, after: jax.Array) -> jax.Array:
        slots = np.array(before)
        slots[ids] = store.write(np.asarray(after)[: len(ids)], slots[ids])
        return put(slots)

    def announce(clients: jax.Array, ids: np.ndarray) -> None:
        slots = np.asarray(clients)[ids]
        store.announce(slots[slots >= 0])

    return Residence(
        name="host",
        sharding=lambda place: place,
        shapes=borrowed,
        packing=packing,
        init=lambda states: jnp.full(num_clients, -1, jnp.int32),
        load=load,
        save=save,
        announce=announce,
        read=lambda clients, ids: jax.vmap(packing.unpack)(load(clients, ids)[: len(ids)]),
        limit=limit,
        store=store,
    )


def choose(
    shapes: Any,
    num_clients: int,
    storage: Storage,
    initial: Callable[[], Any],
    *,
    devices: int,
    limit: int,
    put: Put,
) -> Residence:
    """The place that was asked for, or that suits; see :func:`on_host`.

    Raises:
      ValueError: Parts or the host were asked for, and there are several processes.
    """
    where = storage.clients
    if jax.process_count() > 1:
        if where not in ("auto", "device"):
            raise ValueError(f"storage.clients={where!r}: accepted is 'device' with several processes")
        return on_device(shapes, num_clients)
    if where == "auto":
        where = _fitting(trees.num_bytes(shapes), num_clients, devices)
    if where == "host" and jax.tree.leaves(shapes):
        return on_host(shapes, num_clients, storage, initial, limit=limit, put=put)
    return on_device(shapes, num_clients, split=where == "mesh")


def _fitting(size: int, num_clients: int, devices: int) -> WhereClients:
    """The first place where states of ``size`` bytes take no more than half of a device's free memory."""
    free = available_bytes()
    room = math.inf if free is None else free / 2
    sharers = devices if jax.default_backend() == "cpu" else 1  # a CPU's devices have one memory
    if size * sharers <= room:
        return "device"
    divides = devices > 1 and num_clients % devices == 0
    return "mesh" if divides and size * sharers / devices <= room else "host"
