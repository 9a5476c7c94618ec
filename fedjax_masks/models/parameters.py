"""Files of parameters: NumPy's ``.npz``, safetensors, and the checkpoints of orbax.

In the first two, names are those of stages and dots, as in ``conv1.kernel``. None of them runs code.
"""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_masks.core.algorithm import Params
from fedjax_masks.core.errors import UserError, regular_file, unlogged
from fedjax_masks.core.trees import flat


def read(source: str) -> Params:
    """Reads parameters: nested dicts of arrays.

    Args:
      source: ``npz:FILE``, ``safetensors:FILE`` or ``orbax:DIR``. An outermost level that is named
        ``params`` and holds everything, as flax writes it, is taken off.

    Raises:
      UserError: What is there cannot be read, or is something else.
    """
    kind, _, path = source.partition(":")
    try:
        arrays = FORMATS[kind](regular_file(Path(path).expanduser().absolute()))
        if any(not isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("it holds lists")
        params = nested(arrays)
    except Exception as error:  # a hostile header makes the readers raise nearly anything
        text = " ".join(str(error).split())
        raise UserError(f"pretraining.source={source}: {text}; accepted are named arrays") from None
    return params["params"] if list(params) == ["params"] else params


def write_npz(path: str | Path, params: Params) -> None:
    """Writes parameters for :func:`read`."""
    arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in flat(params).items()}
    np.savez(path, **arrays)


def nested(arrays: Mapping[str, Any]) -> Params:
    """The inverse of :func:`fedjax_masks.core.trees.flat`."""
    params: Params = {}
    for name, array in arrays.items():
        *stages, last = name.split(".")
        node = params
        for stage in stages:
            node = node.setdefault(stage, {})
        node[last] = array
    return params


def _npz(path: Path) -> dict[str, np.ndarray]:
    # Opened here: numpy leaves a file that it cannot read to the garbage collector.
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):  # NumPy takes whatever it does not know for a pickle
            raise ValueError("it is no .npz file")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        import safetensors
        from safetensors.numpy import load_file
    except ModuleNotFoundError:
        raise ValueError("the package safetensors is not installed") from None
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(error) from None


def _orbax(path: Path) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)  # whatever devices it was saved from
    with unlogged("absl"), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        return flat(checkpointer.restore(path, restore_args=jax.tree.map(lambda _: as_numpy, tree)))


FORMATS: Mapping[str, Callable[[Path], dict[str, np.ndarray]]] = {
    "npz": _npz,
    "safetensors": _safetensors,
    "orbax": _orbax,
}
"""Readers by the word before the colon."""
