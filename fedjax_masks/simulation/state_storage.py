"""Storage of clients' states and profiles: on every device, in shards over a mesh, or in a file on the host.

On the host, states are packed, and only the states of the clients that a program needs move. A client that
has never taken part has no state in the file: its state follows from the seed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding

from fedjax_masks.core import target, trees
from fedjax_masks.core.choices import StatePlace
from fedjax_masks.core.errors import UserError
from fedjax_masks.simulation.mapping import SHARD_SPEC
from fedjax_masks.simulation.memory import available_bytes, peak_bytes
from fedjax_masks.simulation.states import ClientStates, Packing, packing_of
from fedjax_masks.simulation.storage import Put, StateStorage, Storage
from fedjax_masks.simulation.store import Store

Initial = Callable[[], ClientStates]
"""``() -> states of all clients`` before round 0; traced."""


class StateUse(NamedTuple):
    """The states of a simulation, and their use by its programs.

    Attributes:
      shapes: The shapes of all clients' states.
      num_clients: The task's number of clients.
      cohort: Clients per round.
      chunk: The largest number of rounds of a call of ``run``.
      devices: The number of devices of a program.
      put: ``(host arrays) -> device arrays``.
    """

    shapes: ClientStates
    num_clients: int
    cohort: int
    chunk: int
    devices: int
    put: Put


def choose_state_storage(use: StateUse, storage: Storage, initial: Initial) -> StateStorage:
    """Makes the storage of clients' states: the requested place, or the first place with enough memory.

    Raises:
      UserError: There are several processes, and another place than ``device`` is requested.
      MemoryError: See :func:`host_storage`.
    """
    place = storage.clients
    if jax.process_count() > 1:  # a process cannot read the states in another process's file or memory
        if place not in ("auto", "device"):
            raise UserError(f"storage.clients={place}: must be device with several processes")
        return device_storage(use)
    if place == "auto":
        place = _first_fit(trees.num_bytes(use.shapes), use.num_clients, use.devices)
    if place == "host" and jax.tree.leaves(use.shapes):
        return host_storage(use, storage, initial)
    return device_storage(use, split=place == "mesh")


def device_storage(use: StateUse, *, split: bool = False) -> StateStorage:
    """Storage of all clients' states on the devices; every program gets all states.

    Args:
      use: The states and their use.
      split: Whether every device gets a shard of the states, if their number is divisible; else a copy.
    """

    def sharding(replica: Sharding) -> Sharding:
        if not (split and isinstance(replica, NamedSharding)) or use.num_clients % replica.mesh.size:
            return replica
        return NamedSharding(replica.mesh, SHARD_SPEC)

    return StateStorage(
        name="mesh" if split else "device",
        sharding=sharding,
        shapes=use.shapes,
        packing=None,
        init=lambda states: states,
        load=lambda states, ids: states,
        save=lambda old, ids, new: new,
        prefetch=lambda states, ids: None,
        read=lambda states, ids: jax.tree.map(lambda a: a[ids], states),
        max_clients=use.num_clients,
        max_rounds=use.chunk,
    )


def host_storage(use: StateUse, storage: Storage, initial: Initial) -> StateStorage:
    """Storage of packed states in a file on the host, for the clients that have taken part.

    A program runs fewer rounds where the states of a chunk would need half of a device's free memory.

    Args:
      use: The states and their use.
      storage: The options of the file.
      initial: The states before round 0. A program computes the states of some clients only, which is cheap
        where all clients start with the same state, see :func:`fedjax_masks.core.trees.replicate`.

    Raises:
      MemoryError: Clients start with different states, and there is no memory for all of them.
    """
    client = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), use.shapes)
    packing = packing_of(client)
    store = Store(packing.num_bytes, storage.path, checkpoints=storage.checkpoints)
    max_rounds = int(max(1, min(use.chunk, _memory_share(use.devices) // (use.cohort * packing.num_bytes))))
    max_clients = min(max_rounds * use.cohort, use.num_clients)
    shape = jax.ShapeDtypeStruct((max_clients, packing.num_bytes), jnp.uint8)
    newcomers = _compile_newcomers(packing, initial, max_clients)

    def load(states: ClientStates, ids: np.ndarray) -> ClientStates:
        slots = np.asarray(states.clients)[ids]
        packed = np.zeros(shape.shape, np.uint8)
        old, new = np.flatnonzero(slots >= 0), np.flatnonzero(slots < 0)
        packed[old] = store.read(slots[old])
        if len(new):
            # Padded to one shape: one program serves any number of newcomers.
            padded_ids = np.pad(ids[new].astype(np.int32), (0, max_clients - len(new)))
            packed[new] = np.asarray(newcomers(padded_ids))[: len(new)]
        return ClientStates(use.put(packed), ())

    def save(old: ClientStates, ids: np.ndarray, new: ClientStates) -> ClientStates:
        slots = np.array(old.clients)  # a writable copy
        slots[ids] = store.write(np.asarray(new.clients)[: len(ids)], slots[ids])
        return ClientStates(use.put(slots), ())

    def prefetch(states: ClientStates, ids: np.ndarray) -> None:
        slots = np.asarray(states.clients)[ids]
        store.prefetch(slots[slots >= 0])  # the others have no state in the file

    return StateStorage(
        name="host",
        sharding=lambda replica: replica,
        shapes=ClientStates(shape, ()),
        packing=packing,
        init=lambda states: ClientStates(jnp.full(use.num_clients, -1, jnp.int32), ()),
        load=load,
        save=save,
        prefetch=prefetch,
        read=lambda states, ids: jax.vmap(packing.unpack)(load(states, ids).clients[: len(ids)]),
        max_clients=max_clients,
        max_rounds=max_rounds,
        store=store,
    )


def _compile_newcomers(
    packing: Packing, initial: Initial, max_clients: int
) -> Callable[[np.ndarray], jax.Array]:
    """Compiles ``(ids) -> packed states`` before round 0.

    Raises:
      MemoryError: The program does not fit into memory.
    """

    def pack(ids: jax.Array) -> jax.Array:
        # XLA computes only the gathered entries of a broadcast, so that one of a million clients costs its
        # own state alone.
        states = jax.tree.map(lambda a: a.at[ids].get(mode="clip"), initial())
        return jax.vmap(packing.pack)(states)

    program = jax.jit(pack).lower(jax.ShapeDtypeStruct((max_clients,), jnp.int32)).compile()
    need, available = peak_bytes(program), available_bytes()
    if available is not None and need > available:
        raise MemoryError(
            f"clients' states before their first round need {need / 1e9:.1f} GB, {available / 1e9:.1f} GB "
            "are free; choose an algorithm whose clients start alike"
        )
    return program


def _first_fit(size: int, num_clients: int, devices: int) -> StatePlace:
    """The first place where states of ``size`` bytes need at most half of a device's free memory."""
    limit = _memory_share(devices)
    if size <= limit:
        return "device"
    divisible = devices > 1 and num_clients % devices == 0
    return "mesh" if divisible and size / devices <= limit else "host"


def _memory_share(devices: int) -> float:
    """Half of a device's free memory, in bytes; the devices of a CPU share its memory."""
    free = available_bytes()
    sharers = devices if target.is_cpu() else 1
    return math.inf if free is None else free / 2 / sharers
