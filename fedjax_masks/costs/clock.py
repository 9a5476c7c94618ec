"""The simulated clock: seconds and joules of a client's round, and the arrival of its upload.

A client's time consists of its own computation and its own exact bytes and messages: FLOPs at the rate of its
device, the traffic of its matrix products at the rate of its memory (FLOPs alone underestimate early layers),
bits at the rates of its link, and half a round trip per message.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.communication.payload import Dialogue
from fedjax_masks.costs.profiles import Fleet, Population, Real

READINGS = ("away", "client_joules", "client_seconds", "late", "lost")
"""The metrics of :func:`read_clock`, in alphabetical order."""

_LOSS, _PRESENCE = 2**32 - 2, 2**32 - 3
"""Constants of the keys that decide whether a client is lost, or is present; client ids are smaller."""


class Clock(NamedTuple):
    """The static settings of a clock.

    Attributes:
      population: The devices, and the conditions of rounds.
      static_bits: Bits of every upload and of every message that do not depend on data.
    """

    population: Population
    static_bits: Sequence[int]


class Cost(NamedTuple):
    """The cost of a client's round.

    Attributes:
      seconds: ``float32[]``.
      joules: ``float32[]``.
    """

    seconds: jax.Array
    joules: jax.Array


def round_cost(
    client: Fleet, bits_up: Real, bits_down: Real, *, flops: Real, traffic: Real = 0.0, messages: Real = 2.0
) -> Cost:
    """Computes time and energy of one client's round.

    Args:
      client: The client's device and link, or those of all clients.
      bits_up: Bits that the client sends.
      bits_down: Bits that the client receives.
      flops: FLOPs that the client computes.
      traffic: Bytes that the client's products read and write.
      messages: Messages in both directions.

    >>> from fedjax_masks.costs.profiles import DEVICES, LINKS
    >>> rpi = Fleet(*DEVICES["rpi4"], *LINKS["wifi"])
    >>> cost = round_cost(rpi, 60e6, 0, flops=5e9)  # 1 s to send, 2 s to compute, and a round trip
    >>> round(float(cost.seconds), 3), round(float(cost.joules), 3)
    (3.05, 13.2)
    """
    computing = jnp.float32(flops) / client.flops + jnp.float32(traffic) / client.memory
    sending = jnp.float32(bits_up) / client.up + jnp.float32(bits_down) / client.down
    waiting = jnp.float32(messages) * client.latency / 2
    joules = computing * client.compute_watts + sending * client.radio_watts
    return Cost(computing + sending + waiting, joules)


def read_clock(
    clock: Clock,
    fleet: Fleet,
    client_id: jax.Array,
    key: chex.PRNGKey,
    bits: jax.Array,
    dialogue: Dialogue | None,
    metrics: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
    """Reads the clock for one client.

    A client that is away gets no message. A client that is lost has only the cost of receiving its message. A
    client that is late has the full cost. A client without any work or message, because the server trains on
    earlier uploads, is neither away nor lost.

    Args:
      clock: The static settings.
      fleet: The devices and links of all clients, as arrays on the device.
      client_id: ``int32[]``.
      key: The client's key of the round.
      bits: ``uint32[2]``: the data-dependent bits of the upload and of the message.
      dialogue: The client's dialogue with the server within the round.
      metrics: Metrics of the training; of these, ``flops``, ``traffic`` and ``messages`` within the round
        have a cost.

    Returns:
      The metrics :data:`READINGS`, each of shape ``[]``.
    """
    client = jax.tree.map(lambda a: a.at[client_id].get(mode="clip"), fleet)
    up, down = (jnp.float32(static) + traced for static, traced in zip(clock.static_bits, bits))
    participates = (up > 0) | (down > 0) | (metrics.get("flops", 0.0) > 0)
    presence, loss = (
        jax.random.uniform(jax.random.fold_in(key, number), (), jnp.float32) for number in (_PRESENCE, _LOSS)
    )
    away = participates & (presence >= clock.population.available)
    lost = participates & ~away & (loss < clock.population.dropout)
    silent = away | lost
    up, down = jnp.where(silent, 0, up), jnp.where(away, 0, down)
    work = {n: jnp.where(silent, 0, metrics.get(n, 0.0)) for n in ("flops", "traffic", "messages")}
    dialogue_bits = (jnp.uint32(0), jnp.uint32(0)) if dialogue is None else (dialogue.up, dialogue.down)
    dialogue_up, dialogue_down = (jnp.where(silent, 0, bits.astype(jnp.float32)) for bits in dialogue_bits)
    half = work["messages"] / 2  # questions and answers alternate
    messages_up, messages_down = half + (up > 0), half + (down > 0)
    work["messages"] = messages_up + messages_down
    overhead = 8 * clock.population.overhead
    cost = round_cost(
        client,
        up + dialogue_up + overhead * messages_up,
        down + dialogue_down + overhead * messages_down,
        **work,
    )
    late = ~silent & (cost.seconds > clock.population.deadline)
    costs = {"client_joules": cost.joules, "client_seconds": cost.seconds}
    return {"away": away, "late": late, "lost": lost, **costs}


def sum_up(
    clock: Clock, readings: dict[str, np.ndarray], server_flops: np.ndarray | float
) -> dict[str, np.ndarray]:
    """Computes seconds and joules of whole rounds from the readings of clients, ``[rounds, cohort]``."""
    seconds, lost = readings["client_seconds"], readings["lost"] > 0
    return {
        "seconds": round_seconds(clock.population, seconds, lost, np.asarray(server_flops)),
        "joules": readings["client_joules"].sum(1, dtype=np.float64),
    }


def round_seconds(
    population: Population, seconds: np.ndarray, lost: np.ndarray, server_flops: np.ndarray
) -> np.ndarray:
    """Computes the length of rounds: the time of the slowest client, at most the deadline, then the server's.

    Args:
      population: The population, for the deadline and the server.
      seconds: ``[rounds, cohort]``: the clients' times.
      lost: ``bool[rounds, cohort]``: the clients that do not answer. The server waits for them until the
        deadline; without a deadline, the server does not wait.
      server_flops: ``[rounds]``.

    Returns:
      ``float64[rounds]``.
    """
    slowest = np.where(lost, 0.0, np.asarray(seconds, np.float64)).max(1)
    if math.isfinite(population.deadline):
        slowest = np.where(lost.any(1), population.deadline, np.minimum(slowest, population.deadline))
    return slowest + server_flops / population.server.flops
