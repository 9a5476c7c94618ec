"""Metrics from the reports of a simulation's programs: bytes, weights, and the clock's readings."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.communication import size
from fedjax_masks.costs import clock
from fedjax_masks.costs.profiles import Fleet, Population
from fedjax_masks.simulation.lanes import Lanes
from fedjax_masks.simulation.records import RoundMetrics
from fedjax_masks.simulation.round import RoundReport
from fedjax_masks.simulation.tracing import Shapes


class Meter(NamedTuple):
    """The static data for reading the reports of a simulation.

    Attributes:
      cohort: Clients per round.
      names: The names of a client's metrics, sorted.
      static_bits: The static bits of an upload and of a message.
      clock: The simulation's clock, or None.
      fleet: The fleet of the clock, as arrays; empty without a clock.
    """

    cohort: int
    names: list[str]
    static_bits: list[int]
    clock: clock.Clock | None
    fleet: Fleet | tuple[()]


def make_meter(shapes: Shapes, cohort: int, population: Population | None) -> Meter:
    """Makes the meter of a simulation whose clients have these shapes."""
    static_bits = [size.static_bits(payload) for payload in (shapes.upload, shapes.message)]
    if population is None:
        return Meter(cohort, shapes.metrics, static_bits, None, ())
    names = sorted((*shapes.metrics, *clock.READINGS))
    fleet = jax.tree.map(jnp.asarray, population.fleet)
    return Meter(cohort, names, static_bits, clock.Clock(population, static_bits), fleet)


def read_metrics(meter: Meter, cohorts: Lanes[np.ndarray], report: RoundReport) -> RoundMetrics:
    """Reads the reports of some rounds.

    Args:
      meter: The meter of the simulation.
      cohorts: ``int32[rounds, lanes]`` each: the cohorts of the rounds.
      report: The reports of the rounds, on the host.
    """
    # In the order of ids; the ids of padding are larger than those of clients.
    order, idle = np.split(np.argsort(cohorts.ids, axis=1), [meter.cohort], axis=1)

    def pick(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, order, 1)

    columns = np.moveaxis(np.asarray(report.clients.values), -1, 0)
    dropped, trained, *values = map(pick, columns)
    train = dict(zip(meter.names, values, strict=True))
    silent = np.zeros_like(dropped) if meter.clock is None else train["lost"] + train["away"]
    bytes_up, bytes_down = _bytes(meter, report, pick)
    if meter.clock is not None:
        bytes_up = np.where(silent > 0, 0, bytes_up)
        bytes_down = np.where(train["away"] > 0, 0, bytes_down)
    return RoundMetrics(
        ids=pick(cohorts.ids),
        weight=np.where(dropped > 0, 0, pick(cohorts.sizes)).astype(np.float32),
        dropped=dropped > 0,
        trained=(trained > 0) & (train.get("examples", trained) > 0),
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        train=train,
        server=_server_metrics(meter, report, train, silent),
        idle_slots=_idle_slots(meter, columns[2:], idle),
    )


def _idle_slots(meter: Meter, columns: np.ndarray, idle: np.ndarray) -> np.ndarray:
    """The places for examples in lanes without a client, ``float64[rounds]``."""
    if "slots" not in meter.names:
        return np.zeros(len(idle))
    slots = columns[meter.names.index("slots")]
    return np.take_along_axis(slots, idle, 1).sum(1, dtype=np.float64)


def _bytes(
    meter: Meter, report: RoundReport, pick: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, ...]:
    """The bytes of uploads and of messages, ``int64[rounds, cohort]`` each."""
    # On the host: the static bits of large payloads exceed the device's 32-bit integers.
    traced = [pick(bits).astype(np.int64) for bits in np.moveaxis(np.asarray(report.clients.bits), -1, 0)]
    return tuple((static + bits + 7) // 8 for static, bits in zip(meter.static_bits, traced))


def _server_metrics(
    meter: Meter, report: RoundReport, train: dict[str, np.ndarray], silent: np.ndarray
) -> dict[str, np.ndarray]:
    """The server's metrics, with its work for clients during their training, and the lengths of rounds."""
    server = {name: np.asarray(values) for name, values in report.server.items()}
    if "server_flops" in train:
        flops = np.where(silent > 0, 0, train["server_flops"]).sum(1, dtype=np.float64)
        server["flops"] = flops + server.get("flops", 0.0)
    if meter.clock is not None:
        server |= clock.sum_up(meter.clock, train, server.get("flops", 0.0))
    return server
