"""Files of parameters: NumPy's ``.npz``, safetensors, and the checkpoints of orbax.

In ``.npz`` and safetensors, the names of arrays join the names of stages by dots, as in ``conv1.kernel``. No
reader runs code from a file.
"""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_masks.core.algorithm import Params
from fedjax_masks.core.errors import UserError, regular_file, silence_logger
from fedjax_masks.core.messages import single_line
from fedjax_masks.core.nested import flat


def read(source: str) -> Params:
    """Reads parameters: nested dicts of arrays.

    Args:
      source: ``npz:FILE``, ``safetensors:FILE`` or ``orbax:DIR``. If the outermost level is ``params`` alone,
        as flax writes it, the level is removed.

    Raises:
      UserError: The file cannot be read, or contains something else than named arrays.
    """
    kind, _, path = source.partition(":")
    try:
        arrays = FORMATS[kind](regular_file(Path(path).expanduser().absolute()))
        if any(not isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("it holds lists")
        params = nested(arrays)
    except Exception as error:  # a hostile header makes the readers raise nearly anything
        text = f"pretraining.source={source}: must be a file of named arrays: {single_line(error)}"
        raise UserError(text) from None
    return params["params"] if list(params) == ["params"] else params


def write_npz(path: str | Path, params: Params) -> None:
    """Writes parameters for :func:`read`."""
    arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in flat(params).items()}
    np.savez(path, **arrays)


def nested(arrays: Mapping[str, Any]) -> Params:
    """The inverse of :func:`fedjax_masks.core.nested.flat`."""
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

    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)  # the devices of the checkpoint may not exist here
    with silence_logger("absl"), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        return flat(checkpointer.restore(path, restore_args=jax.tree.map(lambda _: as_numpy, tree)))


FORMATS: Mapping[str, Callable[[Path], dict[str, np.ndarray]]] = {
    "npz": _npz,
    "safetensors": _safetensors,
    "orbax": _orbax,
}
"""Readers by format, the word before the colon."""
