"""A strict environment for all tests: several CPU devices, and warnings are errors.

Compiling dominates the tests' time, so what runs here is compiled with little optimisation,
and each program only once per session, command-line subprocesses included.
"""

import gc
import os
import shutil
import tempfile
from importlib.metadata import version

import pytest

_FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
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


def _group(item):
    """A module, or a case of the contract suite."""
    if item.path.name != "test_contract.py" or not hasattr(item, "callspec"):
        return item.nodeid.split("::")[0]
    return f"contract-{item.callspec.params.get('name')}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keeps together what shares programs: a worker takes a whole group, one after another."""
    groups = {}
    for item in items:
        groups.setdefault(_group(item), []).append(item)
    items[:] = [item for group in groups.values() for item in group]
    for name, group in groups.items():
        for item in group:
            item.add_marker(pytest.mark.xdist_group(name))


_last_group = None


@pytest.fixture(autouse=True)
def programs(request):
    """Frees the programs of the group before: a process has 65,530 memory maps, a program takes dozens."""
    global _last_group
    group = _group(request.node)
    if _last_group not in (None, group):
        import jax

        jax.clear_caches()
        gc.collect()
    _last_group = group
