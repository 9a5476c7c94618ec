"""From what the programs report to what a simulation tells: bytes, metrics and the clock's readings."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.communication import size
from fedjax_masks.costs import clock
from fedjax_masks.costs.devices import Population
from fedjax_masks.simulation.mapping import Rows
from fedjax_masks.simulation.records import RoundMetrics
from fedjax_masks.simulation.round import RoundReport
from fedjax_masks.simulation.tracing import Shapes


class Meter(NamedTuple):
    """What it takes to read the reports of a simulation.

    Attributes:
      cohort: Clients per round.
      metrics: The names of a client's metrics, sorted.
      static_bits: Of an upload and of a message, without what depends on data.
      clock: The simulation's, or None.
      fleet: What the clock runs by, as arrays; empty without one.
    """

    cohort: int
    metrics: list[str]
    static_bits: list[int]
    clock: clock.Clock | None
    fleet: Any


def make_meter(shapes: Shapes, cohort: int, population: Population | None) -> Meter:
    """The meter of a simulation whose clients handle these shapes."""
    static_bits = [size.static_bits(sent) for sent in (shapes.upload, shapes.message)]
    if population is None:
        return Meter(cohort, shapes.metrics, static_bits, None, ())
    timer, fleet = clock.Clock(population, static_bits), jax.tree.map(jnp.asarray, population.fleet)
    return Meter(cohort, shapes.metrics, static_bits, timer, fleet)


def read(meter: Meter, cohorts: Rows, report: RoundReport) -> RoundMetrics:
    """What each client did, in the order of ids, without padding, whose id is larger than any client's.

    Args:
      meter: Of the simulation.
      cohorts: ``int32[rounds, rows]`` each: who took part.
      report: Of the same rounds, on the host.
    """
    cohort, timer = meter.cohort, meter.clock
    order = np.argsort(cohorts.ids, axis=1)[:, :cohort]
    clients = report.clients

    def pick(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, order, 1)

    dropped, trained, *values = (pick(column) for column in np.moveaxis(np.asarray(clients.values), -1, 0))
    # Bits of large payloads are beyond the range of the device's 32 bits.
    bits = [pick(traced).astype(np.int64) for traced in np.moveaxis(np.asarray(clients.bits), -1, 0)]
    bytes_up, bytes_down = ((static + traced + 7) // 8 for static, traced in zip(meter.static_bits, bits))
    names = meter.metrics if timer is None else sorted((*meter.metrics, *clock.READINGS))
    train = dict(zip(names, values, strict=True))
    server = {name: np.asarray(values) for name, values in report.server.items()}
    gone = np.zeros_like(dropped) if timer is None else train["lost"] + train["away"]
    if "server_flops" in train:  # its half of what clients train with its help
        helped = np.where(gone > 0, 0, train["server_flops"]).sum(1, dtype=np.float64)
        server["flops"] = helped + server.get("flops", 0.0)
    if timer is not None:
        bytes_up = np.where(gone > 0, 0, bytes_up)
        bytes_down = np.where(train["away"] > 0, 0, bytes_down)
        server |= clock.sum_up(timer, train, server.get("flops", 0.0))
    return RoundMetrics(
        ids=pick(cohorts.ids),
        weight=np.where(dropped > 0, 0, pick(cohorts.sizes)).astype(np.float32),
        dropped=dropped > 0,
        trained=(trained > 0) & (train.get("examples", trained) > 0),
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        train=train,
        server=server,
    )
