"""Several processes, on one machine or many, that run one simulation together.

Each process runs the same program (``jax.distributed``); the clients of a round are spread over the
devices of all of them. The run directory lies where all of them can read it, and the first one writes.
"""

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import jax
import numpy as np

from fedjax_masks.core.errors import UserError
from fedjax_masks.core.messages import printable, single_line
from fedjax_masks.core.nested import flat

AUTO, TIMEOUT = "auto", 300
_GRACE = 30  # seconds that jax waits longer than the timeout
Result = TypeVar("Result")


def join(
    coordinator: str,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = TIMEOUT,
) -> None:
    """Joins the other processes; returns once all have joined. Must run before any other use of jax.

    If they do not join in time, the process ends with exit code 2 and one line: jax itself would abort.

    Args:
      coordinator: ``HOST:PORT`` of the first process, or ``auto`` on a cluster that numbers the processes
        (SLURM, Open MPI, Cloud TPU; see ``jax.distributed.initialize``).
      num_processes: The number of processes.
      process_id: The number of this process, from 0.
      timeout: Seconds to wait for the others.

    Raises:
      UserError: An argument is missing or out of range, or the first process cannot listen.
    """
    options: dict[str, Any] = {}
    if coordinator != AUTO:
        if num_processes is None or process_id is None:
            raise UserError(f"coordinator={coordinator}: must go with --num-processes and --process-id")
        if not 0 <= process_id < num_processes:
            raise UserError(f"process-id={process_id}: must be from 0 to {num_processes - 1}")
        port = coordinator.rpartition(":")[2]
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
            raise UserError(f"coordinator={coordinator}: must be HOST:PORT, or {AUTO}")
        if process_id == 0:
            _check_port(coordinator, int(port))
        options = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
        }
    try:
        with _time_limit(timeout, coordinator):
            jax.distributed.initialize(**options, initialization_timeout=timeout + _GRACE)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"coordinator={coordinator}: must be reachable; {single_line(error)}") from None


def _check_port(coordinator: str, port: int) -> None:
    """Raises UserError if another program listens on the port of the first process."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"coordinator={coordinator}: must have a port that is free on the first process's machine; "
                f"{port}: {error.strerror}"
            ) from None


@contextmanager
def _time_limit(seconds: int, coordinator: str) -> Iterator[None]:
    """Ends this process with one line if the block takes longer."""

    def end() -> None:
        print(
            f"error: coordinator={printable(coordinator)}: must be reached by all processes within {seconds} "
            "seconds; start them all, with the same --num-processes, or raise --join-timeout",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_first() -> bool:
    """Whether this is the first process, which writes."""
    return jax.process_index() == 0


def wait(reason: str) -> None:
    """Returns once every process has called this function; at once if there is only one.

    Args:
      reason: A text, the same in every process, and a new one for every call.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(reason)


def agree(*values: float) -> tuple[float, ...]:
    """The maximum of each value over all processes, so that all of them decide alike."""
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    table = np.asarray(multihost_utils.process_allgather(np.asarray(values, np.float32)))
    return tuple(table.reshape(-1, len(values)).max(0).tolist())


def gather(text: str) -> list[str]:
    """The texts of all processes, in the order of the processes."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    content = text.encode()
    (length,) = agree(len(content))
    row = np.frombuffer(content.ljust(int(length), b"\0"), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(row)).reshape(jax.process_count(), -1)
    return [row.tobytes().rstrip(b"\0").decode() for row in rows]


def check_same(values: Mapping[str, Any]) -> None:
    """Checks that all processes have the same configuration and data.

    Raises:
      UserError: A value differs.
    """
    text = json.dumps(flat(values), sort_keys=True)
    for process, other in enumerate(map(json.loads, gather(text))):
        for key, value in json.loads(text).items():
            if key not in other or other[key] != value:
                raise UserError(
                    f"{key}={value}: must be the same in every process; "
                    f"process {process} has {other.get(key)}, process {jax.process_index()} has {value}"
                )


def attempt(prepare: Callable[[], Result]) -> Result:
    """Calls a function in every process, and fails in all of them if it fails in one.

    Raises:
      UserError: The error of this process, or else of the first process with one.
    """
    result, message = None, ""
    try:
        result = prepare()
    except UserError as error:
        message = str(error)
    messages = gather(message)
    if message:
        raise UserError(message)
    for process, other in enumerate(messages):
        if other:
            raise UserError(f"process {process}: {other}")
    return cast(Result, result)


@contextmanager
def end_with_others() -> Iterator[None]:
    """Ends this process with one line if another one of the run is lost."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        text = single_line(error)
        print(
            f"error: a process of this run is lost ({text}); 'run' continues with --resume, on any number",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # an orderly exit would wait for the lost process
