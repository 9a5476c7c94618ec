"""One client's round, as a traced program: message, training, upload, and the server's reception."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_masks.communication import size, visitor
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import FederatedAlgorithm, Info, PyTree, Round, Stack
from fedjax_masks.core.info import metrics_of
from fedjax_masks.costs.clock import Clock, read_clock
from fedjax_masks.costs.profiles import Fleet
from fedjax_masks.simulation.arrays import Examples, client_data
from fedjax_masks.simulation.keys import client_key
from fedjax_masks.simulation.lanes import Lanes
from fedjax_masks.simulation.mapping import Block
from fedjax_masks.simulation.plan import Plan
from fedjax_masks.simulation.states import ClientStates, Packing


class Setting(NamedTuple):
    """The static choices of a simulation's programs.

    Attributes:
      algorithm: The algorithm.
      plan: The execution plan.
      capacity: The number of training examples of the largest client.
      poison: Whether to overwrite values that are not sent.
      clock: The clock of the simulated devices, if any.
      packing: The packing of clients' states, if they are stored on the host.
      server_trains: Whether the server trains while it receives an upload.
    """

    algorithm: FederatedAlgorithm
    plan: Plan
    capacity: int
    poison: bool = False
    clock: Clock | None = None
    packing: Packing | None = None
    server_trains: bool = False


class ClientReport(NamedTuple):
    """The report of one client's round.

    Attributes:
      bits: uint32[2]: the data-dependent bits of the upload and of the message.
      values: float32[2 + number of metrics]. The first value is 1 if the client was dropped: its update was
        not finite, came too late, or never came. The second is 1 if the client trained: it had examples, and
        kept its new state. The metrics follow, by name in alphabetical order.
    """

    bits: jax.Array
    values: jax.Array


class _Measurement(NamedTuple):
    """The costs of one client's round.

    Attributes:
      bits: ``uint32[2]``: the data-dependent bits of the upload and of the message.
      metrics: ``float32[number of metrics]``, by name in alphabetical order.
      late: ``bool[]``: the upload comes after the deadline.
      silent: ``bool[]``: the client is away, or lost, and sends nothing.
    """

    bits: jax.Array
    metrics: jax.Array
    late: jax.Array
    silent: jax.Array


def client_step(
    setting: Setting,
    shared: tuple[Round, PyTree, Examples[jax.Array], Fleet | tuple[()]],
    lane: Lanes[jax.Array],
    block: Block,
    states: ClientStates,
) -> tuple[tuple[jax.Array, PyTree], tuple[ClientStates, ClientReport, PyTree]]:
    """Runs one client's round; a function for :func:`~fedjax_masks.simulation.mapping.map_clients`.

    Args:
      setting: The static choices.
      shared: The round, the server's state, the training data, and the fleet of the clock.
      lane: The client's lane, scalars.
      block: The client's block.
      states: The client's state and profile, packed if the setting has a packing.

    Returns:
      Whether the contribution is added, and its summed part; then the client's new state and profile, the
      client's report, and the stacked part of the contribution.
    """
    algorithm = setting.algorithm
    transmit = visitor.poison if setting.poison else lambda tree: tree
    round, server, examples, fleet = shared

    client, profile = states if setting.packing is None else setting.packing.unpack(states.clients)
    round = round._replace(key=client_key(round.key, lane.ids))
    message = algorithm.send(round, server, profile)
    data = client_data(examples, lane, block, setting.capacity)
    new_client, upload, info = algorithm.train(round, transmit(message), client, data)

    costs = _measure(setting, fleet, lane, round, message, upload, info)
    # One NaN in the sum over the cohort would spoil the server's state.
    finite = trees.all_finite((upload, costs.metrics))
    arrives = finite & ~costs.late & ~costs.silent
    weight = jnp.where(arrives, lane.sizes, 0).astype(jnp.float32)
    profile, contribution, valid = _receive(setting, round, server, profile, transmit(upload), weight)
    arrives &= valid

    # A client whose upload is late keeps its new state; a state with NaN would spoil all its later rounds.
    keeps = finite & ~costs.silent
    states = ClientStates(trees.where(keeps, new_client, client), profile)
    states = states if setting.packing is None else ClientStates(setting.packing.pack(states), ())
    # In one array with the metrics: every array of a report takes compile time.
    outcome = jnp.stack([~arrives, keeps & (lane.sizes > 0)])
    report = ClientReport(costs.bits, jnp.concatenate([outcome.astype(jnp.float32), costs.metrics]))
    valid, total, stack = _split_contribution(contribution, valid, weight)
    return (valid, total), (states, report, stack)


def _measure(
    setting: Setting,
    fleet: Fleet | tuple[()],
    lane: Lanes[jax.Array],
    round: Round,
    message: PyTree,
    upload: PyTree,
    info: Info,
) -> _Measurement:
    """Counts the bits of a client's round, and reads the clock."""
    bits = jnp.stack([size.traced_bits(upload), size.traced_bits(message)])
    metrics, dialogue = metrics_of(info), size.total_dialogue(upload)
    if dialogue is not None:
        metrics |= {"messages": dialogue.messages, "server_flops": dialogue.flops}
    late = silent = jnp.asarray(False)
    if setting.clock is not None and fleet:
        readings = read_clock(setting.clock, fleet, lane.ids, round.key, bits, dialogue, metrics)
        late, silent = readings["late"], readings["lost"] | readings["away"]
        metrics = {**metrics, **readings}
    if dialogue is not None:
        bits += jnp.where(silent, 0, jnp.stack([dialogue.up, dialogue.down]))
    # In alphabetical order, from which the meter knows the names.
    values = [jnp.asarray(metrics[name], jnp.float32) for name in sorted(metrics)]
    return _Measurement(bits, jnp.stack(values) if values else jnp.zeros(0, jnp.float32), late, silent)


def _receive(
    setting: Setting, round: Round, server: PyTree, profile: PyTree, upload: PyTree, weight: jax.Array
) -> tuple[PyTree, PyTree, jax.Array]:
    """Runs the server's reception of one upload.

    Returns:
      The client's profile; the contribution, which counts only if the upload arrives; and whether the
      contribution is valid: a contribution that the server trained must be finite.
    """
    receive, arrives = setting.algorithm.receive, weight > 0
    arguments = (round, server, profile, upload, weight)
    if not setting.server_trains:
        new_profile, contribution = receive(*arguments)
        return trees.where(arrives, new_profile, profile), contribution, jnp.asarray(True)
    # Training is worth a branch: without an upload, the scan over clients then skips it.
    _, shapes = jax.eval_shape(receive, *arguments)
    zeros = trees.zeros_like(shapes)
    profile, contribution = jax.lax.cond(arrives, lambda: receive(*arguments), lambda: (profile, zeros))
    return profile, contribution, trees.all_finite(contribution)


def _split_contribution(
    contribution: PyTree, valid: jax.Array, weight: jax.Array
) -> tuple[jax.Array, PyTree, PyTree]:
    """Splits a contribution into the part that is summed and the part that is stacked.

    Returns:
      Whether the first part is added; the first part; and the second part, zero where it is not added.
    """
    total = jax.tree.map(lambda node: Stack(()) if is_stack(node) else node, contribution, is_leaf=is_stack)
    # A weight of 0 does not silence a NaN: a contribution that does not arrive must not be added at all.
    valid = valid & (weight > 0)
    contribution = trees.where(valid, contribution, trees.zeros_like(contribution))
    stack = jax.tree.map(lambda node: node if is_stack(node) else (), contribution, is_leaf=is_stack)
    return valid, total, stack


def is_stack(node: object) -> bool:
    """Whether a node of a contribution arrives stacked."""
    return isinstance(node, Stack)
