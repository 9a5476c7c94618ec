"""Execution of prepared runs: from their last checkpoints to complete run directories."""

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from fedjax_masks.core.messages import warn
from fedjax_masks.experiment import disk, hosts, run_directory, signals
from fedjax_masks.experiment.config import as_dict
from fedjax_masks.experiment.loop import run_rounds
from fedjax_masks.experiment.progress import progress
from fedjax_masks.experiment.resumption import resume
from fedjax_masks.experiment.run import Interrupted, OnChunk, Run
from fedjax_masks.experiment.setups import Setup
from fedjax_masks.experiment.writers import chunk_writers
from fedjax_masks.simulation import Simulation

_PACKAGES = ("fedjax_masks", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")


def execute(
    setups: Sequence[Setup], simulation: Simulation, *, quiet: bool, stop_signal: signals.StopSignal
) -> list[Run]:
    """Runs a simulation from the runs' last checkpoints, and writes their directories.

    Args:
      setups: The runs, whose configurations agree in all that a simulation shares; their directories are
        reserved, see :func:`fedjax_masks.experiment.setups.reserve`.
      simulation: The compiled runs.
      quiet: Whether no progress is shown.
      stop_signal: The signal that ends the runs, see :func:`fedjax_masks.experiment.signals.watch`.

    Raises:
      UserError: A run cannot be resumed.
    """
    config, outs = setups[0].config, [setup.out for setup in setups]
    contents = [_config_content(setup, simulation) for setup in setups]
    state, starts, records = resume(setups, simulation)
    if hosts.is_first():
        for setup, content in zip(setups, contents):
            if not setup.run_config:
                disk.write_atomically(setup.out / run_directory.CONFIG, json.dumps(content, indent=2))
            setup.tracker.describe(content)
    failures = [0] * len(outs)
    title, start = config.algorithm.name, starts[0].round
    with progress(title, start=start, rounds=config.rounds, quiet=quiet) as show:
        hooks: list[list[OnChunk]] = [[] for _ in outs]
        if hosts.is_first():
            logs = [setup.tracker.log for setup in setups]
            hooks = chunk_writers(outs, config, logs, failures, simulation.store)
        hooks[0] = [show, *hooks[0]]
        try:
            runs = run_rounds(
                simulation,
                state,
                rounds=config.rounds,
                eval_every=config.eval_every,
                starts=starts,
                records=records,
                on_chunk=hooks,
                stop_signal=stop_signal,
            )
        except Interrupted as stop:
            name = signals.name(stop.signal)
            warn(f"{name}: stopped after round {stop.round}; --resume continues")
            signals.end(stop.signal)
            raise
    runs = [
        dataclasses.replace(
            run,
            summary={**run.summary, "checkpoints_failed": number, **setup.guarantee},
            config=content,
            directory=setup.out,
        )
        for run, content, number, setup in zip(runs, contents, failures, setups)
    ]
    if hosts.is_first():
        for run, out in zip(runs, outs):
            _write_results(out, run)
    hosts.wait("the results are written")
    return runs


def _config_content(setup: Setup, simulation: Simulation) -> dict[str, Any]:
    """The content of ``config.json``."""
    if setup.run_config:
        return dict(setup.run_config)
    device = jax.devices()[0]
    return {
        **as_dict(setup.config),
        "chosen_plan": str(simulation.plan),
        "chosen_plan_reason": simulation.plan.reason,
        "chosen_storage": simulation.state_place,
        "fingerprints": dict(setup.fingerprints),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "platform": {
            "system": platform.platform(),
            "backend": device.platform,
            "device": device.device_kind,
            "devices": jax.device_count(),
            "cpus": os.cpu_count(),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        },
    }


def _version(package: str) -> str | None:
    """A package's version; None for a source tree or a missing package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write_results(out: Path, run: Run) -> None:
    """Writes the summary, which marks the run as finished, and the figure."""
    if run.summary["rounds_per_second"] is not None or not run_directory.is_finished(out):
        # Without a round of this process, the existing summary is that of the process with the last round.
        disk.write_atomically(out / run_directory.SUMMARY, json.dumps(run.summary, indent=2))
    from fedjax_masks.analysis.canvas import save_figure

    save_figure(run.plot, out / run_directory.FIGURES / "accuracy.png")
