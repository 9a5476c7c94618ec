"""The platform that jax runs on: whether it starts, and whether it is the one that is meant."""

import functools
import logging
from pathlib import Path

import jax

from fedjax_masks.core.errors import UserError, in_a_line

_LOGGER = logging.getLogger("fedjax_masks")
_NVIDIA = (Path("/proc/driver/nvidia"), Path("/dev/nvidia0"), Path("/dev/nvidiactl"))
# Switches for debugging under which the engine cannot run, and the values that it accepts.
_SWITCHES = {
    "jax_disable_jit": (False,),
    "jax_numpy_rank_promotion": ("allow", "warn"),
    "jax_numpy_dtype_promotion": ("standard",),
    "jax_transfer_guard": (None, "allow", "log"),
    "jax_transfer_guard_host_to_device": (None, "allow", "log"),
    "jax_transfer_guard_device_to_host": (None, "allow", "log"),
}


def check() -> None:
    """Starts jax, and warns once where a GPU lies idle beside it.

    Raises:
      UserError: No platform starts, or jax has a switch set under which nothing runs here.
    """
    for name, accepted in _SWITCHES.items():
        value = getattr(jax.config, name, accepted[0])
        value = getattr(value, "value", value)  # of an enumeration
        if value not in accepted:
            words = " or ".join(str(choice) for choice in accepted if choice is not None)
            raise UserError(f"{name.upper()}={value}: must be {words}; unset it")
    asked: str = getattr(jax.config, "jax_platforms", None) or ""
    try:
        platform = jax.default_backend()
    except Exception as error:  # a plugin fails in ways of its own
        reason = f"; jax says {in_a_line(error)}" if str(error) else ""
        raise UserError(
            f"JAX_PLATFORMS={asked}: must name platforms that start on this machine, such as cpu{reason}"
        ) from None
    if platform == "cpu" and "cpu" not in asked:
        _warn_of_idle_gpu(any(path.exists() for path in _NVIDIA))


@functools.cache
def _warn_of_idle_gpu(there: bool) -> None:
    if there:
        _LOGGER.warning(
            "an NVIDIA device is there, but jax %s runs on the CPU: its CUDA plugin is missing or of another "
            "version; pip install 'fedjax_masks[cuda]' puts that right, or JAX_PLATFORMS=cpu",
            jax.__version__,
        )
