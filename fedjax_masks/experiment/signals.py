"""SIGINT and SIGTERM: wishes of a person or a scheduler that a process ends soon."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def noted() -> Iterator[Callable[[], int]]:
    """Notes the first SIGINT or SIGTERM instead of ending at once; the second one has its usual effect.

    A handler that raises would not do: a callback of another library may swallow what it raises. Where a
    signal has come and the block has ended without an exception, :func:`end` raises. Outside of the main
    thread, which alone may handle signals, nothing changes.

    Yields:
      ``() -> int``: the signal that has come, else 0.

    >>> with noted() as asked:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     asked() == signal.SIGTERM
    Traceback (most recent call last):
    SystemExit: 143
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    came = 0
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        nonlocal came
        came = number
        restore()

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda: came
    finally:
        restore()
    if came:
        end(came)


def name(number: int) -> str:
    """A signal's name.

    >>> name(15)
    'SIGTERM'
    """
    return signal.Signals(number).name


def end(number: int) -> None:
    """Ends a run that a signal has asked to end, in the way that this signal is known for.

    Raises:
      KeyboardInterrupt: For SIGINT.
      SystemExit: For any other, with the exit code by which shells tell signals.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextmanager
def second_signal_ends() -> Iterator[None]:
    """Ends the process at once at its second SIGINT or SIGTERM, even while a compiled program runs.

    Python's own handlers wait until such a program returns. The system's handler writes a byte meanwhile,
    which a thread reads. For programs, not for notebooks, whose kernel would end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_count_signals, args=(ours,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        theirs.close()
        thread.join()
        ours.close()


def _count_signals(source: socket.socket) -> None:
    came = 0
    while byte := source.recv(1):
        if byte[0] not in _SIGNALS:
            continue
        came += 1
        if came == 2:
            os._exit(128 + byte[0])
        print(f"{name(byte[0])}: ending soon; a second signal ends at once", file=sys.stderr, flush=True)
