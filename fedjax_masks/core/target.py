"""The platform that programs are made for: the one at hand, or another one.

A program may be compiled for a chip that is not there (:mod:`fedjax_masks.aot`), and a test may run the
program of an accelerator on a CPU. All choices that depend on the platform ask :func:`platform`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_CHOSEN: ContextVar[str | None] = ContextVar("platform", default=None)


def platform() -> str:
    """The platform that programs are made for: ``"cpu"``, ``"gpu"`` or ``"tpu"``."""
    return _CHOSEN.get() or jax.default_backend()


def is_cpu() -> bool:
    """Whether programs are made for a CPU."""
    return platform() == "cpu"


@contextmanager
def making_for(name: str) -> Iterator[None]:
    """Makes the programs of the block for a platform, whatever the platform at hand is.

    Args:
      name: ``"cpu"``, ``"gpu"`` or ``"tpu"``.

    >>> with making_for("gpu"):
    ...     platform()
    'gpu'
    """
    # jax keeps traces of functions for equal arguments, and does not know that a choice has changed.
    jax.clear_caches()
    token = _CHOSEN.set(name)
    try:
        yield
    finally:
        _CHOSEN.reset(token)
        jax.clear_caches()
