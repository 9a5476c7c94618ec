"""One experiment on disk: a configuration in, a run directory out.

The directory holds ``config.json``, ``metrics.jsonl``, ``log.txt``, ``checkpoints/``,
``figures/``, ``summary.json``, and what the backends of ``log`` write. Lines are appended and
synced; all else is replaced atomically. A checkpoint remembers how long the appended files were,
so that resuming cuts off what came after it and neither loses nor doubles a line. A checkpoint that
cannot be written is counted, and the run goes on; SIGTERM saves one at the end of the running chunk, and
ends the run.
"""

import contextlib
import dataclasses
import json
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_masks import assembly, checkpoint, hosts, termination, trackers
from fedjax_masks.algorithm import State
from fedjax_masks.config import Config, as_dict
from fedjax_masks.errors import UserError, user_errors
from fedjax_masks.runner import Chunk, OnChunk, Record, Run, Totals, chunk_length, run_rounds
from fedjax_masks.simulation import Batch, Storage, Store, alone, make_simulation
from fedjax_masks.simulation.plan import parse_plan
from fedjax_masks.telemetry import progress
from fedjax_masks.trees import flat

_CONFIG, _SUMMARY, _CHECKPOINTS = "config.json", "summary.json", "checkpoints"
_NEEDED = ("round", "global_accuracy", "personal_accuracy_mean")  # of the records of a run to resume
_METRICS, _LOG, _ROWS = trackers.METRICS, "log.txt", "clients.rows"
_ENVIRONMENT = ("chosen_plan", "chosen_plan_reason", "chosen_storage", "versions", "platform")
_LOGGER = logging.getLogger("fedjax_masks")
_PACKAGES = ("fedjax_masks", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")


def run_experiment(config: Config, out_dir: str | Path, *, resume: bool = False, quiet: bool = False) -> Run:
    """Runs an experiment and writes its run directory.

    Args:
      config: What to run.
      out_dir: The run directory; created once everything is known to be in order.
      resume: Continue the run in ``out_dir`` from its last checkpoint, to the same result.
      quiet: No progress on the terminal.

    Raises:
      UserError: The configuration cannot be served, or ``out_dir`` holds something else or
        cannot be written to.
      SystemExit: SIGTERM has come.
    """
    out = Path(out_dir)
    with user_errors():
        trackers.check_installed(trackers.parse(config.log))
        stored = open_directory(out, config, resume=resume)
        algorithm, task = assembly.build(config)
        guarantee = assembly.guarantee(config, task)
        simulation = make_simulation(
            algorithm,
            task,
            cohort=config.cohort,
            seed=config.seed,
            chunk=chunk_length(config.eval_every),
            plan=_plan(stored, config),
            population=assembly.population(config, task),
            storage=_storage(stored, config, out),
            eval_clients=config.eval_clients,
        )
    quiet = quiet or not hosts.first()
    if not quiet:
        print(f"plan: {simulation.plan} ({simulation.plan.reason})", file=sys.stderr)
        if simulation.store is not None:
            each = f"{simulation.store.row_bytes} bytes for each client that has taken part"
            print(f"store: {out / _ROWS} on the host, {each}", file=sys.stderr)
    created = hosts.first() and not out.exists()
    hosts.wait("all have read the run directory")
    try:
        (run,) = run_in([out], [config], alone(simulation), [stored], [guarantee], quiet=quiet)
        return run
    except Exception as error:
        if created and not any((out / name).exists() for name in (_METRICS, _CHECKPOINTS)):
            shutil.rmtree(out, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        text = f"out={str(out)!r}: {error}; accepted is a directory that can be written to"
        raise UserError(f"{text}, with free space; --resume continues a run that has begun") from error


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
    return Storage(clients, config.storage.data, out / _ROWS, config.keep_checkpoints)


def open_directory(out: Path, config: Config, *, resume: bool) -> dict[str, Any]:
    """Checks that a run may be written to a directory; writes nothing.

    Returns:
      The ``config.json`` of the run to resume; empty where there is none yet.

    Raises:
      UserError: The directory holds another run, or something that is no run.
    """
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise UserError(f"out={str(out)!r}: {existing} is read-only; accepted is a writable directory")
    if not out.exists():
        return {}
    if not out.is_dir():
        raise UserError(f"out={str(out)!r}: is a file; a directory is accepted")
    if not resume and any(out.iterdir()):
        raise UserError(f"out={str(out)!r}: is not empty; --resume continues the run in it")
    if (out / _CONFIG).exists():
        stored = _stored(out)
        _check_same(stored, config)
        return stored
    # A run killed before anything else leaves at most the unfinished file.
    if any(path.name != _CONFIG + ".partial" for path in out.iterdir()):
        raise UserError(f"out={str(out)!r}: holds no run to resume")
    return {}


def is_finished(out: Path) -> bool:
    """Whether a run's directory is complete."""
    return (out / _SUMMARY).exists()


def rounds_saved(out: Path) -> int:
    """Rounds up to the last checkpoint of a run; 0 without one."""
    return max((int(step.name) for step in checkpoint.steps(out / _CHECKPOINTS)), default=0)


def _check_same(stored: Mapping[str, Any], config: Config) -> None:
    before, now = flat(stored), flat(json.loads(json.dumps(as_dict(config))))
    for key, value in now.items():
        if key not in before or before[key] != value:
            own = _shown(before.get(key))
            raise UserError(f"{key}={_shown(value)}: --resume accepts only the run's own value, {own}")


def stored_values(out: Path) -> dict[str, Any]:
    """The flat configuration of the run in a directory.

    Raises:
      UserError: There is no run.
    """
    if not (out / _CONFIG).exists():
        raise UserError(f"out={str(out)!r}: holds no run to resume")
    return flat({key: value for key, value in _stored(out).items() if key not in _ENVIRONMENT})


def _stored(out: Path) -> dict[str, Any]:
    try:
        stored = json.loads((out / _CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"out={str(out)!r}: {_CONFIG} cannot be read: {error}") from None
    if not isinstance(stored, dict):
        raise UserError(f"out={str(out)!r}: {_CONFIG} is damaged; accepted is a JSON object")
    return stored


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def run_in(
    outs: Sequence[Path],
    configs: Sequence[Config],
    batch: Batch,
    stored: Sequence[Mapping[str, Any]],
    guarantees: Sequence[Mapping[str, float]],
    *,
    quiet: bool,
) -> list[Run]:
    """Runs a batch from the runs' last checkpoints on, and writes their directories.

    Args:
      outs: The runs' directories.
      configs: The runs' configurations, alike in all that a batch shares.
      batch: The compiled runs.
      stored: What :func:`open_directory` found in each directory.
      guarantees: What else each summary holds.
      quiet: No progress on the terminal.

    Raises:
      UserError: The runs' last checkpoints are not of the same round.
    """
    config, environment = configs[0], []
    for out, own, before in zip(outs, configs, stored):
        if hosts.first():
            out.mkdir(parents=True, exist_ok=True)
        environment.append(before or _complete(own, batch))
        if not before and hosts.first():
            checkpoint.write_atomically(out / _CONFIG, json.dumps(environment[-1], indent=2))
    initial = batch.init()
    states, starts = zip(*(_resume(out, batch.take(initial, run)) for run, out in enumerate(outs)))
    if len({start.round for start in starts}) > 1:
        raise UserError(
            f"out={str(outs[0])!r}: its last checkpoint and those of its like differ in their rounds"
        )
    state = batch.stack(states) if starts[0].round else initial
    if batch.store is not None:
        batch.store.adopt(np.asarray(state.clients))
    failed = [0] * len(outs)
    with (
        termination.noted() as asked,
        progress(config.algorithm.name, done=starts[0].round, rounds=config.rounds, quiet=quiet) as show,
        contextlib.ExitStack() as stack,
    ):
        hooks: list[list[OnChunk]] = [[] for _ in outs]
        if hosts.first():
            names, done = trackers.parse(config.log), starts[0].round
            logs = [
                stack.enter_context(trackers.tracking(names, out, config=own, done=done))
                for out, own in zip(outs, environment)
            ]
            hooks = writers(outs, config, logs, asked, failed, batch.store)
        runs = run_rounds(
            batch,
            state,
            rounds=config.rounds,
            eval_every=config.eval_every,
            starts=starts,
            records=[read_records(out) for out in outs],
            on_chunk=[([] if run else [show]) + own for run, own in enumerate(hooks)],
        )
    runs = [
        dataclasses.replace(
            run, summary={**run.summary, "checkpoints_failed": lost, **more}, config=own, directory=out
        )
        for run, own, lost, more, out in zip(runs, environment, failed, guarantees, outs)
    ]
    if hosts.first():
        for run, out in zip(runs, outs):
            _write_results(out, run)
    hosts.wait("the results are written")
    return runs


def _resume(out: Path, state: State) -> tuple[State, Totals]:
    """Goes back to the last checkpoint; to the given state of round 0 where there is none."""
    if hosts.first():  # it deletes what is damaged, so that all find the same
        restored = checkpoint.restore_latest(out / _CHECKPOINTS, state)
        _cut(out, {} if restored is None else restored.meta["lengths"])
    hosts.wait("the last checkpoint is known")
    if not hosts.first():
        restored = checkpoint.restore_latest(out / _CHECKPOINTS, state)
    return (state, Totals()) if restored is None else (restored.state, Totals(**restored.meta["totals"]))


def _complete(config: Config, batch: Batch) -> dict[str, Any]:
    """The content of ``config.json``."""
    device = jax.devices()[0]
    return {
        **as_dict(config),
        "chosen_plan": str(batch.plan),
        "chosen_plan_reason": batch.plan.reason,
        "chosen_storage": batch.clients_on,
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
    asked: Callable[[], bool] = lambda: False,
    failed: list[int] | None = None,
    store: Store | None = None,
) -> list[list[OnChunk]]:
    """What writes each run's records, notes and checkpoints at the end of every chunk.

    Args:
      outs: The runs' directories.
      config: Of any of them.
      logs: Where each run's records go.
      asked: Whether the runs are to end after the next checkpoint.
      failed: Counts, for each run, the checkpoints that could not be written.
      store: Of the clients' states of the run, on the host.
    """
    saves = _checkpoints(outs, config, asked, [0] * len(outs) if failed is None else failed, store)
    return [[_journal(out, log), save] for out, log, save in zip(outs, logs, saves)]


def _journal(out: Path, log: Callable[[Record], None]) -> OnChunk:
    """Appends notes to their file, and passes records on."""

    def write(chunk: Chunk) -> None:
        if chunk.notes:
            trackers.append(out / _LOG, "".join(note + "\n" for note in chunk.notes))
        if chunk.record is not None:
            log(chunk.record)

    return write


def _checkpoints(
    outs: Sequence[Path],
    config: Config,
    asked: Callable[[], bool],
    failed: list[int],
    store: Store | None,
) -> list[OnChunk]:
    """Saves at the end of a chunk, if the time spent on saving stays within its share.

    The first of several runs decides for all, so that their checkpoints are of the same rounds.
    """
    began, spent, cost, due, stop = time.perf_counter(), 0.0, None, False, False

    def save(run: int, chunk: Chunk) -> None:
        nonlocal spent, cost, due, stop
        before = time.perf_counter()
        cost = checkpoint.estimate_seconds(chunk.state) if cost is None else cost
        if run == 0:
            last, share = chunk.totals.round == chunk.rounds, config.checkpoint_share
            stop = asked() and not last
            due = last or stop or share == 1 or spent + len(outs) * cost <= share * (before - began)
        if not due:
            return
        meta = {"totals": chunk.totals._asdict(), "lengths": _lengths(outs[run])}
        directory = outs[run] / _CHECKPOINTS
        try:
            if store is not None:
                store.sync()
            checkpoint.save(directory, chunk.totals.round, chunk.state, meta, keep=config.keep_checkpoints)
            if store is not None:
                store.mark()
        except OSError as error:
            failed[run] += 1
            _LOGGER.warning("%s; the run goes on without this checkpoint", error)
        cost = time.perf_counter() - before
        spent += cost
        if stop and run == len(outs) - 1:
            _LOGGER.warning("SIGTERM: stopped after round %d; --resume continues", chunk.totals.round)
            raise SystemExit(termination.EXIT_CODE)

    return [partial(save, run) for run in range(len(outs))]


def _lengths(out: Path) -> dict[str, int]:
    paths = (out / name for name in (_METRICS, _LOG))
    return {path.name: path.stat().st_size for path in paths if path.exists()}


def _cut(out: Path, lengths: Mapping[str, int]) -> None:
    """Cuts the appended files back to what they were at a checkpoint."""
    for path in (out / _METRICS, out / _LOG):
        length, now = lengths.get(path.name, 0), path.stat().st_size if path.exists() else 0
        if now < length:
            raise UserError(f"{path.name}: {length} bytes were there at the last checkpoint, {now} are left")
        if now > length:
            os.truncate(path, length)


def read_records(out: Path) -> list[Record]:
    """The lines of ``metrics.jsonl``."""
    path = out / _METRICS
    try:
        found = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name}: is damaged: {error}") from None
    if not all(isinstance(record, dict) and {*_NEEDED} <= record.keys() for record in found):
        raise UserError(f"{path.name}: is damaged; accepted are the records of this run")
    return found


def _write_results(out: Path, run: Run) -> None:
    """Writes the figure and the summary; the summary last, as the sign that all is there."""
    figures = out / "figures"
    figures.mkdir(exist_ok=True)
    run.plot().savefig(figures / "accuracy.png", dpi=150)
    if run.summary["rounds_per_second"] is None and is_finished(out):
        return  # no round was left: the summary there is of those who ran them
    checkpoint.write_atomically(out / _SUMMARY, json.dumps(run.summary, indent=2))
