"""SIGTERM, the wish of a scheduler that a process ends soon."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_CODE = 128 + signal.SIGTERM
"""Of a process that was asked to end and did, as shells count."""


@contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """Notes the first SIGTERM instead of ending at once; the second one ends the process.

    Outside of the main thread, which alone may handle signals, nothing changes.

    Yields:
      Says whether one has come.

    >>> with noted() as asked:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     asked()
    True
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = False
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL

    def note(*_: object) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, before)
