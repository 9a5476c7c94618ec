"""One experiment in memory: rounds in chunks, evaluation between them, records for people.

:func:`run_rounds` is the only loop over rounds, of one run or of several in step; :func:`simulate` runs it
in memory, :func:`fedjax_masks.experiment.experiment.run_experiment` around a run directory.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_masks.core.algorithm import FederatedAlgorithm, State, Task
from fedjax_masks.core.progress import in_notebook
from fedjax_masks.costs.devices import Population
from fedjax_masks.experiment import hosts, platforms
from fedjax_masks.experiment.notes import notes
from fedjax_masks.experiment.progress import progress as show_progress
from fedjax_masks.experiment.records import Record, Totals, add, make_record, summarize
from fedjax_masks.simulation import AUTO, Batch, Evaluation, RoundMetrics, Storage, alone, make_simulation

_LOGGER = logging.getLogger("fedjax_masks")
_LONGEST_CHUNK = 10
_PATIENCE = 20.0  # seconds, after which a chunk ends early: for checkpoints, progress, and signals


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
      population: The clients' devices and links, see :func:`fedjax_masks.costs.devices.make_population`.
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
    quiet = not (in_notebook() if progress is None else progress)
    with show_progress("simulate", done=0, rounds=rounds, quiet=quiet) as show:
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
            totals[run] = add(totals[run], own, starts[run].wall_seconds + passed)
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
