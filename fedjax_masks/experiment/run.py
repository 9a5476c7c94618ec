"""A run: its state at the end of every chunk of rounds, and its results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_masks.core.algorithm import State
from fedjax_masks.experiment.records import Record, Totals
from fedjax_masks.simulation import Evaluation, RoundMetrics


class Chunk(NamedTuple):
    """A run at the end of a chunk of rounds.

    Attributes:
      rounds: Rounds of the whole run.
      totals: The totals up to the end of this chunk.
      state: The state; valid only until the next chunk starts.
      metrics: The metrics of the chunk's rounds.
      record: The line of ``metrics.jsonl`` of the chunk's last round; None without an evaluation.
      notes: Messages to the user, one line each.
      ending: Whether a signal ends the run here, before its last round.
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
      round: The number of rounds so far.
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
      summary: The last value of each key, totals, best and last accuracies, and timings.
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
        """Draws accuracy against rounds and against bytes: a ``matplotlib.figure.Figure``."""
        from fedjax_masks.analysis import RunRecord, plot_run

        name = "run" if self.directory is None else self.directory.name
        return plot_run(RunRecord(name, dict(self.config), self.records, self.summary))
