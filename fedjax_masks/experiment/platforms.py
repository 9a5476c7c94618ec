"""Checks of the platform that jax runs on."""

import functools
from pathlib import Path

import jax

from fedjax_masks.core.errors import UserError, one_line
from fedjax_masks.core.messages import warn

_NVIDIA = (Path("/proc/driver/nvidia"), Path("/dev/nvidia0"), Path("/dev/nvidiactl"))
# Switches for debugging under which the engine cannot run, and the values under which it can.
_SWITCHES = {
    "jax_disable_jit": (False,),
    "jax_numpy_rank_promotion": ("allow", "warn"),
    "jax_numpy_dtype_promotion": ("standard",),
    "jax_transfer_guard": (None, "allow", "log"),
    "jax_transfer_guard_host_to_device": (None, "allow", "log"),
    "jax_transfer_guard_device_to_host": (None, "allow", "log"),
}


def check() -> None:
    """Starts jax, and warns once if it does not use the machine's GPU.

    Raises:
      UserError: No platform starts, or jax has a switch set under which the engine cannot run.
    """
    for name, choices in _SWITCHES.items():
        value = getattr(jax.config, name, choices[0])
        value = getattr(value, "value", value)  # of an enumeration
        if value not in choices:
            words = " or ".join(str(choice) for choice in choices if choice is not None)
            raise UserError(f"{name.upper()}={value}: must be {words}; unset it")
    request: str = getattr(jax.config, "jax_platforms", None) or ""
    try:
        platform = jax.default_backend()
    except Exception as error:  # a plugin fails in ways of its own
        reason = f"; jax says {one_line(error)}" if str(error) else ""
        raise UserError(
            f"JAX_PLATFORMS={request}: must name platforms that start on this machine, such as cpu{reason}"
        ) from None
    if platform == "cpu" and "cpu" not in request:
        _warn_of_idle_gpu(any(path.exists() for path in _NVIDIA))


@functools.cache
def _warn_of_idle_gpu(has_gpu: bool) -> None:
    if has_gpu:
        warn(
            f"this machine has an NVIDIA device, but jax {jax.__version__} runs on the CPU: its CUDA plugin "
            "is missing or of another version; pip install 'fedjax_masks[cuda]' adds it, JAX_PLATFORMS=cpu "
            "selects the CPU"
        )
