"""The parts of a simulation that do not depend on its plan: algorithm, shapes, storage and meter."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from fedjax_masks.core import returns
from fedjax_masks.core.algorithm import FederatedAlgorithm, PyTree, State, Task
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.target import exact_products
from fedjax_masks.costs.profiles import Population
from fedjax_masks.simulation import arrays, mapping
from fedjax_masks.simulation.data_storage import choose_data_storage
from fedjax_masks.simulation.keys import simulation_keys
from fedjax_masks.simulation.metering import Meter, make_meter
from fedjax_masks.simulation.state_storage import StateUse, choose_state_storage, device_storage
from fedjax_masks.simulation.states import client_states
from fedjax_masks.simulation.storage import DataStorage, StateStorage, Storage
from fedjax_masks.simulation.tracing import MakeAlgorithm, Options, Shapes, trace_client


class Placement:
    """The sharding of arrays that all clients share, which is known once the program is compiled.

    Attributes:
      sharding: The sharding.
    """

    sharding: Sharding

    def put(self, tree: PyTree) -> PyTree:
        """Puts host arrays on the program's devices."""
        return mapping.put(tree, self.sharding)


class Parts(NamedTuple):
    """The parts of a simulation.

    Attributes:
      task: Data and clients.
      cohort: Clients per round.
      chunk: The largest number of rounds of one call of ``run``.
      seeds: ``uint32`` of every run.
      options: The values of options, of every run.
      make: ``(options) -> algorithm``.
      algorithm: The algorithm of any run.
      shapes: The shapes of the state and of messages.
      data: The storage of training data.
      states: The storage of clients' states.
      meter: The meter of reports.
      placement: The sharding of shared arrays.
      poison: Whether to overwrite values that are not sent.
    """

    task: Task
    cohort: int
    chunk: int
    seeds: list[np.uint32]
    options: Sequence[Options]
    make: MakeAlgorithm
    algorithm: FederatedAlgorithm
    shapes: Shapes
    data: DataStorage
    states: StateStorage
    meter: Meter
    placement: Placement
    poison: bool


def make_parts(
    make_algorithm: MakeAlgorithm,
    task: Task,
    *,
    cohort: int,
    chunk: int,
    seeds: Sequence[int],
    values: Mapping[str, Sequence[float]],
    devices: int,
    population: Population | None,
    storage: Storage,
    poison: bool,
) -> Parts:
    """Traces one client, and chooses the storage of data and states.

    For the arguments see :func:`~fedjax_masks.simulation.engine.make_simulation`; ``devices`` is the number
    of devices of the plan.

    Raises:
      UserError: Several runs have storage on the host.
    """
    several = len(seeds) > 1
    if several and "host" in (storage.clients, storage.data):
        raise UserError("storage=host: must be left out with several runs in one program")
    placement = Placement()
    data = choose_data_storage(
        task,
        "device" if several else storage.data,
        max_clients=min(chunk * cohort, task.num_clients),
        put=placement.put,
    )
    numbers = [np.uint32(seed) for seed in seeds]
    options = [
        {name: np.float32(column[run]) for name, column in values.items()} for run in range(len(seeds))
    ]
    # Shapes alone: the states of all clients may not fit into memory.
    init_key, _ = jax.eval_shape(simulation_keys, numbers[0])
    scalars = jax.tree.map(lambda a: jax.ShapeDtypeStruct((), jnp.float32), options[0])
    # With constant sizes a lane of padding trains, too. That costs nothing inside a block of clients, but a
    # block of padding alone, which fills up tiers or devices, would take the time of a client.
    schedule = returns.with_checks(make_algorithm(options[0]), task.num_clients).schedule
    pads = (not several and cohort % devices > 0) or schedule.num_tiers > 1
    equal_size = None if pads else arrays.equal_size(task)
    with exact_products():
        make, shapes = trace_client(make_algorithm, scalars, task, init_key, data.shapes, equal_size)
    algorithm = make(options[0])
    use = StateUse(client_states(shapes.state), task.num_clients, cohort, chunk, devices, placement.put)
    if several:  # their states have an axis of runs, which the store on the host does not know
        states = device_storage(use)
    else:
        states = choose_state_storage(
            use, storage, lambda: client_states(initial_state(make, options[0], numbers[0], task))
        )
    meter = make_meter(shapes, cohort, population)
    return Parts(
        task, cohort, chunk, numbers, options, make, algorithm, shapes, data, states, meter, placement, poison
    )


def initial_state(make: MakeAlgorithm, options: Options, seed: jax.typing.ArrayLike, task: Task) -> State:
    """The state of one run before round 0; traced."""
    return make(options).init(simulation_keys(seed)[0], task)


def state_shardings(states: StateStorage, shared: Sharding) -> State:
    """The shardings of the parts of a state."""
    per_client = states.sharding(shared)
    return State(shared, per_client, per_client)
