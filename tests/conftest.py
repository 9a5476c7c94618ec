"""A strict environment for all tests: several CPU devices, and warnings are errors.

Compiling dominates the tests' time, so what runs here is compiled with little optimisation,
and each program only once per session, command-line subprocesses included.
"""

import gc
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

_FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",  # small programs: threads cost more than they win
    "--xla_cpu_multi_thread_eigen=false",
]
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # later ones do not know the flag
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
_OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ

if _OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="fedjax-masks-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *_FLAGS)).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def pytest_unconfigure():
    if _OWN_CACHE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_collection_finish(session):
    """Collects garbage less often: tracing makes much that is alive, and the imports stay."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _group(item):
    """Tests that share programs: those of a module, or of a case of the contract suite."""
    if item.path.name == "test_contract.py" and hasattr(item, "callspec"):
        return item.callspec.params.get("name")
    return item.path


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks examples that simulate as slow, and orders the contract suite by case.

    So the programs of few cases are alive at a time.
    """
    for item in items:
        if isinstance(item, pytest.DoctestItem) and any("simulat" in e.source for e in item.dtest.examples):
            item.add_marker(pytest.mark.slow)
    groups = {}
    for item in items:
        groups.setdefault(_group(item), []).append(item)
    items[:] = [item for group in groups.values() for item in group]


_MAPS = Path("/proc/self/maps")  # Linux


@pytest.fixture(autouse=True, scope="module")
def free_programs():
    """Frees compiled programs in time: a process has 65,530 memory maps, and a program takes dozens."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 20_000:
        import jax

        jax.clear_caches()
        gc.collect()
