"""Processes that run an experiment, and the faults that may be put into them."""

import builtins
import errno
import io
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_masks import analysis
from fedjax_masks.algorithms import building
from fedjax_masks.cli import main as cli
from fedjax_masks.experiment import experiment

IMPORTED = (analysis, experiment)  # before a process is forked, so that no process imports them again
POLL = 0.0005  # seconds between two looks at a process
ERROR_SHARE = 0.008  # of all calls that concern files


class Runs(NamedTuple):
    """The configuration of a campaign's runs.

    Attributes:
      setting: Values of the configuration by key.
      rounds: The number of rounds of each run.
    """

    setting: dict[str, str]
    rounds: int


class Process:
    """A process of its own that calls a function.

    It is forked from this process, which has imported everything and has not started jax, and so starts
    without delay.

    Args:
      function: ``() -> int``: the exit code.
    """

    def __init__(self, function: Callable[[], int]) -> None:
        self._stderr, write = os.pipe()
        self.returncode: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._stderr)
            os.dup2(write, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            # The inherited stream objects may buffer, or take the pipe for a terminal.
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
            os._exit(self._call(function))
        os.close(write)

    @staticmethod
    def _call(function: Callable[[], int]) -> int:
        try:
            return function()
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
            return 1
        finally:
            sys.stderr.flush()

    def poll(self) -> int | None:
        """The exit code, or minus the signal's number; None while the process runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send(self, number: int) -> None:
        """Sends a signal, if the process still runs."""
        if self.poll() is None:
            os.kill(self._pid, number)

    def end(self) -> str:
        """Waits for the end of the process, and returns its output on stderr."""
        with open(self._stderr, encoding="utf-8", errors="replace", closefd=False) as pipe:
            output = pipe.read()
        os.close(self._stderr)
        while self.poll() is None:
            time.sleep(POLL)
        return output


def start(out: Path, runs: Runs, **faults: str) -> Process:
    """Starts or continues the run in a directory.

    Args:
      out: The directory.
      runs: The configuration.
      **faults: Faults of the process, see :func:`run_in_child`.
    """
    command = ["run", "--resume", "--quiet", "--out", str(out)]
    for key, value in {**runs.setting, "rounds": runs.rounds}.items():
        command += ["--set", f"{key}={value}"]
    return Process(lambda: run_in_child(faults, command))


def run_in_child(faults: dict[str, str], argv: list[str]) -> int:
    """Runs the command line in this process.

    Args:
      faults: ``edit``: the algorithm's state has one more leaf. ``errors``: files fail at random, with this
        seed; ``count`` names a file for the number of failures.
      argv: The arguments.
    """
    if "edit" in faults:
        build = building.build
        building.build = lambda *args, **options: edited(build(*args, **options))
    if "errors" in faults:
        fail_at_random(int(faults["errors"]), Path(faults["count"]))
    return cli.main(argv)


def edited(algorithm: Any) -> Any:
    """An algorithm whose server has one more leaf in its state."""

    def init(key: Any, task: Any) -> Any:
        state = algorithm.init(key, task)
        return state._replace(server={"state": state.server, "more": jnp.zeros(3)})

    def merge(round: Any, server: Any, total: Any) -> Any:
        new, info = algorithm.merge(round, server["state"], total)
        return {**server, "state": new}, info

    def with_state(predict: Any) -> Any:
        return lambda server, client, x: predict(server["state"], client, x)

    return algorithm._replace(
        init=init,
        send=lambda round, server, profile: algorithm.send(round, server["state"], profile),
        receive=lambda round, server, *rest: algorithm.receive(round, server["state"], *rest),
        merge=merge,
        predict={name: with_state(predict) for name, predict in algorithm.predict.items()},
    )


def fail_at_random(seed: int, count: Path) -> None:
    """Makes calls that concern files raise EIO at random, and counts them in a file."""
    rng, failures, original_open = np.random.default_rng(seed), [], open

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *args: Any, **options: Any) -> Any:
            if _concerns_runs(target) and rng.random() < ERROR_SHARE:
                failures.append(1)
                with original_open(count, "w") as file:
                    file.write(str(len(failures)))
                raise OSError(errno.EIO, "Input/output error")
            return function(target, *args, **options)

        return call

    builtins.open = io.open = failing(open)
    for name in ("replace", "rename", "fsync", "truncate", "pread", "pwrite"):
        setattr(os, name, failing(getattr(os, name)))


def _concerns_runs(target: Any) -> bool:
    # jax itself reports errors of the folder of compiled programs, which therefore never fails here.
    return isinstance(target, int) or f"{os.sep}errors{os.sep}" in os.fspath(target)
