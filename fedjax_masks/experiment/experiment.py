"""One experiment on disk: a configuration in, a run directory out.

A checkpoint that cannot be written is counted, and the run goes on, unless it is the last. SIGINT and SIGTERM
save one at the end of the running round, and end the run.
"""

import contextlib
import dataclasses
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_masks.analysis.canvas import save_figure
from fedjax_masks.core.algorithm import State, Task
from fedjax_masks.core.errors import UserError, user_errors
from fedjax_masks.core.progress import say, silence
from fedjax_masks.experiment import build, checkpoint, hosts, platforms, run_directory, signals, trackers
from fedjax_masks.experiment.backends import Tracker
from fedjax_masks.experiment.config import Config, as_dict
from fedjax_masks.experiment.lock import exclusive
from fedjax_masks.experiment.loop import Chunk, Interrupted, OnChunk, Run, chunk_length, run_rounds
from fedjax_masks.experiment.progress import progress
from fedjax_masks.experiment.records import Record, Totals
from fedjax_masks.experiment.run_directory import open_directory
from fedjax_masks.simulation import Batch, Storage, Store, alone, make_simulation
from fedjax_masks.simulation.plan import Plan, parse_plan

_LOGGER = logging.getLogger("fedjax_masks")
_BEGUN = (run_directory.METRICS, run_directory.CHECKPOINTS)
_BEFORE = (run_directory.CONFIG, run_directory.CONFIG + ".partial", run_directory.LOG, run_directory.ROWS)
_PACKAGES = ("fedjax_masks", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")


class Setup(NamedTuple):
    """A run that is ready to be written.

    Attributes:
      out: Its directory.
      config: Its configuration.
      stored: The ``config.json`` of the run to resume; empty for a new one.
      guarantee: Further keys of its summary.
      fingerprints: Of its data and parameters, by the key that names them.
      tracker: Takes its records.
    """

    out: Path
    config: Config
    stored: Mapping[str, Any]
    guarantee: Mapping[str, float]
    fingerprints: Mapping[str, str]
    tracker: Tracker


def run_experiment(config: Config, out_dir: str | Path, *, resume: bool = False, quiet: bool = False) -> Run:
    """Runs an experiment and writes its run directory.

    Args:
      config: What to run.
      out_dir: The run directory.
      resume: Continue the run in ``out_dir`` from its last checkpoint, to the same result.
      quiet: No progress on the terminal.

    Raises:
      UserError: The configuration cannot be served, or ``out_dir`` holds something else, is used by another
        process, or cannot be written to.
      SystemExit: SIGTERM has come.
      KeyboardInterrupt: SIGINT has come.
    """
    out = Path(out_dir)
    platforms.check()
    quiet = quiet or not hosts.first()
    with signals.noted() as asked, silence(quiet), contextlib.ExitStack() as stack:

        def prepare() -> tuple[Setup, Any, Any]:
            with user_errors():
                stack.enter_context(_own(out))
                stack.enter_context(writing([out]))
                stored = open_directory(out, config, resume=resume)
                tracker = stack.enter_context(tracked(out, config))
                algorithm, task = build.build(config)
                return make_setup(out, config, stored, task, tracker), algorithm, task

        setup, algorithm, task = hosts.attempt(prepare)
        _end_if(asked)
        hosts.check_same({**as_dict(config), "fingerprint": setup.fingerprints})
        with user_errors():
            simulation = make_simulation(
                algorithm,
                task,
                cohort=config.cohort,
                seed=config.seed,
                chunk=chunk_length(config.eval_every),
                plan=_plan(setup.stored, config),
                population=build.population(config, task),
                storage=_storage(setup.stored, config, out),
                eval_clients=config.eval_clients,
            )
        name = config.algorithm.name
        say(f"{name}: {plan_line(simulation.plan, config, task)}")
        if simulation.store is not None:
            each = f"{simulation.store.row_bytes} bytes for each client that has taken part"
            say(f"{name}: store: {out / run_directory.ROWS} on the host, {each}")
        _end_if(asked)
        (run,) = run_in([setup], alone(simulation), quiet=quiet, asked=asked)
    return run


def _end_if(asked: Callable[[], int]) -> None:
    """Ends a run that a signal has asked to end before its first round; of several processes, after it."""
    if asked() and jax.process_count() == 1:
        signals.end(asked())


def make_setup(out: Path, config: Config, stored: Mapping[str, Any], task: Task, tracker: Tracker) -> Setup:
    """A run on its loaded data.

    Raises:
      ValueError: There is no such guarantee, or no library to compute it.
    """
    guarantee, fingerprints = build.guarantee(config, task), build.fingerprints(config, task)
    return Setup(out, config, stored, guarantee, fingerprints, tracker)


@contextmanager
def tracked(out: Path, config: Config) -> Iterator[Tracker]:
    """The trackers of a run; of several processes only the first has any.

    Files that backends have made for a run that is refused are removed.

    Raises:
      UserError: A backend cannot be opened.
    """
    names = trackers.parse(config.log) if hosts.first() else ()
    made = [name for name in trackers.FILES if not (out / name).exists()]
    try:
        with trackers.tracking(names, out, config=as_dict(config)) as tracker:
            yield tracker
    except Exception:
        if names and not any((out / name).exists() for name in (run_directory.CONFIG, *_BEGUN)):
            trackers.remove(out, made)
        raise


@contextmanager
def writing(outs: Sequence[Path]) -> Iterator[None]:
    """Keeps directories for this process, and says in one line where they cannot be written to.

    Raises:
      UserError: A directory is used by another process, or cannot be written to.
    """
    if not hosts.first():
        yield
        return
    try:
        with contextlib.ExitStack() as stack:
            for out in outs:
                run_directory.check(out)
                stack.enter_context(exclusive(out))
            yield
    except OSError as error:
        text = f"out={str(outs[0])!r}: {error}; accepted is a directory that can be written to"
        raise UserError(f"{text}, with free space; --resume continues a run that has begun") from error


@contextmanager
def _own(out: Path) -> Iterator[None]:
    """Removes, where a run fails before its first record, what it has written to a new directory."""
    created = not out.exists()
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit):
        if created and hosts.first() and not any((out / name).exists() for name in _BEGUN):
            trackers.remove(out)
            with contextlib.suppress(OSError):
                for name in _BEFORE:
                    (out / name).unlink(missing_ok=True)
                out.rmdir()
        raise


def plan_line(plan: Plan, config: Config, task: Task) -> str:
    """The line that says how a run will go: its plan, and how many clients take part and are evaluated."""
    clients = f"{config.cohort} of {task.num_clients} clients a round"
    evaluated = "" if config.eval_clients is None else f", {config.eval_clients} clients evaluated"
    return f"plan: {plan} ({plan.reason}); {clients}{evaluated}"


def _plan(stored: Mapping[str, Any], config: Config) -> str:
    """The plan under which the run began, so that it ends to the bit as it would have; if it can."""
    chosen = stored.get("chosen_plan", config.plan)
    try:
        parse_plan(chosen, cohort=config.cohort)
    except ValueError:  # it began on other devices
        return config.plan
    return chosen


def _storage(stored: Mapping[str, Any], config: Config, out: Path) -> Storage:
    """Where the clients' states are: a run to resume has them where it began."""
    clients = stored.get("chosen_storage", config.storage.clients)
    return Storage(clients, config.storage.data, out / run_directory.ROWS, config.keep_checkpoints)


def run_in(setups: Sequence[Setup], batch: Batch, *, quiet: bool, asked: Callable[[], int]) -> list[Run]:
    """Runs a batch from the runs' last checkpoints on, and writes their directories.

    Args:
      setups: The runs, alike in all that a batch shares; their directories are kept by :func:`writing`.
      batch: The compiled runs.
      quiet: No progress on the terminal.
      asked: ``() -> int``: the signal that asks the runs to end, else 0; see :func:`termination.noted`.

    Raises:
      UserError: A run cannot be gone on with.
    """
    config, outs = setups[0].config, [setup.out for setup in setups]
    environment = [_complete(setup, batch) for setup in setups]
    state, starts, records = _resume(setups, batch)
    if hosts.first():
        for setup, content in zip(setups, environment):
            if not setup.stored:
                checkpoint.write_atomically(setup.out / run_directory.CONFIG, json.dumps(content, indent=2))
            setup.tracker.describe(content)
    failed = [0] * len(outs)
    with progress(config.algorithm.name, done=starts[0].round, rounds=config.rounds, quiet=quiet) as show:
        hooks: list[list[OnChunk]] = [[] for _ in outs]
        if hosts.first():
            hooks = writers(outs, config, [setup.tracker.log for setup in setups], failed, batch.store)
        try:
            runs = run_rounds(
                batch,
                state,
                rounds=config.rounds,
                eval_every=config.eval_every,
                starts=starts,
                records=records,
                on_chunk=[([] if run else [show]) + own for run, own in enumerate(hooks)],
                asked=asked,
            )
        except Interrupted as stop:
            name = signals.name(stop.signal)
            _LOGGER.warning("%s: stopped after round %d; --resume continues", name, stop.round)
            signals.end(stop.signal)
            raise
    runs = [
        dataclasses.replace(
            run,
            summary={**run.summary, "checkpoints_failed": lost, **setup.guarantee},
            config=own,
            directory=setup.out,
        )
        for run, own, lost, setup in zip(runs, environment, failed, setups)
    ]
    if hosts.first():
        for run, out in zip(runs, outs):
            _write_results(out, run)
    hosts.wait("the results are written")
    return runs


def _resume(setups: Sequence[Setup], batch: Batch) -> tuple[State, list[Totals], list[list[Record]]]:
    """Goes back to the runs' last checkpoints; to round 0 where there is none.

    Nothing is changed on disk until all runs are known to be in order.
    """
    for setup in setups:
        if setup.stored:
            run_directory.check_fingerprints(setup.stored, setup.fingerprints)
    initial, outs = batch.init(), [setup.out for setup in setups]

    def read() -> tuple[Any, ...]:
        found = _restore(outs, [batch.take(initial, run) for run in range(len(outs))])
        starts, lengths = zip(*map(_start_of, outs, found))
        records = [
            run_directory.read_records(out, (length or {}).get(run_directory.METRICS, 0))
            for out, length in zip(outs, lengths)
        ]
        return found, starts, lengths, records

    found, starts, lengths, records = hosts.attempt(read)
    state = batch.stack([each.state for each in found if each is not None]) if starts[0].round else initial
    if batch.store is not None:
        batch.store.adopt(np.asarray(state.clients))
    if hosts.first():
        for out, each, length in zip(outs, found, lengths):
            for step in () if each is None else each.damaged:
                run_directory.set_aside(step, "damaged")
            for step in checkpoint.steps(out / run_directory.CHECKPOINTS):
                if each is not None and int(step.name) > each.round:
                    run_directory.set_aside(step, "newer")
            run_directory.cut(out, length)
    return state, list(starts), records


def _restore(outs: Sequence[Path], likes: Sequence[State]) -> list[checkpoint.Restored | None]:
    """The newest checkpoints of runs that are of one round.

    Where one run's newest is damaged, the others go back with it.
    """
    at_most: int | None = None
    damaged: list[tuple[Path, ...]] = [()] * len(outs)
    while True:
        found = [
            checkpoint.restore_latest(out / run_directory.CHECKPOINTS, like, at_most=at_most)
            for out, like in zip(outs, likes)
        ]
        damaged = [(*before, *(each.damaged if each else ())) for before, each in zip(damaged, found)]
        rounds = {each.round if each else 0 for each in found}
        if len(rounds) == 1:
            return [each and each._replace(damaged=steps) for each, steps in zip(found, damaged)]
        if None in found:
            out = outs[found.index(None)]
            raise UserError(
                f"out={str(out)!r}: must have a checkpoint of a round that others of its program have"
            )
        at_most = min(rounds)


def _start_of(out: Path, found: checkpoint.Restored | None) -> tuple[Totals, Mapping[str, int] | None]:
    """The totals of a run's last checkpoint, and how long its appended files were then."""
    if found is None:
        if run_directory.is_finished(out):
            raise UserError(
                f"out={str(out)!r}: must have checkpoints to go on from; the run has ended without"
            )
        return Totals(), None
    try:
        totals, lengths = Totals(**found.meta["totals"]), dict(found.meta["lengths"])
        run_directory.check_lengths(out, lengths)
    except (TypeError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"out={str(out)!r}: must have a checkpoint of this version of fedjax_masks") from None
    return totals, lengths


def _complete(setup: Setup, batch: Batch) -> dict[str, Any]:
    """The content of ``config.json``."""
    if setup.stored:
        return dict(setup.stored)
    device = jax.devices()[0]
    return {
        **as_dict(setup.config),
        "chosen_plan": str(batch.plan),
        "chosen_plan_reason": batch.plan.reason,
        "chosen_storage": batch.clients_on,
        "fingerprints": dict(setup.fingerprints),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "platform": {
            "system": platform.platform(),
            "backend": device.platform,
            "device": device.device_kind,
            "devices": jax.device_count(),
            "cpus": os.cpu_count(),
        },
    }


def _version(package: str) -> str | None:
    """A package's version; None where it runs from a source tree or is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def writers(
    outs: Sequence[Path],
    config: Config,
    logs: Sequence[Callable[[Record], None]],
    failed: list[int] | None = None,
    store: Store | None = None,
) -> list[list[OnChunk]]:
    """What writes each run's records, notes and checkpoints at the end of every chunk.

    Args:
      outs: The runs' directories.
      config: Of any of them.
      logs: Where each run's records go.
      failed: Counts, for each run, the checkpoints that could not be written.
      store: Of the clients' states of the run, on the host.
    """
    saves = _checkpoints(outs, config, [0] * len(outs) if failed is None else failed, store)
    return [[_journal(out, log), save] for out, log, save in zip(outs, logs, saves)]


def _journal(out: Path, log: Callable[[Record], None]) -> OnChunk:
    """Appends notes to their file, and passes records on."""

    def write(chunk: Chunk) -> None:
        if chunk.notes:
            trackers.append(out / run_directory.LOG, "".join(note + "\n" for note in chunk.notes))
        if chunk.record is not None:
            log(chunk.record)

    return write


def _checkpoints(
    outs: Sequence[Path], config: Config, failed: list[int], store: Store | None
) -> list[OnChunk]:
    """Saves at the end of a chunk, if the time spent on saving stays within its share.

    The first of several runs decides for all, so that their checkpoints are of the same rounds.
    """
    began, spent, cost, due, failing = time.perf_counter(), 0.0, None, False, [False] * len(outs)

    def save(run: int, chunk: Chunk) -> None:
        nonlocal spent, cost, due
        before, last = time.perf_counter(), chunk.totals.round == chunk.rounds
        cost = checkpoint.estimate_seconds(chunk.state) if cost is None else cost
        if run == 0:
            share = config.checkpoint_share
            in_time = spent + len(outs) * cost <= share * (before - began)
            due = last or chunk.ending or share == 1 or in_time
        if not due:
            return
        meta = {"totals": chunk.totals._asdict(), "lengths": run_directory.lengths(outs[run])}
        directory = outs[run] / run_directory.CHECKPOINTS
        try:
            if store is not None:
                store.sync()
            checkpoint.save(directory, chunk.totals.round, chunk.state, meta, keep=config.keep_checkpoints)
            if store is not None:
                store.mark()
            failing[run] = False
        except OSError as error:
            if last:  # a run without its final state has not ended, and its resume gets there again
                raise
            if not failing[run]:  # said once, not at every round until there is room again
                _LOGGER.warning("%s; the run goes on without it, and tries again at every checkpoint", error)
            failing[run] = True
            failed[run] += 1
        cost = time.perf_counter() - before
        spent += cost

    return [partial(save, run) for run in range(len(outs))]


def _write_results(out: Path, run: Run) -> None:
    """Writes the summary, the sign that all is there, and the figure, which is for looking at only."""
    if run.summary["rounds_per_second"] is not None or not run_directory.is_finished(out):
        # Else no round was left: the summary there is of those who ran them.
        checkpoint.write_atomically(out / run_directory.SUMMARY, json.dumps(run.summary, indent=2))
    save_figure(run.plot, out / run_directory.FIGURES / "accuracy.png")
