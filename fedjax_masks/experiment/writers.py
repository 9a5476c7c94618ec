"""Files that grow during a run: records, notes and checkpoints, written at the end of every chunk."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fedjax_masks.core.messages import warn
from fedjax_masks.experiment import checkpoint, disk, run_directory
from fedjax_masks.experiment.config import Config
from fedjax_masks.experiment.records import Record
from fedjax_masks.experiment.run import Chunk, OnChunk
from fedjax_masks.simulation import Store


def chunk_writers(
    outs: Sequence[Path],
    config: Config,
    logs: Sequence[Callable[[Record], None]],
    failures: list[int] | None = None,
    store: Store | None = None,
) -> list[list[OnChunk]]:
    """Functions that write each run's records, notes and checkpoints at the end of a chunk.

    Args:
      outs: The runs' directories.
      config: The configuration of any of the runs.
      logs: For each run, a function that takes its records.
      failures: For each run, the number of checkpoints that could not be written; counted in place.
      store: The store of the run's client states, where they are on the host.
    """
    saves = _checkpoints(outs, config, [0] * len(outs) if failures is None else failures, store)
    return [[_journal(out, log), save] for out, log, save in zip(outs, logs, saves)]


def _journal(out: Path, log: Callable[[Record], None]) -> OnChunk:
    """A function that appends notes to their file, and passes records on."""

    def write(chunk: Chunk) -> None:
        if chunk.notes:
            disk.append(out / run_directory.LOG, "".join(note + "\n" for note in chunk.notes))
        if chunk.record is not None:
            log(chunk.record)

    return write


def _checkpoints(
    outs: Sequence[Path], config: Config, failures: list[int], store: Store | None
) -> list[OnChunk]:
    """Functions that save a checkpoint, if the time for checkpoints stays within its share.

    The first of several runs decides for all, so that their checkpoints are of the same rounds.
    """
    start_time, total_cost, cost, is_due = time.perf_counter(), 0.0, None, False
    is_failing = [False] * len(outs)

    def save(run: int, chunk: Chunk) -> None:
        nonlocal total_cost, cost, is_due
        save_start, is_last = time.perf_counter(), chunk.totals.round == chunk.rounds
        cost = checkpoint.estimate_seconds(chunk.state) if cost is None else cost
        if run == 0:
            share = config.checkpoint_share
            in_time = total_cost + len(outs) * cost <= share * (save_start - start_time)
            is_due = is_last or chunk.ending or share == 1 or in_time
        if not is_due:
            return
        meta = {"totals": chunk.totals._asdict(), "lengths": run_directory.lengths(outs[run])}
        directory = outs[run] / run_directory.CHECKPOINTS
        try:
            if store is not None:
                store.sync()
            checkpoint.save(directory, chunk.totals.round, chunk.state, meta, keep=config.keep_checkpoints)
            if store is not None:
                store.mark()
            is_failing[run] = False
        except OSError as error:
            if is_last:  # without its final state a run has not ended, and a resumed run gets there again
                raise
            if not is_failing[run]:  # logged once, not at every chunk until there is space again
                warn(f"{error}; the run goes on without it, and tries again at every checkpoint")
            is_failing[run] = True
            failures[run] += 1
        cost = time.perf_counter() - save_start
        total_cost += cost

    return [partial(save, run) for run in range(len(outs))]
