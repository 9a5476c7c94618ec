"""Preparation of runs on disk: their directories, trackers and fingerprints."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_masks.core.algorithm import Task
from fedjax_masks.core.errors import UserError
from fedjax_masks.experiment import build, hosts, run_directory, trackers
from fedjax_masks.experiment.backends import Tracker
from fedjax_masks.experiment.config import Config, as_dict
from fedjax_masks.experiment.lock import exclusive
from fedjax_masks.simulation.plan import Plan

_RESULTS = (run_directory.METRICS, run_directory.CHECKPOINTS)  # files of a run that has rounds
_FIRST_FILES = (
    run_directory.CONFIG,
    run_directory.CONFIG + ".partial",
    run_directory.LOG,
    run_directory.ROWS,
)


class Setup(NamedTuple):
    """A run that is ready to be executed.

    Attributes:
      out: The run directory.
      config: The configuration.
      run_config: The ``config.json`` of the run to resume; empty for a new run.
      guarantee: Keys of the summary about the run's privacy.
      fingerprints: Digests of data, parameters and random numbers, by the key that names them.
      tracker: The tracker of the run's records.
    """

    out: Path
    config: Config
    run_config: Mapping[str, Any]
    guarantee: Mapping[str, float]
    fingerprints: Mapping[str, str]
    tracker: Tracker


def make_setup(
    out: Path, config: Config, run_config: Mapping[str, Any], task: Task, tracker: Tracker
) -> Setup:
    """The setup of a run whose data are loaded.

    Raises:
      ValueError: There is no privacy guarantee for it, or the library that computes it is missing.
    """
    guarantee, fingerprints = build.guarantee(config, task), build.fingerprints(config, task)
    return Setup(out, config, run_config, guarantee, fingerprints, tracker)


@contextmanager
def open_tracker(out: Path, config: Config) -> Iterator[Tracker]:
    """Opens the backends of a run; of several processes, only the first one has any.

    If the run is refused, new files of the backends are removed.

    Raises:
      UserError: A backend cannot be opened.
    """
    names = trackers.parse(config.log) if hosts.is_first() else ()
    new_files = [name for name in trackers.FILES if not (out / name).exists()]
    try:
        with trackers.tracking(names, out, config=as_dict(config)) as tracker:
            yield tracker
    except Exception:
        if names and not any((out / name).exists() for name in (run_directory.CONFIG, *_RESULTS)):
            trackers.remove(out, new_files)
        raise


@contextmanager
def reserve(outs: Sequence[Path]) -> Iterator[None]:
    """Reserves directories for this process, and reports in one line if they cannot be written to.

    Raises:
      UserError: A directory is used by another process, or cannot be written to.
    """
    if not hosts.is_first():
        yield
        return
    try:
        with contextlib.ExitStack() as stack:
            for out in outs:
                run_directory.check(out)
                stack.enter_context(exclusive(out))
            yield
    except OSError as error:
        raise UserError(
            f"out={str(outs[0])!r}: must be a writable directory with free space; {error}; --resume "
            "continues a run that has begun"
        ) from error


@contextmanager
def remove_on_failure(out: Path) -> Iterator[None]:
    """Removes a new run directory if the block fails before the run's first record."""
    is_new = not out.exists()
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit):
        if is_new and hosts.is_first() and not any((out / name).exists() for name in _RESULTS):
            trackers.remove(out)
            with contextlib.suppress(OSError):
                for name in _FIRST_FILES:
                    (out / name).unlink(missing_ok=True)
                out.rmdir()
        raise


def plan_line(plan: Plan, config: Config, task: Task) -> str:
    """A line with the plan of a run, its cohort and the number of clients that are evaluated."""
    clients = f"{config.cohort} of {task.num_clients} clients a round"
    evaluation = "" if config.eval_clients is None else f", {config.eval_clients} clients evaluated"
    return f"plan: {plan} ({plan.reason}); {clients}{evaluation}"
