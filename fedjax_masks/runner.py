"""One experiment in memory: rounds in chunks, evaluation between them, records for people.

:func:`run_rounds` is the only loop over rounds, of one run or of several in step; :func:`simulate` runs it
in memory, :func:`fedjax_masks.experiment.run_experiment` around a run directory.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_masks import hosts, participation, platforms, telemetry
from fedjax_masks.algorithm import FederatedAlgorithm, State, Task
from fedjax_masks.devices import Population
from fedjax_masks.notes import count_broken, is_diverged, notes
from fedjax_masks.simulation import AUTO, Batch, Evaluation, RoundMetrics, Storage, alone, make_simulation

Record = dict[str, Any]

_LOGGER = logging.getLogger("fedjax_masks")
_LONGEST_CHUNK = 10
_PATIENCE = 20.0  # seconds, after which a chunk ends early: for checkpoints, progress, and signals
# Metrics of training that have a place of their own in a record, or serve the engine.
_NOT_EXTRA = (
    *("loss", "steps", "examples", "slots", "flops", "traffic", "density"),
    *("server_flops", "messages", "seconds", "joules"),
)
_ACCURACIES = ("global_accuracy", "personal_accuracy_mean", "personal_accuracy_mean_seen")


class Totals(NamedTuple):
    """What has added up since round 0.

    Attributes:
      round: Rounds done.
      bytes_up: Bytes that all clients sent.
      bytes_down: Bytes that all clients received.
      wall_seconds: Seconds since the first round began, evaluations included.
      sim_seconds: What the rounds took by the simulation's clock; 0 without one.
      energy_joules: What all clients spent; 0 without a clock.
      client_flops: FLOPs that all clients computed; 0 where training does not count them.
      server_flops: FLOPs that the server computed; 0 where it does not count them.
      clients_dropped: Updates left out of the merge.
      broken: Updates in a row that were not finite, see :func:`fedjax_masks.notes.count_broken`.
      seen: The clients that have trained, as :mod:`fedjax_masks.participation` writes them.
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
    seen: str = participation.NOBODY


class Chunk(NamedTuple):
    """What is known at the end of a chunk of rounds.

    Attributes:
      rounds: Rounds of the whole run.
      totals: Up to and with this chunk.
      state: The state; valid only until the next chunk starts.
      metrics: Of the chunk's rounds.
      record: The evaluated round's line of ``metrics.jsonl``, else None.
      notes: What a person should be told, one line each.
      ending: Whether the run ends here, because a signal has asked for it, though rounds are left.
    """

    rounds: int
    totals: Totals
    state: State
    metrics: RoundMetrics
    record: Record | None
    notes: tuple[str, ...]
    ending: bool = False


OnChunk = Callable[[Chunk], None]


class Interrupted(Exception):
    """A run that a signal has ended between two rounds.

    Attributes:
      round: Rounds done.
      signal: The signal's number.
    """

    def __init__(self, round: int, signal: int) -> None:
        super().__init__(f"stopped after round {round}")
        self.round, self.signal = round, signal


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
      records: One dict per evaluated round, with the keys of ``metrics.jsonl``.
      state: The final state.
      evaluation: The final evaluation.
      summary: The last of each key, totals, best and last accuracies, and timings.
      config: The content of ``config.json``; empty for a run in memory.
      directory: The run directory; None for a run in memory.
    """

    records: list[Record]
    state: State
    evaluation: Evaluation
    summary: dict[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    directory: Path | None = None

    def plot(self) -> Any:
        """A matplotlib figure: accuracy against rounds and against bytes."""
        from fedjax_masks.analysis import RunRecord, plot_run

        name = "run" if self.directory is None else self.directory.name
        return plot_run(RunRecord(name, dict(self.config), self.records, self.summary))


def simulate(
    algorithm: FederatedAlgorithm,
    task: Task,
    *,
    rounds: int,
    cohort: int,
    seed: int = 0,
    eval_every: int | None = None,
    plan: str = "auto",
    population: Population | None = None,
    storage: Storage = AUTO,
    eval_clients: int | None = None,
    on_chunk: Sequence[OnChunk] = (),
    progress: bool | None = None,
) -> Run:
    """Simulates an algorithm on a task, in memory.

    Args:
      algorithm: The algorithm.
      task: Data and clients.
      rounds: Rounds of federated learning.
      cohort: Clients per round.
      seed: Decides everything random.
      eval_every: Rounds between two evaluations; by default a twentieth of all rounds. The last
        round is always evaluated.
      plan: An execution plan; never changes results.
      population: The clients' devices and links, see :func:`fedjax_masks.devices.make_population`.
      storage: Where clients' states and training data lie between chunks; never changes results.
      eval_clients: Evaluate the own models of so many clients only; None for all.
      on_chunk: Called at the end of every chunk of rounds.
      progress: Whether to show the progress on stderr; by default only in a notebook.

    Raises:
      ValueError: An argument is out of range.
    """
    platforms.check()
    eval_every = -(-rounds // 20) if eval_every is None else eval_every
    for name, value in (("rounds", rounds), ("eval_every", eval_every)):
        if value < 1:
            raise ValueError(f"{name}={value}: at least 1 is accepted")
    simulation = make_simulation(
        algorithm,
        task,
        cohort=cohort,
        seed=seed,
        chunk=chunk_length(eval_every),
        plan=plan,
        population=population,
        storage=storage,
        eval_clients=eval_clients,
    )
    batch = alone(simulation)
    quiet = not (telemetry.in_notebook() if progress is None else progress)
    with telemetry.progress("simulate", done=0, rounds=rounds, quiet=quiet) as show:
        (run,) = run_rounds(
            batch, batch.init(), rounds=rounds, eval_every=eval_every, on_chunk=[[show, *on_chunk]]
        )
    return run


def chunk_length(eval_every: int) -> int:
    """Rounds per call of the engine; evaluation, records and checkpoints come between two."""
    return min(eval_every, _LONGEST_CHUNK)


def run_rounds(
    batch: Batch,
    state: State,
    *,
    rounds: int,
    eval_every: int,
    on_chunk: Sequence[Sequence[OnChunk]],
    starts: Sequence[Totals] | None = None,
    records: Sequence[Sequence[Record]] | None = None,
    asked: Callable[[], int] = lambda: 0,
) -> list[Run]:
    """Runs the rounds after ``starts``, of all runs of a batch in step.

    Args:
      batch: Made with a chunk of :func:`chunk_length`; one simulation as :func:`alone` gives it.
      state: The runs' state at ``starts``; donated.
      rounds: Rounds of the whole runs.
      eval_every: Rounds between two evaluations.
      on_chunk: For each run, what is called at the end of every chunk.
      starts: For each run, what had added up before; the same number of rounds in all.
      records: For each run, the records up to its start.
      asked: ``() -> int``: the signal that asks the runs to end after the current round, else 0.

    Returns:
      The runs. Their wall time is that of the batch.

    Raises:
      Interrupted: A signal has come, and rounds are left.
    """
    starts = [Totals()] * len(on_chunk) if starts is None else starts
    totals, (done,) = list(starts), {start.round for start in starts}
    kept = [list(own) for own in records or [()] * len(starts)]
    evaluations, pace, began = None, Pace(), time.perf_counter()
    while done < rounds:
        first, last = done, _stop(done, eval_every, rounds)
        state, metrics, pace = _advance(batch, state, first, last, pace, asked)
        done += len(metrics[0].ids)
        evaluated = done % eval_every == 0 or done == rounds
        evaluations = batch.evaluate(state) if evaluated else None
        passed = time.perf_counter() - began
        ending = pace.signal > 0 and done < rounds
        for run, own in enumerate(metrics):
            totals[run] = _add(totals[run], own, starts[run].wall_seconds + passed)
            if evaluations is not None:
                kept[run].append(make_record(own, evaluations[run], totals[run], batch.num_clients))
            told = notes(own, first)
            for note in told:
                _LOGGER.warning(note)
            record = kept[run][-1] if evaluated else None
            chunk = Chunk(rounds, totals[run], batch.take(state, run), own, record, told, ending)
            for hook in on_chunk[run]:
                hook(chunk)
        if ending:
            raise Interrupted(done, pace.signal)
    evaluations = batch.evaluate(state) if evaluations is None else evaluations
    return [
        Run(
            own,
            batch.take(state, run),
            evaluation,
            summarize(own, evaluation, batch, totals[run], pace.speed),
        )
        for run, (own, evaluation) in enumerate(zip(kept, evaluations))
    ]


class Pace(NamedTuple):
    """How fast rounds go, and whether they are to end.

    Attributes:
      rounds: Rounds done by this process.
      seconds: Spent on them, without evaluation.
      last: Seconds that each of the last rounds took; None before the first one.
      signal: The signal that has asked for the end, or 0.
    """

    rounds: int = 0
    seconds: float = 0.0
    last: float | None = None
    signal: int = 0

    @property
    def speed(self) -> float | None:
        """Rounds per second; None without rounds."""
        return self.rounds / self.seconds if self.seconds else None


def _advance(
    batch: Batch, state: State, first: int, last: int, pace: Pace, asked: Callable[[], int]
) -> tuple[State, list[RoundMetrics], Pace]:
    """Runs the rounds of a chunk, or as many of them as patience and signals allow.

    A compiled program cannot be interrupted, so one call runs as many rounds as fit into the patience; the
    first one, whose rounds take nobody knows how long, runs one.

    Returns:
      The state, for each run the metrics of the rounds that were run, and the pace.
    """
    parts, done, left = [], first, _PATIENCE
    while done < last and left > 0 and not pace.signal:
        number = 1 if pace.last is None else max(1, min(last - done, int(left / max(pace.last, 1e-9))))
        began = time.perf_counter()
        state, metrics = batch.run(state, done, number)
        # All processes must do the same next, so they agree on the time that has passed and on the signal.
        signal, seconds = hosts.agree(asked(), time.perf_counter() - began)
        pace = Pace(pace.rounds + number, pace.seconds + seconds, seconds / number, int(signal))
        parts, done, left = [*parts, metrics], done + number, left - seconds
    joined = [jax.tree.map(lambda *each: np.concatenate(each), *own) for own in zip(*parts)]
    return state, joined, pace


def _stop(first: int, eval_every: int, rounds: int) -> int:
    """The last round of the chunk that starts after round ``first``."""
    return min(first + chunk_length(eval_every), (first // eval_every + 1) * eval_every, rounds)


def _add(totals: Totals, metrics: RoundMetrics, wall_seconds: float) -> Totals:
    return Totals(
        totals.round + len(metrics.ids),
        totals.bytes_up + int(metrics.bytes_up.sum()),
        totals.bytes_down + int(metrics.bytes_down.sum()),
        wall_seconds,
        _plus(totals.sim_seconds, metrics.server.get("seconds", ())),
        _plus(totals.energy_joules, metrics.server.get("joules", ())),
        _plus(totals.client_flops, _flops(metrics)),
        _plus(totals.server_flops, metrics.server.get("flops", ())),
        totals.clients_dropped + int(metrics.dropped.sum()),
        count_broken(totals.broken, metrics),
        participation.add_trained(totals.seen, metrics),
    )


def _plus(total: float, rounds: Sequence[float] | np.ndarray) -> float:
    """Adds one round after the other, so that a sum does not depend on where chunks end."""
    return float(np.add.accumulate(np.array([total, *rounds], np.float64))[-1])


def _flops(metrics: RoundMetrics) -> np.ndarray:
    """``float64[rounds]``: FLOPs of all clients; those that were never asked, or vanished, have none."""
    nobody = np.zeros_like(metrics.dropped)
    gone = np.any([metrics.train.get(name, nobody) > 0 for name in ("away", "lost")], axis=0)
    return np.where(gone, 0, metrics.train.get("flops", 0.0)).sum(1, dtype=np.float64)


def make_record(metrics: RoundMetrics, evaluation: Evaluation, totals: Totals, num_clients: int) -> Record:
    """The line of ``metrics.jsonl`` of a chunk's last round.

    Args:
      metrics: Of the chunk.
      evaluation: After its last round.
      totals: After its last round.
      num_clients: Of the task.

    Returns:
      Plain Python values; None where a key does not apply.
    """
    last = jax.tree.map(lambda a: a[-1:], metrics)
    own = {name: _number(values[0]) for name, values in last.server.items()}
    means = {name: None if last.dropped.all() else _number(last.mean(name)[0]) for name in last.train}
    loss, clients_seen = means.get("loss", own.get("loss")), participation.count(totals.seen)
    extra = {name: value for name, value in (means | own).items() if name not in _NOT_EXTRA}
    trained = participation.members(totals.seen, evaluation.ids)
    probes = {name: _mean(accuracy) for name, accuracy in evaluation.probes.items()}
    probes |= {f"{name}_seen": _mean(accuracy[trained]) for name, accuracy in evaluation.probes.items()}
    return {
        "round": totals.round,
        "train_loss": loss,
        "global_accuracy": _number(evaluation.global_accuracy),
        **_spread(evaluation.personal),
        **_spread(evaluation.personal[trained], "_seen"),
        "clients_seen": clients_seen,
        "num_clients": num_clients,
        "bytes_up": int(last.bytes_up.sum()),
        "bytes_down": int(last.bytes_down.sum()),
        "bytes_up_total": totals.bytes_up,
        "bytes_down_total": totals.bytes_down,
        "client_flops": _number(_flops(last)[0] / last.ids.size) if "flops" in last.train else None,
        "client_flops_total": totals.client_flops if "flops" in last.train else None,
        "server_flops": own.get("flops"),
        "sim_seconds": totals.sim_seconds if "seconds" in own else None,
        "energy_joules": totals.energy_joules if "joules" in own else None,
        "density": means.get("density"),
        "cohort_size": last.ids.size,
        "clients_dropped": int(last.dropped.sum()),
        "diverged": is_diverged(totals.broken, clients_seen, loss),
        "wall_seconds": totals.wall_seconds,
        "extra": extra | probes,
    }


def _spread(personal: np.ndarray, suffix: str = "") -> dict[str, float | None]:
    """Mean and percentiles over clients; a client without test data has an accuracy of NaN."""
    known = personal[np.isfinite(personal)]
    low, high = np.percentile(known, (10, 90)) if known.size else (None, None)
    return {
        f"personal_accuracy_mean{suffix}": _mean(known),
        f"personal_accuracy_p10{suffix}": _number(low),
        f"personal_accuracy_p90{suffix}": _number(high),
    }


def summarize(
    records: Sequence[Record],
    evaluation: Evaluation,
    batch: Batch,
    totals: Totals,
    rounds_per_second: float | None,
) -> dict[str, Any]:
    """The content of ``summary.json``.

    Args:
      records: Of the whole run.
      evaluation: Of the final state.
      batch: That ran, or would have run, its end.
      totals: Of the whole run.
      rounds_per_second: Of this process, without compilation and evaluation.
    """
    accuracies = {}
    for name in _ACCURACIES:
        values = [record[name] for record in records if record.get(name) is not None]
        accuracies |= {f"best_{name}": max(values, default=None)}
        accuracies |= {f"last_{name}": values[-1] if values else None}
    stats = batch.stats()._asdict()
    return {
        **records[-1],
        **_means_over_rounds(records[-1], totals),
        **accuracies,
        "rounds_per_second": rounds_per_second,
        **stats,
        "setup_bytes": batch.setup_bytes,
        "memory_bytes": batch.memory_bytes,
        "client_accuracy": [_number(accuracy) for accuracy in evaluation.personal],
        "client_ids": evaluation.ids.tolist(),
        "client_seen": participation.members(totals.seen, evaluation.ids).tolist(),
    }


def _means_over_rounds(last: Record, totals: Totals) -> dict[str, float | None]:
    """For each figure of a single round, its mean over all rounds, where the last round has it."""
    sums = {
        "bytes_up": totals.bytes_up,
        "bytes_down": totals.bytes_down,
        "client_flops": totals.client_flops / last["cohort_size"],
        "server_flops": totals.server_flops,
        "clients_dropped": totals.clients_dropped,
    }
    return {key: None if last[key] is None else value / totals.round for key, value in sums.items()}


def _number(value: Any) -> float | None:
    """A float for JSON, which knows neither NaN nor infinity."""
    return float(value) if value is not None and np.isfinite(value) else None


def _mean(values: np.ndarray) -> float | None:
    """The mean of what is finite; a client without test data has an accuracy of NaN."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None
