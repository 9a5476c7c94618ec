"""One round of federated learning, and a chunk of rounds, as traced programs."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import PyTree, Round, State
from fedjax_masks.core.info import metrics_of
from fedjax_masks.costs.profiles import Fleet
from fedjax_masks.simulation.arrays import Examples
from fedjax_masks.simulation.client import ClientReport, Setting, client_step, is_stack
from fedjax_masks.simulation.keys import SERVER_ID, client_key, round_key
from fedjax_masks.simulation.lanes import Lanes
from fedjax_masks.simulation.mapping import map_clients
from fedjax_masks.simulation.states import client_states, with_client_states


class RoundReport(NamedTuple):
    """The report of a round.

    Attributes:
      clients: One report per lane.
      server: The server's own metrics, ``float32[]`` each.
    """

    clients: ClientReport
    server: dict[str, jax.Array]


def round_step(
    setting: Setting,
    state: State,
    examples: Examples[jax.Array],
    lanes: Lanes[jax.Array],
    round: Round,
    fleet: Fleet | tuple[()] = (),
) -> tuple[State, RoundReport]:
    """Runs one round.

    Args:
      setting: The static choices.
      state: The simulation's state.
      examples: The training data.
      lanes: The cohort, distinct clients laid out under the plan.
      round: The round; the keys of its clients derive from its key.
      fleet: The fleet of the setting's clock.

    Returns:
      The new state, and the round's report.
    """
    states = client_states(state)
    # "clip" and "drop" below: padding has a position beyond the end. It reads any state, and writes none.
    old_states = jax.tree.map(lambda a: a.at[lanes.positions].get(mode="clip"), states)

    shared = (round, state.server, examples, fleet)
    total, (new_states, report, stack) = map_clients(
        partial(client_step, setting), shared, lanes, old_states, setting.plan
    )
    total = jax.tree.map(lambda a, b: b if is_stack(a) else a, total, stack, is_leaf=is_stack)
    arrivals = (report.values[:, 0] == 0) & (lanes.sizes > 0)
    server_round = round._replace(key=client_key(round.key, SERVER_ID))
    server, info = setting.algorithm.merge(server_round, state.server, total)
    server = _select_server(jnp.any(arrivals), server, state.server)
    states = jax.tree.map(lambda a, new: a.at[lanes.positions].set(new, mode="drop"), states, new_states)
    metrics = {} if info is None else metrics_of(info)
    metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
    return with_client_states(state._replace(server=server), states), RoundReport(report, metrics)


def _select_server(any_arrival: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """The new server's state, or the old state where no upload arrived."""
    # Frozen parts are the same tracer in both: without a selection, XLA makes no copy of them.
    return jax.tree.map(lambda a, b: b if a is b else jnp.where(any_arrival, a, b), new, old)


def run_chunk(
    setting: Setting,
    state: State,
    examples: Examples[jax.Array],
    key: chex.PRNGKey,
    first: jax.Array,
    num_rounds: jax.Array,
    cohorts: Lanes[jax.Array],
    fleet: Fleet | tuple[()] = (),
) -> tuple[State, RoundReport]:
    """Runs ``num_rounds`` rounds, starting with round ``first``.

    The number of rounds is traced, so that one program serves every number.

    Args:
      setting: The static choices.
      state: The simulation's state.
      examples: The training data.
      key: The key of all rounds.
      first: ``int32[]``: the number of the first round.
      num_rounds: ``int32[]``: at most ``chunk``.
      cohorts: ``int32[chunk, lanes]`` each: the rounds' cohorts.
      fleet: The fleet of the setting's clock.

    Returns:
      The state, and reports ``[chunk, ...]``, of which the first ``num_rounds`` are valid.
    """
    (chunk, _) = cohorts.ids.shape

    @jax.jit  # one trace serves both the shapes and the loop
    def one_round(state: State, step: jax.Array) -> tuple[State, RoundReport]:
        lanes = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, step, keepdims=False), cohorts)
        index = first + step
        return round_step(setting, state, examples, lanes, Round(round_key(key, index), index), fleet)

    _, report = jax.eval_shape(one_round, state, first)
    shape = jax.tree.map(lambda a: jax.ShapeDtypeStruct((chunk, *a.shape), a.dtype), report)

    def body(step: jax.Array, carry: tuple[State, RoundReport]) -> tuple[State, RoundReport]:
        state, history = carry
        state, report = one_round(state, step)
        update = partial(jax.lax.dynamic_update_index_in_dim, index=step, axis=0)
        return state, jax.tree.map(update, history, report)

    # The literal 0 would make ``step`` weakly typed: for jax, other arguments, so it would trace again.
    return jax.lax.fori_loop(jnp.int32(0), num_rounds, body, (state, trees.zeros_like(shape)))
