"""One experiment on disk: a configuration in, a run directory out.

A checkpoint that cannot be written is counted, and the run goes on, unless it is the last. At SIGINT and
SIGTERM the run saves a checkpoint at the end of the current round, and ends.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from fedjax_masks.core.algorithm import FederatedAlgorithm, Task
from fedjax_masks.core.errors import user_errors
from fedjax_masks.core.progress import say, silence
from fedjax_masks.experiment import build, hosts, platforms, run_directory, signals
from fedjax_masks.experiment.config import Config, as_dict
from fedjax_masks.experiment.execution import execute
from fedjax_masks.experiment.loop import chunk_length
from fedjax_masks.experiment.run import Run
from fedjax_masks.experiment.run_directory import open_directory
from fedjax_masks.experiment.setups import (
    Setup,
    make_setup,
    open_tracker,
    plan_line,
    remove_on_failure,
    reserve,
)
from fedjax_masks.simulation import Storage, make_simulation
from fedjax_masks.simulation.plan import parse_plan


def run_experiment(config: Config, out_dir: str | Path, *, resume: bool = False, quiet: bool = False) -> Run:
    """Runs an experiment and writes its run directory.

    Args:
      config: The configuration.
      out_dir: The run directory.
      resume: Whether to continue the run in ``out_dir`` from its last checkpoint, to the same result.
      quiet: Whether no progress is shown.

    Raises:
      UserError: The configuration cannot be served, or ``out_dir`` holds something else, is used by another
        process, or cannot be written to.
      SystemExit: SIGTERM has ended the run.
      KeyboardInterrupt: SIGINT has ended the run.
    """
    out = Path(out_dir)
    platforms.check()
    quiet = quiet or not hosts.is_first()
    with signals.watch() as stop_signal, silence(quiet), contextlib.ExitStack() as stack:

        def prepare() -> tuple[Setup, FederatedAlgorithm, Task]:
            with user_errors():
                stack.enter_context(remove_on_failure(out))
                stack.enter_context(reserve([out]))
                run_config = open_directory(out, config, resume=resume)
                tracker = stack.enter_context(open_tracker(out, config))
                algorithm, task = build.build(config)
                return make_setup(out, config, run_config, task, tracker), algorithm, task

        setup, algorithm, task = hosts.attempt(prepare)
        _end_if_stopped(stop_signal)
        hosts.check_same({**as_dict(config), "fingerprint": setup.fingerprints})
        with user_errors():
            simulation = make_simulation(
                algorithm,
                task,
                cohort=config.cohort,
                seeds=(config.seed,),
                chunk=chunk_length(config.eval_every),
                plan=_plan(setup.run_config, config),
                population=build.population(config, task),
                storage=_storage(setup.run_config, config, out),
                eval_clients=config.eval_clients,
            )
        name = config.algorithm.name
        say(f"{name}: {plan_line(simulation.plan, config, task)}")
        if simulation.store is not None:
            size = f"{simulation.store.state_bytes} bytes for each client that has taken part"
            say(f"{name}: store: {out / run_directory.ROWS} on the host, {size}")
        _end_if_stopped(stop_signal)
        (run,) = execute([setup], simulation, quiet=quiet, stop_signal=stop_signal)
    return run


def _end_if_stopped(stop_signal: signals.StopSignal) -> None:
    """Ends a run at a signal before its first round; several processes go on until they can agree."""
    if stop_signal() and jax.process_count() == 1:
        signals.end(stop_signal())


def _plan(run_config: Mapping[str, Any], config: Config) -> str:
    """The plan under which the run began, if this machine has it, so that results are equal to the bit."""
    plan = run_config.get("chosen_plan", config.plan)
    try:
        parse_plan(plan, cohort=config.cohort)
    except ValueError:  # the run began on other devices
        return config.plan
    return plan


def _storage(run_config: Mapping[str, Any], config: Config, out: Path) -> Storage:
    """The storage of clients' states and data; a resumed run keeps the place of its clients' states."""
    clients = run_config.get("chosen_storage", config.storage.clients)
    return Storage(clients, config.storage.data, out / run_directory.ROWS, config.keep_checkpoints)
