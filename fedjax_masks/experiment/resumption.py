"""Resumption of runs from their last checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_masks.core.algorithm import State
from fedjax_masks.core.errors import UserError
from fedjax_masks.experiment import checkpoint, hosts, run_directory
from fedjax_masks.experiment.checkpoint import Checkpoint
from fedjax_masks.experiment.records import Record, Totals
from fedjax_masks.experiment.setups import Setup
from fedjax_masks.simulation import Simulation


class _Start(NamedTuple):
    """The start of one run.

    Attributes:
      checkpoint: The last checkpoint; None at round 0.
      totals: The totals at the start.
      lengths: The lengths of the appended files at the checkpoint, in bytes; None at round 0.
      records: The records before the start.
    """

    checkpoint: Checkpoint | None
    totals: Totals
    lengths: Mapping[str, int] | None
    records: list[Record]


def resume(setups: Sequence[Setup], simulation: Simulation) -> tuple[State, list[Totals], list[list[Record]]]:
    """Restores the runs of a simulation from their last checkpoints; without checkpoints, from round 0.

    Nothing is changed on disk before all runs are checked.

    Returns:
      The state, and for each run its totals and its records before the start.

    Raises:
      UserError: A run cannot be resumed.
    """
    for setup in setups:
        if setup.run_config:
            run_directory.check_fingerprints(setup.run_config, setup.fingerprints)
    initial, outs = simulation.init(), [setup.out for setup in setups]

    def read() -> list[_Start]:
        checkpoints = _restore(outs, [simulation.take(initial, run) for run in range(len(outs))])
        return list(map(_read_start, outs, checkpoints))

    starts = hosts.attempt(read)
    states = [start.checkpoint.state for start in starts if start.checkpoint is not None]
    state = simulation.stack(states) if starts[0].totals.round else initial
    if simulation.store is not None:
        simulation.store.adopt(np.asarray(state.clients))
    if hosts.is_first():
        for out, start in zip(outs, starts):
            _clean_up(out, start)
    return state, [start.totals for start in starts], [start.records for start in starts]


def _clean_up(out: Path, start: _Start) -> None:
    """Renames checkpoints that are not resumed from, and cuts off later lines."""
    if start.checkpoint is not None:
        for step in start.checkpoint.damaged:
            run_directory.rename_unused(step, "damaged")
        for step in run_directory.steps(out / run_directory.CHECKPOINTS):
            if int(step.name) > start.checkpoint.round:
                run_directory.rename_unused(step, "newer")
    run_directory.cut(out, start.lengths)


def _restore(outs: Sequence[Path], likes: Sequence[State]) -> list[Checkpoint | None]:
    """The newest undamaged checkpoint of each run, all of the same round.

    If one run's newest checkpoint is damaged, the other runs go back with it.
    """
    at_most: int | None = None
    damaged_steps: list[tuple[Path, ...]] = [()] * len(outs)
    while True:
        checkpoints = [
            checkpoint.restore_latest(out / run_directory.CHECKPOINTS, like, at_most=at_most)
            for out, like in zip(outs, likes)
        ]
        damaged_steps = [
            (*steps, *(run.damaged if run else ())) for steps, run in zip(damaged_steps, checkpoints)
        ]
        rounds = {run.round if run else 0 for run in checkpoints}
        if len(rounds) == 1:
            return [run and run._replace(damaged=steps) for run, steps in zip(checkpoints, damaged_steps)]
        if None in checkpoints:
            out = outs[checkpoints.index(None)]
            raise UserError(
                f"out={str(out)!r}: must have a checkpoint of a round that others of its program have"
            )
        at_most = min(rounds)


def _read_start(out: Path, latest: Checkpoint | None) -> _Start:
    """The start of a run, by its last checkpoint.

    Raises:
      UserError: The run has ended without checkpoints, or its files do not fit the checkpoint.
    """
    if latest is None:
        if run_directory.is_finished(out):
            raise UserError(f"out={str(out)!r}: must have checkpoints to resume; the run has ended without")
        totals, lengths = Totals(), None
    else:
        try:
            totals, lengths = Totals(**latest.meta["totals"]), dict(latest.meta["lengths"])
            run_directory.check_lengths(out, lengths)
        except UserError:
            raise
        except (TypeError, KeyError, ValueError):
            raise UserError(
                f"out={str(out)!r}: must have a checkpoint of this version of fedjax_masks"
            ) from None
    length = (lengths or {}).get(run_directory.METRICS, 0)
    return _Start(latest, totals, lengths, run_directory.read_records(out, length))
