"""The loop over rounds: chunks of rounds, evaluation between them, records.

:func:`run_rounds` is the only such loop, for one run or for several in step; :func:`simulate` calls it for a
run in memory, :func:`fedjax_masks.experiment.experiment.run_experiment` for a run directory.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from fedjax_masks.core.algorithm import FederatedAlgorithm, State, Task
from fedjax_masks.core.messages import warn
from fedjax_masks.core.options import Count, check
from fedjax_masks.core.progress import in_notebook
from fedjax_masks.costs.devices import Population
from fedjax_masks.experiment import hosts, platforms
from fedjax_masks.experiment.notes import cycle_note, evaluation_note, notes
from fedjax_masks.experiment.progress import progress as show_progress
from fedjax_masks.experiment.records import Record, Totals, add, make_record, summarize
from fedjax_masks.experiment.run import Chunk, Interrupted, OnChunk, Run
from fedjax_masks.experiment.signals import StopSignal
from fedjax_masks.simulation import AUTO, Evaluation, RoundMetrics, Simulation, Storage, make_simulation

_MAX_CHUNK = 10
_PATIENCE = 20.0  # seconds, after which a chunk ends early: for checkpoints, progress, and signals


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
      seed: The seed of the initial state, the cohorts and the order of examples.
      eval_every: Rounds between two evaluations; by default a twentieth of all rounds. The last
        round is always evaluated.
      plan: The execution plan; never changes results.
      population: The clients' devices and links, see :func:`fedjax_masks.costs.devices.make_population`.
      storage: The places of clients' states and training data between chunks; never changes results.
      eval_clients: The number of clients whose personal models are evaluated; None for all.
      on_chunk: Functions to call at the end of every chunk of rounds.
      progress: Whether to show the progress on stderr; by default only in a notebook.

    Raises:
      UserError: An argument is out of range.
    """
    platforms.check()
    check("rounds", rounds, Count)
    eval_every = -(-rounds // 20) if eval_every is None else eval_every
    check("eval_every", eval_every, Count)
    simulation = make_simulation(
        algorithm,
        task,
        cohort=cohort,
        seeds=(seed,),
        chunk=chunk_length(eval_every),
        plan=plan,
        population=population,
        storage=storage,
        eval_clients=eval_clients,
    )
    quiet = not (in_notebook() if progress is None else progress)
    with show_progress("simulate", start=0, rounds=rounds, quiet=quiet) as show:
        (run,) = run_rounds(
            simulation, simulation.init(), rounds=rounds, eval_every=eval_every, on_chunk=[[show, *on_chunk]]
        )
    return run


def chunk_length(eval_every: int) -> int:
    """Rounds per call of the engine; evaluation, records and checkpoints come between two calls."""
    return min(eval_every, _MAX_CHUNK)


def run_rounds(
    simulation: Simulation,
    state: State,
    *,
    rounds: int,
    eval_every: int,
    on_chunk: Sequence[Sequence[OnChunk]],
    starts: Sequence[Totals] | None = None,
    records: Sequence[Sequence[Record]] | None = None,
    stop_signal: StopSignal = lambda: 0,
) -> list[Run]:
    """Runs the rounds after ``starts``, of all runs of a simulation in step.

    Args:
      simulation: A simulation with a chunk of :func:`chunk_length`.
      state: The runs' state at ``starts``; donated.
      rounds: Rounds of the whole runs.
      eval_every: Rounds between two evaluations.
      on_chunk: For each run, functions to call at the end of every chunk.
      starts: For each run, the totals before; all with the same number of rounds.
      records: For each run, the records before.
      stop_signal: The signal that ends the runs after the current round.

    Returns:
      The runs. Their wall time is that of the simulation.

    Raises:
      Interrupted: A signal has ended the runs before their last round.
    """
    starts = [Totals()] * len(on_chunk) if starts is None else starts
    totals, (round,) = list(starts), {start.round for start in starts}
    histories = [list(history) for history in records or [()] * len(starts)]
    evaluations, pace, start_time, evaluate = None, Pace(), time.perf_counter(), _timed_evaluation(simulation)
    if message := cycle_note(eval_every, simulation.period, rounds):
        warn(message)
    while round < rounds:
        first = round
        last = _chunk_end(first, eval_every, rounds)
        state, metrics, pace = _advance(simulation, state, first, last, pace, stop_signal)
        round += len(metrics[0].ids)
        is_due = round % eval_every == 0 or round == rounds
        evaluations = evaluate(state, pace) if is_due else None
        seconds = time.perf_counter() - start_time
        ending = pace.signal > 0 and round < rounds
        for run, run_metrics in enumerate(metrics):
            totals[run] = add(totals[run], run_metrics, starts[run].wall_seconds + seconds)
            record = None
            if evaluations is not None:
                record = make_record(run_metrics, evaluations[run], totals[run], simulation.num_clients)
                histories[run].append(record)
            messages = notes(run_metrics, first, is_last=round == rounds)
            for message in messages:
                warn(message)
            run_state = simulation.take(state, run)
            chunk = Chunk(rounds, totals[run], run_state, run_metrics, record, messages, ending)
            for hook in on_chunk[run]:
                hook(chunk)
        if ending:
            raise Interrupted(round, pace.signal)
    evaluations = simulation.evaluate(state) if evaluations is None else evaluations
    return [
        Run(
            history,
            simulation.take(state, run),
            evaluation,
            summarize(history, evaluation, simulation, totals[run], pace.speed),
        )
        for run, (history, evaluation) in enumerate(zip(histories, evaluations))
    ]


def _timed_evaluation(simulation: Simulation) -> Callable[[State, "Pace"], list[Evaluation]]:
    """Evaluation, with one warning where it takes longer than the rounds."""
    last, has_warned = Pace(), False

    def evaluate(state: State, pace: Pace) -> list[Evaluation]:
        nonlocal last, has_warned
        start_time = time.perf_counter()
        evaluations = simulation.evaluate(state)
        seconds = time.perf_counter() - start_time
        message = evaluation_note(seconds, pace.seconds - last.seconds)
        if message and not has_warned:
            warn(message)
            has_warned = True
        last = pace
        return evaluations

    return evaluate


class Pace(NamedTuple):
    """The speed of rounds, and the signal that ends them.

    Attributes:
      rounds: Rounds that this process has run.
      seconds: Seconds of these rounds, without evaluation.
      round_seconds: Seconds per round in the last call of the engine; None before the first one.
      signal: The number of the signal that ends the run, or 0.
    """

    rounds: int = 0
    seconds: float = 0.0
    round_seconds: float | None = None
    signal: int = 0

    @property
    def speed(self) -> float | None:
        """Rounds per second; None without rounds."""
        return self.rounds / self.seconds if self.seconds else None


def _advance(
    simulation: Simulation, state: State, first: int, last: int, pace: Pace, stop_signal: StopSignal
) -> tuple[State, list[RoundMetrics], Pace]:
    """Runs the rounds of a chunk, or as many of them as patience and signals allow.

    A compiled program cannot be interrupted, so one call runs as many rounds as fit into the patience; the
    first call, whose duration is unknown, runs one.

    Returns:
      The state, for each run the metrics of the rounds that were run, and the pace.
    """
    parts, round, budget = [], first, _PATIENCE
    while round < last and budget > 0 and not pace.signal:
        number = 1
        if pace.round_seconds is not None:
            number = max(1, min(last - round, int(budget / max(pace.round_seconds, 1e-9))))
        start_time = time.perf_counter()
        state, metrics = simulation.run(state, round, number)
        # All processes must take the same next step, so they agree on the duration and on the signal.
        signal, seconds = hosts.agree(stop_signal(), time.perf_counter() - start_time)
        pace = Pace(pace.rounds + number, pace.seconds + seconds, seconds / number, int(signal))
        parts, round, budget = [*parts, metrics], round + number, budget - seconds
    metrics = [jax.tree.map(lambda *arrays: np.concatenate(arrays), *run_parts) for run_parts in zip(*parts)]
    return state, metrics, pace


def _chunk_end(first: int, eval_every: int, rounds: int) -> int:
    """The number of rounds at the end of the chunk that starts after ``first`` rounds."""
    return min(first + chunk_length(eval_every), (first // eval_every + 1) * eval_every, rounds)
