"""What a client's round takes on its device, and whether its update arrives at all."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core.algorithm import Metrics
from fedjax_masks.costs.devices import Population, round_seconds, spent

READINGS = ("away", "client_joules", "client_seconds", "late", "lost")
_FATE, _PRESENCE = 2**32 - 2, 2**32 - 3
"""Tell the keys that decide whether a client vanishes, or is there at all, from those it trains with."""


class Clock(NamedTuple):
    """Static choices.

    Attributes:
      population: Who takes part.
      static_bits: Bits of every upload and of every message that do not depend on data.
    """

    population: Population
    static_bits: Sequence[int]


def read_clock(
    clock: Clock,
    fleet: Any,
    client_id: jax.Array,
    key: chex.PRNGKey,
    bits: jax.Array,
    passed: jax.Array,
    metrics: Metrics,
) -> dict[str, jax.Array]:
    """Reads the clock for one client.

    Args:
      clock: Static choices.
      fleet: Of the whole population, as arrays on the device.
      client_id: ``int32[]``.
      key: The client's key of the round.
      bits: ``uint32[2]``: the parts of the upload's and of the message's bits that depend on data.
      passed: ``uint32[2]``: the bits that it sent and received in between.
      metrics: Of its training: ``flops``, ``traffic`` and ``messages``, those in between, count, where
        the algorithm has them.

    Returns:
      :data:`READINGS`. A client that is away is not asked; one that is lost spends what it takes to receive
      its message; one that is late has done everything in vain. Who has nothing to do or say, because the
      server trains on what it has kept, is none of these.
    """
    client = jax.tree.map(lambda a: a.at[client_id].get(mode="clip"), fleet)
    up, down = (jnp.float32(static) + traced for static, traced in zip(clock.static_bits, bits))
    asked = (up > 0) | (down > 0) | (metrics.get("flops", 0.0) > 0)
    presence, fate = (
        jax.random.uniform(jax.random.fold_in(key, number), (), jnp.float32) for number in (_PRESENCE, _FATE)
    )
    away = asked & (presence >= clock.population.available)
    lost = asked & ~away & (fate < clock.population.dropout)
    gone = away | lost
    up, down = jnp.where(gone, 0, up), jnp.where(away, 0, down)
    work = {n: jnp.where(gone, 0, metrics.get(n, 0.0)) for n in ("flops", "traffic", "messages")}
    between_up, between_down = jnp.where(gone, 0, passed.astype(jnp.float32))
    half = work["messages"] / 2  # question and answer take turns
    sent, received = half + (up > 0), half + (down > 0)
    work["messages"] = sent + received
    around = 8 * clock.population.overhead
    took = spent(client, up + between_up + around * sent, down + between_down + around * received, **work)
    late = ~gone & (took.seconds > clock.population.deadline)
    spent_by_it = {"client_joules": took.joules, "client_seconds": took.seconds}
    return {"away": away, "late": late, "lost": lost, **spent_by_it}


def sum_up(
    clock: Clock, readings: dict[str, np.ndarray], server_flops: np.ndarray | float
) -> dict[str, np.ndarray]:
    """Seconds and joules of whole rounds, from those of their clients, ``[rounds, cohort]``."""
    seconds, lost = readings["client_seconds"], readings["lost"] > 0
    return {
        "seconds": round_seconds(clock.population, seconds, lost, np.asarray(server_flops)),
        "joules": readings["client_joules"].sum(1, dtype=np.float64),
    }
