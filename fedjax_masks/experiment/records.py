"""Records of a run: one for each evaluated round, and a summary at the end."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsFloat

import jax
import numpy as np

from fedjax_masks.core.intervals import mean_over_period
from fedjax_masks.costs.clock import READINGS
from fedjax_masks.experiment import participation
from fedjax_masks.experiment.notes import count_broken, is_diverged
from fedjax_masks.simulation import Evaluation, RoundMetrics, Simulation

Record = dict[str, Any]

# Metrics of training that a record has under a key outside of "extra", or that serve the engine.
_NOT_EXTRA = (
    *("loss", "steps", "examples", "slots", "flops", "traffic", "density"),
    *("server_flops", "messages", "seconds", "joules"),
)
_ACCURACIES = ("global_accuracy", "personal_accuracy_mean", "personal_accuracy_mean_seen")


class Totals(NamedTuple):
    """Sums since round 0. The fields are keys of ``checkpoint.json``: renaming one breaks resumption.

    Attributes:
      round: The number of rounds.
      bytes_up: Bytes that all clients sent.
      bytes_down: Bytes that all clients received.
      wall_seconds: Seconds since the first round began, evaluations included.
      sim_seconds: Seconds of the simulated clock; 0 without a clock.
      energy_joules: Joules that all clients consumed; 0 without a clock.
      client_flops: FLOPs of all clients; 0 where training does not count them.
      server_flops: FLOPs of the server; 0 where it does not count them.
      clients_dropped: Updates left out of the merge.
      broken: Updates in a row that were not finite, see :func:`fedjax_masks.experiment.notes.count_broken`.
      seen: The clients that have trained, in the text form of :mod:`fedjax_masks.experiment.participation`.
    """

    round: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    wall_seconds: float = 0.0
    sim_seconds: float = 0.0
    energy_joules: float = 0.0
    client_flops: float = 0.0
    server_flops: float = 0.0
    clients_dropped: int = 0
    broken: int = 0
    seen: str = participation.EMPTY


def add(totals: Totals, metrics: RoundMetrics, wall_seconds: float) -> Totals:
    """Adds the rounds of a chunk to the totals.

    Args:
      totals: The totals before the chunk.
      metrics: The chunk's metrics.
      wall_seconds: Seconds since the first round began.
    """
    return Totals(
        totals.round + len(metrics.ids),
        totals.bytes_up + int(metrics.bytes_up.sum()),
        totals.bytes_down + int(metrics.bytes_down.sum()),
        wall_seconds,
        _accumulate(totals.sim_seconds, metrics.server.get("seconds", ())),
        _accumulate(totals.energy_joules, metrics.server.get("joules", ())),
        _accumulate(totals.client_flops, _flops(metrics)),
        _accumulate(totals.server_flops, metrics.server.get("flops", ())),
        totals.clients_dropped + int(metrics.dropped.sum()),
        count_broken(totals.broken, metrics),
        participation.add_trained(totals.seen, metrics),
    )


def _accumulate(total: float, rounds: Sequence[float] | np.ndarray) -> float:
    """Adds one round after the other, so that a sum does not depend on where chunks end."""
    return float(np.add.accumulate(np.array([total, *rounds], np.float64))[-1])


def _flops(metrics: RoundMetrics) -> np.ndarray:
    """FLOPs of all clients; none of those that were away or got lost: ``float64[rounds]``."""
    none = np.zeros_like(metrics.dropped)
    is_absent = np.any([metrics.train.get(name, none) > 0 for name in ("away", "lost")], axis=0)
    return np.where(is_absent, 0, metrics.train.get("flops", 0.0)).sum(1, dtype=np.float64)


def make_record(metrics: RoundMetrics, evaluation: Evaluation, totals: Totals, num_clients: int) -> Record:
    """The line of ``metrics.jsonl`` of a chunk's last round.

    Args:
      metrics: The chunk's metrics.
      evaluation: The evaluation after its last round.
      totals: The totals after its last round.
      num_clients: The number of all clients.

    Returns:
      Plain Python values; None where a key does not apply.
    """
    last = jax.tree.map(lambda a: a[-1:], metrics)
    server = {name: _number(values[0]) for name, values in last.server.items()}
    names = [name for name in last.train if name in READINGS or not last.dropped.all()]
    means = dict.fromkeys(last.train) | {name: _number(last.mean(name)[0]) for name in names}
    loss, clients_seen = means.get("loss", server.get("loss")), participation.count(totals.seen)
    extra = {name: value for name, value in (means | server).items() if name not in _NOT_EXTRA}
    has_trained = participation.members(totals.seen, evaluation.ids)
    probes = {name: _mean(accuracy) for name, accuracy in evaluation.probes.items()}
    probes |= {f"{name}_seen": _mean(accuracy[has_trained]) for name, accuracy in evaluation.probes.items()}
    return {
        "round": totals.round,
        "train_loss": loss,
        "global_accuracy": _number(evaluation.global_accuracy),
        **_spread(evaluation.personal),
        **_spread(evaluation.personal[has_trained], "_seen"),
        "clients_seen": clients_seen,
        "num_clients": num_clients,
        "bytes_up": int(last.bytes_up.sum()),
        "bytes_down": int(last.bytes_down.sum()),
        "bytes_up_total": totals.bytes_up,
        "bytes_down_total": totals.bytes_down,
        "client_flops": _number(_flops(last)[0] / last.ids.size) if "flops" in last.train else None,
        "client_flops_total": totals.client_flops if "flops" in last.train else None,
        "server_flops": server.get("flops"),
        "sim_seconds": totals.sim_seconds if "seconds" in server else None,
        "energy_joules": totals.energy_joules if "joules" in server else None,
        "density": means.get("density"),
        "cohort_size": last.ids.size,
        "clients_dropped": int(last.dropped.sum()),
        "diverged": is_diverged(totals.broken, clients_seen, loss),
        "wall_seconds": totals.wall_seconds,
        "extra": extra | probes,
    }


def _spread(personal: np.ndarray, suffix: str = "") -> dict[str, float | None]:
    """Mean and percentiles over clients; a client without test data has an accuracy of NaN."""
    finite = personal[np.isfinite(personal)]
    low, high = np.percentile(finite, (10, 90)) if finite.size else (None, None)
    return {
        f"personal_accuracy_mean{suffix}": _mean(finite),
        f"personal_accuracy_p10{suffix}": _number(low),
        f"personal_accuracy_p90{suffix}": _number(high),
    }


def summarize(
    records: Sequence[Record],
    evaluation: Evaluation,
    simulation: Simulation,
    totals: Totals,
    rounds_per_second: float | None,
) -> dict[str, Any]:
    """The content of ``summary.json``.

    Args:
      records: The records of the whole run.
      evaluation: The evaluation of the final state.
      simulation: The simulation of this process, whether or not it ran rounds.
      totals: The totals of the whole run.
      rounds_per_second: The speed of this process, without compilation and evaluation; None without rounds.
    """
    accuracies: dict[str, Any] = {"period": simulation.period}
    for name in _ACCURACIES:
        evaluated = [record for record in records if record.get(name) is not None]
        rounds, values = ([record[key] for record in evaluated] for key in ("round", name))
        accuracies |= {f"best_{name}": max(values, default=None)}
        accuracies |= {f"last_{name}": values[-1] if values else None}
        accuracies |= {f"cycle_{name}": mean_over_period(rounds, values, simulation.period)}
    stats = simulation.stats()._asdict()
    return {
        **records[-1],
        **_means_over_rounds(records[-1], totals),
        **accuracies,
        "rounds_per_second": rounds_per_second,
        **stats,
        "setup_bytes": simulation.setup_bytes,
        "memory_bytes": simulation.memory_bytes,
        "client_accuracy": [_number(accuracy) for accuracy in evaluation.personal],
        "client_ids": evaluation.ids.tolist(),
        "client_seen": participation.members(totals.seen, evaluation.ids).tolist(),
    }


def _means_over_rounds(last: Record, totals: Totals) -> dict[str, float | None]:
    """The mean over all rounds of each figure of a single round, where the last round has the figure."""
    sums = {
        "bytes_up": totals.bytes_up,
        "bytes_down": totals.bytes_down,
        "client_flops": totals.client_flops / last["cohort_size"],
        "server_flops": totals.server_flops,
        "clients_dropped": totals.clients_dropped,
    }
    return {key: None if last[key] is None else value / totals.round for key, value in sums.items()}


def _number(value: SupportsFloat | None) -> float | None:
    """A float for JSON, which knows neither NaN nor infinity."""
    return float(value) if value is not None and math.isfinite(float(value)) else None


def _mean(values: np.ndarray) -> float | None:
    """The mean of finite values; a client without test data has an accuracy of NaN."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None
