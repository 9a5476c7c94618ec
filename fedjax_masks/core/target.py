"""The devices that programs are made for: those at hand, or others.

A program may be compiled for a chip that is not there (:mod:`fedjax_masks.aot`), and a test may run the
program of an accelerator on a CPU. Whatever depends on the platform asks this module.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax

from fedjax_masks.core.types import PyTree

Device = Any  # jax.Device is no type for type checkers


class Target(NamedTuple):
    """The devices that programs are made for.

    Attributes:
      platform: ``"cpu"``, ``"gpu"`` or ``"tpu"``.
      devices: The devices; None for those at hand.
      memory: Bytes of memory of each; None for the free memory at hand.
    """

    platform: str
    devices: Sequence[Device] | None = None
    memory: int | None = None


_TARGET: ContextVar[Target | None] = ContextVar("target", default=None)


def platform() -> str:
    """The platform that programs are made for: ``"cpu"``, ``"gpu"`` or ``"tpu"``."""
    target = _TARGET.get()
    return jax.default_backend() if target is None else target.platform


def is_cpu() -> bool:
    """Whether programs are made for a CPU."""
    return platform() == "cpu"


def devices() -> Sequence[Device]:
    """The devices that programs are made for, of all processes."""
    target = _TARGET.get()
    return jax.devices() if target is None or target.devices is None else target.devices


def memory() -> int | None:
    """Bytes of memory of each device; None for the free memory at hand."""
    target = _TARGET.get()
    return None if target is None else target.memory


def local_device() -> Device:
    """The first of the devices that belong to this process."""
    target = _TARGET.get()
    return jax.local_devices()[0] if target is None or target.devices is None else target.devices[0]


def lower(program: jax.stages.Wrapped, *shapes: PyTree) -> jax.stages.Lowered:
    """Lowers a program for the devices."""
    target = _TARGET.get()
    if target is None or target.devices is None:
        return program.lower(*shapes)
    name = {"gpu": "cuda"}.get(target.platform, target.platform)
    return program.trace(*shapes).lower(lowering_platforms=(name,))


def exact_products() -> AbstractContextManager[None]:
    """Products of float32 in float32 within a block, unless the algorithm asks for less.

    GPUs and TPUs else round their operands, and plans then differ in the third digit.
    """
    return jax.default_matmul_precision("float32")


@contextmanager
def making_for(target: Target) -> Iterator[None]:
    """Makes the programs of the block for other devices than those at hand.

    >>> with making_for(Target("gpu")):
    ...     platform()
    'gpu'
    """
    # jax keeps traces of functions for equal arguments, and does not know that a choice has changed.
    jax.clear_caches()
    token = _TARGET.set(target)
    try:
        yield
    finally:
        _TARGET.reset(token)
        jax.clear_caches()
