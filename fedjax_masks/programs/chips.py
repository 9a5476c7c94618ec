"""Accelerators: what a compiler must know of a chip, and the rates of its data sheet."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jax.experimental import topologies

from fedjax_masks.core.errors import UserError, unknown_name
from fedjax_masks.core.target import Device


class Chip(NamedTuple):
    """An accelerator.

    Attributes:
      name: Its name.
      platform: ``"gpu"`` or ``"tpu"``.
      memory: Bytes of memory that JAX takes: of a GPU three quarters, unless it is told otherwise.
      bandwidth: Bytes per second of that memory.
      flops: FLOP/s of products of float32 by precision: ``"default"``, which rounds operands, and
        ``"highest"``.
      launch: Seconds from the start of one kernel to that of the next, if both are short.
      turn: Seconds of one turn of a loop whose end the host decides.
      description: The description for the compiler: of a GPU, its properties; of a TPU, its topology.
    """

    name: str
    platform: str
    memory: int
    bandwidth: float
    flops: Mapping[str, float]
    launch: float
    turn: float
    description: str


def _gpu(
    name: str,
    *,
    compute: tuple[int, int],
    cores: int,
    units: int,
    clock: float,
    memory: int,
    bandwidth: float,
    cache: int,
    shared: int,
    flops: Mapping[str, float],
) -> Chip:
    """A GPU by NVIDIA.

    Args:
      name: Its name.
      compute: Its compute capability.
      cores: The number of its multiprocessors.
      units: Units for float32 in each of these.
      clock: GHz.
      memory: Bytes.
      bandwidth: Bytes per second.
      cache: Bytes of its second cache.
      shared: Bytes of shared memory of a multiprocessor.
      flops: See :class:`Chip`.
    """
    major, minor = compute
    extension = " feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    threads = 1024 if compute == (7, 5) else 2048
    description = f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads}
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared - 1024}
  core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: {int(bandwidth)} l2_cache_size: {cache} device_memory_size: {memory}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor}{extension} }}
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 8 }}
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""
    return Chip(
        name, "gpu", memory * 3 // 4, bandwidth, flops, launch=3e-6, turn=2e-5, description=description
    )


CHIPS: Mapping[str, Chip] = {
    "h200": _gpu(
        "NVIDIA H200",
        compute=(9, 0),
        cores=132,
        units=128,
        clock=1.98,
        memory=151397597184,
        bandwidth=4.8e12,
        cache=52428800,
        shared=233472,
        flops={"default": 494e12, "highest": 67e12},
    ),
    "a100": _gpu(
        "NVIDIA A100-SXM4-40GB",
        compute=(8, 0),
        cores=108,
        units=64,
        clock=1.41,
        memory=42331013120,
        bandwidth=1.555e12,
        cache=41943040,
        shared=167936,
        flops={"default": 156e12, "highest": 19.5e12},
    ),
    "t4": _gpu(
        "Tesla T4",
        compute=(7, 5),
        cores=40,
        units=64,
        clock=1.59,
        memory=15828320256,
        bandwidth=3.2e11,
        cache=4194304,
        shared=65536,
        flops={"default": 8.1e12, "highest": 8.1e12},
    ),
    "tpu-v5e": Chip(
        "TPU v5e",
        "tpu",
        memory=16 * 2**30,
        bandwidth=8.19e11,
        flops={"default": 197e12, "highest": 197e12 / 6},  # six passes of bfloat16
        launch=5e-7,
        turn=0.0,
        description="v5e:1x1",
    ),
}
"""Chips by name; rates by their data sheets, dense."""


# The library for TPUs else asks the network of a cloud.
_WITHOUT_CLOUD = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def chip_named(name: str) -> Chip:
    """A chip whose compiler is installed.

    Raises:
      UserError: There is no such chip, or its compiler is not installed.
    """
    if name not in CHIPS:
        raise unknown_name("compile-for", name, CHIPS)
    chip = CHIPS[name]
    needed = {"gpu": "jax_cuda13_plugin", "tpu": "libtpu"}[chip.platform]
    if importlib.util.find_spec(needed) is None:
        raise UserError(
            f"compile-for={name!r}: must have the compiler {needed}, which is not installed; "
            "pip install 'fedjax_masks[aot]'"
        )
    return chip


def chip_of(platform: str, kind: str) -> Chip | None:
    """The chip of a device that is there: by name, else the first of its platform, else None.

    >>> chip_of("gpu", "NVIDIA A100-SXM4-80GB").name, chip_of("gpu", "another").name
    ('NVIDIA A100-SXM4-40GB', 'NVIDIA H200')
    """
    chips = [chip for chip in CHIPS.values() if chip.platform == platform]
    named = [chip for chip in chips if _model(chip.name) in kind.lower()]
    return next(iter(named or chips), None)


def _model(name: str) -> str:
    """The name of a chip without its maker and its memory, in small letters.

    >>> _model("NVIDIA A100-SXM4-40GB")
    'a100'
    """
    return name.split()[-1].split("-")[0].lower().replace("v5e", "v5 lite")


def devices_of(chip: Chip) -> Sequence[Device]:
    """One device of the chip, for the compiler alone."""
    if chip.platform == "gpu":
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name=chip.name, topology="1x1x1", target_config=chip.description
        )
    else:
        for name, value in _WITHOUT_CLOUD.items():
            os.environ.setdefault(name, value)
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=chip.description, chips_per_host_bounds=(1, 1, 1), num_slices=1
        )
    return topology.devices
