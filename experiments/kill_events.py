"""Events that befall a run: kills, signals, edits, errors of files, rivals."""

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from kill_checks import contents, entries, last_step
from kill_processes import POLL, Process, Runs, start

from fedjax_masks.experiment import checkpoint

STARTING = 0.1  # seconds until a process has its own handlers of signals
ENDING = 5.0  # seconds after a signal, within which a process must end
# Lines that a run may print before it is refused: what it has survived.
NOTES = ("the run goes on", "is damaged", "no checkpoint: starting at round 0")
MODES = ("time", "progress", "writing", "deleting")


class Outcome(NamedTuple):
    """The outcome of one process.

    Attributes:
      happened: Whether the event of this kind befell the process.
      ended: Whether the run reached its last round.
      counts: Further counts by name.
    """

    happened: bool
    ended: bool
    counts: Counter[str]


Event = Callable[[Path, Runs, np.random.Generator, float], Outcome]
"""``(out, runs, rng, seconds) -> outcome``; an uninterrupted process takes about ``seconds``."""


def snapshot(out: Path) -> tuple:
    """The progress of a run on disk: its directory, checkpoints and bytes of records."""
    names = sorted(path.name for path in entries(out / "checkpoints"))
    metrics = out / "metrics.jsonl"
    return out.exists(), names, metrics.stat().st_size if metrics.exists() else 0


def trigger(mode: str, out: Path, rng: np.random.Generator, seconds: float) -> Callable[[], bool]:
    """A function that tells, each time it is called, whether the moment of an event has come."""
    if mode == "time":
        end = time.monotonic() + STARTING + rng.uniform(0, 1.5 * seconds)
        return lambda: time.monotonic() >= end
    if mode == "progress":
        changes, last = int(rng.integers(1, 20)), snapshot(out)

        def has_changed() -> bool:
            nonlocal changes, last
            if (now := snapshot(out)) != last:
                changes, last = changes - 1, now
            return changes <= 0

        return has_changed
    # A directory of a checkpoint that is not complete yet, or no longer.
    suffix = ".partial" if mode == "writing" else ".deleted"
    old = {path.name for path in entries(out / "checkpoints") if path.suffix == suffix}
    number = int(rng.integers(1, 5))
    observed: set[str] = set()

    def is_incomplete() -> bool:
        now = {path.name for path in entries(out / "checkpoints") if path.suffix == suffix}
        observed.update(now - old)
        if len(observed) < number:
            return False
        time.sleep(rng.uniform(0, 0.05) if mode == "writing" else 0)
        return True

    return is_incomplete


def wait(process: Process, due: Callable[[], bool], number: int | None) -> str:
    """Sends a signal once it is due, and waits for the end of the process.

    Args:
      process: The process.
      due: Whether the signal is due.
      number: The number of the signal, or None.

    Returns:
      The output on stderr.
    """
    while number is not None and process.poll() is None and not due():
        time.sleep(POLL)
    if number is not None:
        process.send(number)
    return process.end()


def never() -> bool:
    """The trigger of a process without a signal."""
    return False


def judge(process: Process, output: str, codes: tuple[int, ...]) -> Counter[str]:
    """Counts what is wrong with the end of a process.

    Args:
      process: The process.
      output: Its output on stderr.
      codes: The exit codes that are right.
    """
    lines = [line for line in output.splitlines() if not any(note in line for note in NOTES)]
    refused = process.returncode == 2
    errors = sum(line.startswith("error: ") for line in lines)
    wordy = "Traceback" in output or (refused and (errors != 1 or len(lines) != 1))
    unexpected = process.returncode not in codes
    if wordy or unexpected:
        print(f"exit {process.returncode}: {output[-2000:]}", file=sys.stderr)
    return Counter(refusals=refused, said_more_than_one_line=wordy, unexpected_exits=unexpected)


def kill_once(out: Path, runs: Runs, rng: np.random.Generator, seconds: float) -> Outcome:
    """Continues the run, and kills it unless it ends before."""
    mode = MODES[rng.integers(len(MODES))]
    previous = {path.name for path in entries(out / "checkpoints")}
    process = start(out, runs)
    output = wait(process, trigger(mode, out, rng, seconds), signal.SIGKILL)
    killed = process.returncode == -signal.SIGKILL
    incomplete = {path.suffix for path in entries(out / "checkpoints") if path.name not in previous}
    metrics = out / "metrics.jsonl"
    lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    counts = judge(process, output, (0, -signal.SIGKILL))
    counts[f"kills by {mode}"] += killed
    counts["kills while writing a checkpoint"] += killed and ".partial" in incomplete
    counts["kills while deleting a checkpoint"] += killed and ".deleted" in incomplete
    counts["kills before the first checkpoint"] += killed and not checkpoint.steps(out / "checkpoints")
    counts["kills with a record after the last checkpoint"] += killed and lines > last_step(out)
    return Outcome(killed, not killed, counts)


def signal_once(out: Path, runs: Runs, rng: np.random.Generator, seconds: float) -> Outcome:
    """Continues the run, and sends it SIGINT or SIGTERM."""
    number = (signal.SIGINT, signal.SIGTERM)[rng.integers(2)]
    process, due, last_look = start(out, runs), trigger(MODES[rng.integers(2)], out, rng, seconds), [0.0]

    def timed() -> bool:
        last_look[0] = time.monotonic()
        return due()

    output = wait(process, timed, number)
    codes = (0, 128 + number, -signal.SIGTERM)  # during its preparation, SIGTERM ends a process at once
    counts = judge(process, output, codes)
    stopped = "stopped after round" in output
    counts[f"{number.name} while it prepared"] += process.returncode != 0 and not stopped
    counts[f"{number.name} while rounds ran"] += stopped
    counts["signals_lost"] += time.monotonic() - last_look[0] > ENDING
    return Outcome(process.returncode != 0, process.returncode == 0, counts)


def edit_once(out: Path, runs: Runs, rng: np.random.Generator, seconds: float) -> Outcome:
    """Kills the run, and tries to continue it with another state of the algorithm."""
    outcome = kill_once(out, runs, rng, seconds)
    if outcome.ended or not checkpoint.steps(out / "checkpoints"):
        return outcome._replace(happened=False)
    files = contents(out)
    process = start(out, runs, edit="one more leaf")
    counts = outcome.counts + judge(process, wait(process, never, None), (2,))
    counts["changed_by_a_refusal"] += contents(out) != files
    return Outcome(True, False, counts)


def fail_once(out: Path, runs: Runs, rng: np.random.Generator, seconds: float) -> Outcome:
    """Continues the run while files fail."""
    del seconds
    count = out.with_name("failed")
    count.parent.mkdir(exist_ok=True)
    count.write_text("0")
    process = start(out, runs, errors=str(rng.integers(2**31)), count=str(count))
    counts = judge(process, wait(process, never, None), (0, 2))
    failures = int(count.read_text())
    counts["calls that failed"] += failures
    return Outcome(failures > 0, process.returncode == 0, counts)


def rival_once(out: Path, runs: Runs, rng: np.random.Generator, seconds: float) -> Outcome:
    """Continues the run in two processes at once, and kills the process that has the directory."""
    first = start(out, runs)
    time.sleep(rng.uniform(0, seconds))
    second = start(out, runs)
    processes, due = [first, second], trigger("progress", out, rng, seconds)
    while all(process.poll() is None for process in processes):
        time.sleep(POLL)
    refused, other = sorted(processes, key=lambda process: process.poll() is None)
    counts = judge(refused, refused.end(), (0, 2))
    number = signal.SIGKILL if refused.returncode == 2 else None
    counts += judge(other, wait(other, due, number), (0, 2, -signal.SIGKILL))
    codes = [process.returncode for process in processes]
    # The second process may open the finished run of the first, but only after the first has ended.
    both_ran = all(code in (0, -signal.SIGKILL) for code in codes)
    counts["both_rivals_ran"] += both_ran and -signal.SIGKILL in codes
    return Outcome(refused.returncode == 2, 0 in codes, counts)
