"""Timing of things against each other on a machine that is never quiet."""

import contextlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from fedjax_masks.core.progress import lines, working


class Rates(NamedTuple):
    """What the machine can do.

    Attributes:
      gflops: Matrix products in float32, in GFLOP/s.
      gbytes: Memory read and written by an elementwise operation in a loop, in GB/s.
    """

    gflops: float
    gbytes: float


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of a call, until its results are there."""
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def in_turns(
    calls: Mapping[Any, Callable[[], Any]], turns: int, *, title: str = "measuring"
) -> dict[Any, list[float]]:
    """Seconds of each call, one after the other, over and over, after one round for warming up.

    Args:
      calls: The calls by name.
      turns: How often each is measured.
      title: What is measured, for the lines of progress.
    """
    taken: dict[Any, list[float]] = {name: [] for name in calls}
    with lines(title, total=turns, unit="turns", doing="warming up") as show:
        for call in calls.values():
            jax.block_until_ready(call())
        for turn in range(turns):
            for name, call in calls.items():
                taken[name].append(seconds(call))
            show(turn + 1, now=turn + 1 == turns)
    return taken


def speedup(slow: npt.ArrayLike, fast: npt.ArrayLike) -> float:
    """The median ratio of two lists of seconds, taken in turns."""
    return round(statistics.median(np.asarray(slow) / np.asarray(fast)), 3)


def median_ms(taken: npt.ArrayLike) -> float:
    """The median of some seconds, in milliseconds."""
    return round(1e3 * float(np.median(np.asarray(taken))), 4)


def matmul_gflops(size: int = 1024, repeats: int = 9) -> float:
    """The machine's float32 matrix-product rate in GFLOP/s: best of several products."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / min(seconds(lambda: product(a, a)) for _ in range(repeats)) / 1e9


def stream_gbytes(size: int = 2**25, repeats: int = 9) -> float:
    """The rate in GB/s at which an array too large for any cache is read and written, over and over.

    In place: in fresh memory, most of the time goes by until the system has handed it out.
    """
    passes = 10
    scale = jax.jit(lambda a: jax.lax.fori_loop(0, passes, lambda _, a: 1.0001 * a, a), donate_argnums=0)
    call = repeated(scale, jnp.ones(size, jnp.float32))
    return 2 * passes * 4 * size / min(seconds(call) for _ in range(repeats)) / 1e9


def repeated(run: Callable[[Any], Any], carry: Any) -> Callable[[], Any]:
    """Calls of ``run`` that go on where the last one ended and, if it donates, in the memory it had."""
    held = [carry]

    def call() -> Any:
        held[0] = run(held[0])
        return held[0]

    return call


def rates() -> Rates:
    """Measures the machine."""
    with working("rates of the machine"):
        return Rates(round(matmul_gflops(), 1), round(stream_gbytes(), 1))


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MB, since :func:`forget_peak` where that works."""
    return _status_mb("VmHWM") or _most_resident_mb()


def _most_resident_mb() -> float:
    """The system's own account of the peak; NaN where it keeps none, as on Windows."""
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def resident_mb() -> float:
    """Resident memory of this process now, in MB; its peak where that is not known."""
    return _status_mb("VmRSS") or peak_rss_mb()


def forget_peak() -> None:
    """Starts the measurement of the peak anew; on Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status_mb(field: str) -> float | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


def device() -> str:
    """The devices, by number and kind."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
