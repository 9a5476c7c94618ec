"""SIGINT and SIGTERM: requests of a person or a scheduler that a process ends."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

StopSignal = Callable[[], int]
"""``() -> int``: the signal that requests the end of a run, or 0 as long as there is none."""


@contextmanager
def watch() -> Iterator[StopSignal]:
    """Records the first SIGINT or SIGTERM instead of ending at once; the second one has its usual effect.

    A handler that raises an exception is no substitute: a callback of another library may swallow the
    exception. If a signal arrives and the block ends without an exception, :func:`end` raises. Outside of the
    main thread, which alone may handle signals, nothing changes.

    Yields:
      The signal that has arrived.

    >>> with watch() as stop_signal:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop_signal() == signal.SIGTERM
    Traceback (most recent call last):
    SystemExit: 143
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    arrival = 0
    handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in _SIGNALS}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def record(number: int, _: object) -> None:
        nonlocal arrival
        arrival = number
        restore()

    for number in _SIGNALS:
        signal.signal(number, record)
    try:
        yield lambda: arrival
    finally:
        restore()
    if arrival:
        end(arrival)


def name(number: int) -> str:
    """A signal's name.

    >>> name(15)
    'SIGTERM'
    """
    return signal.Signals(number).name


def end(number: int) -> None:
    """Ends a run in the usual way of a signal.

    Raises:
      KeyboardInterrupt: The signal is SIGINT.
      SystemExit: It is another one; the exit code is 128 plus the signal's number, as in shells.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextmanager
def second_signal_ends() -> Iterator[None]:
    """Ends the process at once at its second SIGINT or SIGTERM, even while a compiled program runs.

    Python's handlers wait until such a program returns. The system's handler writes a byte meanwhile,
    which a thread reads. Not for notebooks, whose kernel would end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    previous = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_count_signals, args=(receiver,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        sender.close()
        thread.join()
        receiver.close()


def _count_signals(source: socket.socket) -> None:
    """Reads numbers of signals; ends the process at the second SIGINT or SIGTERM."""
    count = 0
    while byte := source.recv(1):
        if byte[0] not in _SIGNALS:
            continue
        count += 1
        if count == 2:
            os._exit(128 + byte[0])
        print(f"{name(byte[0])}: ending soon; a second signal ends at once", file=sys.stderr, flush=True)
