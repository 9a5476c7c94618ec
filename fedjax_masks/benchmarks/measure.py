"""Measurements of time and memory on a machine with other load."""

import contextlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from fedjax_masks.core import target
from fedjax_masks.core.progress import activity, lines

Carry = TypeVar("Carry")


class Rates(NamedTuple):
    """Rates of the machine.

    Attributes:
      gflops: The rate of matrix products in float32, in GFLOP/s.
      gbytes: The rate at which an elementwise operation in a loop reads and writes memory, in GB/s.
    """

    gflops: float
    gbytes: float


def seconds(call: Callable[[], Any]) -> float:
    """Seconds of a call, until its results are ready."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def time_in_turns(
    calls: Mapping[Any, Callable[[], Any]], turns: int, *, title: str = "measuring"
) -> dict[Any, list[float]]:
    """Times calls in turns, so that other load of the machine slows all of them alike.

    Every call runs once more at the beginning, without measurement.

    Args:
      calls: The calls by name.
      turns: The number of turns; each call runs once in a turn.
      title: The title of the lines of progress.

    Returns:
      Seconds of each call in each turn, by name.
    """
    times: dict[Any, list[float]] = {name: [] for name in calls}
    with lines(title, total=turns, unit="turns", phase="warming up") as show:
        for call in calls.values():
            jax.block_until_ready(call())
        for turn in range(turns):
            for name, call in calls.items():
                times[name].append(seconds(call))
            show(turn + 1, now=turn + 1 == turns)
    return times


def speedup(slow: npt.ArrayLike, fast: npt.ArrayLike) -> float:
    """The median ratio of two lists of seconds, measured in turns."""
    return round(statistics.median(np.asarray(slow) / np.asarray(fast)), 3)


def median_ms(times: npt.ArrayLike) -> float:
    """The median of a list of seconds, in milliseconds."""
    return round(1e3 * float(np.median(np.asarray(times))), 4)


def matmul_gflops(size: int | None = None, repeats: int = 9) -> float:
    """The rate of float32 matrix products in GFLOP/s: the best of several products.

    Args:
      size: Rows and columns; None for 1024 on a CPU, and for 8192 on an accelerator, where a smaller product
        takes less time than its start.
      repeats: The number of products.
    """
    size = size or (1024 if target.is_cpu() else 8192)
    a = jnp.ones((size, size), jnp.float32)
    with target.exact_products():
        product = jax.jit(jnp.matmul).lower(a, a).compile()
    return 2 * size**3 / min(seconds(lambda: product(a, a)) for _ in range(repeats)) / 1e9


def stream_gbytes(size: int = 2**25, repeats: int = 9) -> float:
    """The rate in GB/s of reading and writing an array that is too large for any cache.

    The operation works in place: with fresh memory, most of the time would go into its allocation.
    """
    passes = 10
    scale = jax.jit(lambda a: jax.lax.fori_loop(0, passes, lambda _, a: 1.0001 * a, a), donate_argnums=0)
    call = repeat(scale, jnp.ones(size, jnp.float32))
    return 2 * passes * 4 * size / min(seconds(call) for _ in range(repeats)) / 1e9


def repeat(run: Callable[[Carry], Carry], carry: Carry) -> Callable[[], Carry]:
    """A call of ``run`` with its last result, which it may donate; the first call takes ``carry``."""
    result = [carry]

    def call() -> Carry:
        result[0] = run(result[0])
        return result[0]

    return call


def rates() -> Rates:
    """Measures the rates of the machine."""
    with activity("rates of the machine"):
        return Rates(round(matmul_gflops(), 1), round(stream_gbytes(), 1))


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MB, since the last :func:`forget_peak` on Linux."""
    return _status_mb("VmHWM") or _most_resident_mb()


def device_peak_mb() -> float | None:
    """Peak memory of the first device in MB, since the start of the process; None where it is not told."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 1e6 if "peak_bytes_in_use" in stats else None


def _most_resident_mb() -> float:
    """The peak that the system reports; NaN where it reports none, as on Windows."""
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def resident_mb() -> float:
    """Resident memory of this process in MB; the peak where the system does not report it."""
    return _status_mb("VmRSS") or peak_rss_mb()


def forget_peak() -> None:
    """Resets the measurement of the peak; works on Linux alone."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status_mb(field: str) -> float | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


def device() -> str:
    """The number and kind of the devices."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
