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
from fedjax_masks.core.trees import flat

AUTO, TIMEOUT = "auto", 300
_GRACE = 30  # seconds that jax waits longer than we do
Result = TypeVar("Result")


def join(
    coordinator: str,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = TIMEOUT,
) -> None:
    """Joins the other processes; returns once all are there. Before anything else uses jax.

    Where they do not come in time, the process ends with exit code 2 and one line: jax itself would abort.

    Args:
      coordinator: ``HOST:PORT`` of the first process, or ``auto`` where a cluster says who is who (SLURM,
        Open MPI, Cloud TPU; see ``jax.distributed.initialize``).
      num_processes: How many there are.
      process_id: Which this one is, from 0.
      timeout: Seconds to wait for the others.

    Raises:
      UserError: Something is missing or out of range, or the first process cannot listen.
    """
    given: dict[str, Any] = {}
    if coordinator != AUTO:
        if num_processes is None or process_id is None:
            raise UserError(f"coordinator={coordinator}: needs --num-processes and --process-id as well")
        if not 0 <= process_id < num_processes:
            raise UserError(f"process-id={process_id}: accepted are 0 to {num_processes - 1}")
        port = coordinator.rpartition(":")[2]
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
            raise UserError(f"coordinator={coordinator}: accepted is HOST:PORT, or {AUTO}")
        if process_id == 0:
            _check_free(coordinator, int(port))
        given = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    try:
        with _ending_after(timeout, coordinator):
            jax.distributed.initialize(**given, initialization_timeout=timeout + _GRACE)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"coordinator={coordinator}: {' '.join(str(error).split())}") from None


def _check_free(coordinator: str, port: int) -> None:
    """Raises UserError where another program listens on the port of the first process."""
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
def _ending_after(seconds: int, coordinator: str) -> Iterator[None]:
    """Ends this process in one line where the block takes longer."""

    def end() -> None:
        print(
            f"error: coordinator={coordinator}: must be reached by all processes within {seconds} seconds; "
            "start them all, with the same --num-processes, or raise --join-timeout",
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


def agree(*values: float) -> tuple[float, ...]:
    """The largest of each value over all processes, so that all of them decide alike."""
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    gathered = np.asarray(multihost_utils.process_allgather(np.asarray(values, np.float32)))
    return tuple(gathered.reshape(-1, len(values)).max(0).tolist())


def gather(text: str) -> list[str]:
    """A text of each process, in the order of processes, in all of them."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    content = text.encode()
    (length,) = agree(len(content))
    padded = np.frombuffer(content.ljust(int(length), b"\0"), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(padded)).reshape(jax.process_count(), -1)
    return [row.tobytes().rstrip(b"\0").decode() for row in gathered]


def check_same(values: Mapping[str, Any]) -> None:
    """Checks that all processes were started with the same configuration and data.

    Raises:
      UserError: They were not.
    """
    own = json.dumps(flat(values), sort_keys=True)
    for process, other in enumerate(map(json.loads, gather(own))):
        for key, value in json.loads(own).items():
            if key not in other or other[key] != value:
                raise UserError(
                    f"{key}={value}: must be the same in every process; "
                    f"process {process} has {other.get(key)}, process {jax.process_index()} has {value}"
                )


def attempt(prepare: Callable[[], Result]) -> Result:
    """Prepares something in every process, and fails in all of them where it fails in one.

    Raises:
      UserError: That of this process, or else of the first one that has failed.
    """
    result, said = None, ""
    try:
        result = prepare()
    except UserError as error:
        said = str(error)
    texts = gather(said)
    if said:
        raise UserError(said)
    for process, text in enumerate(texts):
        if text:
            raise UserError(f"process {process}: {text}")
    return cast(Result, result)


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
