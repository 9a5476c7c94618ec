"""Several processes, on one machine or many, that run one simulation together.

Each process runs the same program (``jax.distributed``); the clients of a round are spread over the
devices of all of them. The run directory lies where all of them can read it, and the first one writes.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from fedjax_masks.errors import UserError

AUTO = "auto"


def join(coordinator: str, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the other processes; returns once all are there. Before anything else uses jax.

    Args:
      coordinator: ``HOST:PORT`` of the first process, or ``auto`` where a cluster says who is who (SLURM,
        Open MPI, Cloud TPU; see ``jax.distributed.initialize``).
      num_processes: How many there are.
      process_id: Which this one is, from 0.

    Raises:
      UserError: Something is missing or out of range, or the others do not come.
    """
    given: dict[str, Any] = {}
    if coordinator != AUTO:
        if num_processes is None or process_id is None:
            raise UserError(f"coordinator={coordinator}: needs --num-processes and --process-id as well")
        if not 0 <= process_id < num_processes:
            raise UserError(f"process-id={process_id}: accepted are 0 to {num_processes - 1}")
        if not coordinator.rpartition(":")[2].isdigit():
            raise UserError(f"coordinator={coordinator}: accepted is HOST:PORT, or {AUTO}")
        given = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    try:
        jax.distributed.initialize(**given)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"coordinator={coordinator}: {' '.join(str(error).split())}") from None


def first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def wait(reason: str) -> None:
    """Returns once every process is here; at once where there is but one.

    Args:
      reason: The same in every process, and another one each time.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(reason)


@contextmanager
def together() -> Iterator[None]:
    """Where a process is lost, the others cannot go on: says so, and ends this one."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        text = " ".join(str(error).split())
        print(
            f"error: a process of this run is lost ({text}); 'run' continues with --resume, on any number",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # leaving in good order would wait for the lost one
