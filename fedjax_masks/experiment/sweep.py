"""Sweeps: many runs from one file, a grid over algorithms, seeds and options.

The runs of a group (:mod:`fedjax_masks.experiment.groups`) are one compiled program; groups follow each
other. Every run has a directory, as from :func:`fedjax_masks.experiment.experiment.run_experiment`.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from fedjax_masks.core.errors import UserError, user_errors
from fedjax_masks.core.progress import say, silence
from fedjax_masks.experiment import build, experiment, lock, platforms, run_directory, signals, trackers
from fedjax_masks.experiment.config import Config
from fedjax_masks.experiment.execution import execute
from fedjax_masks.experiment.grid import Job, read_sweep
from fedjax_masks.experiment.groups import Group, flat_config, group_jobs, with_values
from fedjax_masks.experiment.loop import chunk_length
from fedjax_masks.experiment.setups import make_setup, open_tracker, plan_line, reserve
from fedjax_masks.experiment.sweep_table import SWEEP, write_table
from fedjax_masks.simulation import Simulation, make_simulation


def run_sweep(
    path: str | Path, out_dir: str | Path, *, resume: bool = False, quiet: bool = False
) -> list[Job]:
    """Runs a sweep and writes its directory: one directory a run, ``runs.csv`` and ``sweep.json``.

    All errors of the file are raised before the first run.

    Args:
      path: The sweep's TOML file.
      out_dir: The sweep's directory.
      resume: Whether to skip the runs that are finished in ``out_dir``, and to continue the others.
      quiet: Whether neither the plan nor progress is shown.

    Returns:
      The runs.

    Raises:
      UserError: A run cannot be served, or ``out_dir`` holds something else.
    """
    jobs, out = read_sweep(path), Path(out_dir)
    platforms.check()
    with signals.watch() as stop_signal, silence(quiet), reserve([out]):
        if not resume and {file.name for file in out.iterdir()} - {lock.NAME}:
            raise UserError(f"out={str(out)!r}: must be empty; --resume continues the sweep in it")
        _check_directory(out, jobs)
        with user_errors():
            for job in jobs:
                run_directory.open_directory(out / job.name, job.config, resume=resume)
            unfinished = [job for job in jobs if not run_directory.is_finished(out / job.name)]
            trackers.check(sorted({name for job in unfinished for name in trackers.parse(job.config.log)}))
            groups = group_jobs(unfinished, lambda job: run_directory.rounds_saved(out / job.name))
        for group in groups:
            say(f"plan: {group}")
        write_table(jobs, out)
        for group in groups:
            if stop_signal():
                signals.end(stop_signal())
            _run_group(group, out, quiet=quiet, stop_signal=stop_signal)
            write_table(jobs, out)
    return jobs


def _check_directory(out: Path, jobs: Sequence[Job]) -> None:
    """Raises UserError if a directory holds a single run, or a sweep of other runs than these."""
    if (out / run_directory.CONFIG).exists():
        raise UserError(f"out={str(out)!r}: must be the directory of a sweep; it holds a single run")
    path = out / SWEEP
    runs = run_directory.read_object(path).get("runs", {}) if path.exists() else {}
    foreign_runs = set(runs) - {job.name for job in jobs}
    if foreign_runs:
        raise UserError(
            f"out={str(out)!r}: must be the directory of this sweep; it holds {min(foreign_runs)!r}, "
            "which is no run of the file"
        )


def _run_group(group: Group, out: Path, *, quiet: bool, stop_signal: signals.StopSignal) -> None:
    """Runs a group as one program; one run after the other if they do not fit into memory together."""
    configs, outs = [job.config for job in group.jobs], [out / job.name for job in group.jobs]
    simulation = _simulation(group, configs) if len(configs) > 1 else None
    if simulation is None:
        for config, directory in zip(configs, outs):
            if stop_signal():
                signals.end(stop_signal())
            experiment.run_experiment(config, directory, resume=True, quiet=quiet)
        return
    say(plan_line(simulation.plan, configs[0], group.task))
    with reserve(outs), ExitStack() as stack:
        setups = [
            make_setup(
                directory,
                config,
                run_directory.open_directory(directory, config, resume=True),
                group.task,
                stack.enter_context(open_tracker(directory, config)),
            )
            for directory, config in zip(outs, configs)
        ]
        execute(setups, simulation, quiet=quiet, stop_signal=stop_signal)


def _simulation(group: Group, configs: Sequence[Config]) -> Simulation | None:
    """The program of several runs; None if they must follow each other."""
    config, values = configs[0], [flat_config(config) for config in configs]
    if "host" in (config.storage.clients, config.storage.data):
        say("plan: one run after the other; the host's storage serves one run")
        return None
    try:
        return make_simulation(
            lambda values: group.make(with_values(config, values)),
            group.task,
            values={key: [row[key] for row in values] for key in group.traced_keys},
            seeds=[run_config.seed for run_config in configs],
            cohort=config.cohort,
            chunk=chunk_length(config.eval_every),
            plan=config.plan,
            population=build.population(config, group.task),
            eval_clients=config.eval_clients,
        )
    except MemoryError as error:
        say(f"plan: one run after the other; {error}")
        return None
