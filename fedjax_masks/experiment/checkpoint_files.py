"""The files of one checkpoint.

A checkpoint is a directory with ``arrays.npz``, the state's arrays by name; ``checkpoint.json``, their names,
dtypes and shapes, and further values; and ``checksums.json``, the CRC-32 of the two.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core.algorithm import State
from fedjax_masks.core.errors import UserError
from fedjax_masks.experiment import disk

_ARRAYS, _DESCRIPTION, _CHECKSUMS = "arrays.npz", "checkpoint.json", "checksums.json"
_FORMAT = 2
_BLOCK = 2**24  # bytes per read of a file


class Leaf(NamedTuple):
    """The description of one array of a state.

    Attributes:
      name: The array's path in the state.
      dtype: The name of the dtype.
      shape: The shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


class Content(NamedTuple):
    """The content of a checkpoint.

    Attributes:
      leaves: The descriptions of the arrays.
      arrays: The arrays, in the same order; of a typed key, its data.
      meta: JSON values that were saved with the arrays.
    """

    leaves: list[Leaf]
    arrays: list[np.ndarray]
    meta: dict[str, Any]


class DamagedError(Exception):
    """A checkpoint whose files differ from their checksums."""


def describe(state: State) -> list[Leaf]:
    """The arrays of a state, by name.

    >>> [str(leaf) for leaf in describe(State({"w": jnp.zeros((2, 3))}))]
    ['server/w float32[2, 3]']
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [
        Leaf(jax.tree_util.keystr(path, simple=True, separator="/"), str(leaf.dtype), tuple(leaf.shape))
        for path, leaf in leaves
    ]


def write(directory: Path, state: State, meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint to an empty directory.

    Raises:
      OSError: A file cannot be written.
    """
    leaves = describe(state)
    raw = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(state)]
    arrays = [_portable(array) for array in jax.device_get(raw)]
    with open(directory / _ARRAYS, "wb") as file:
        by_name: dict[str, Any] = {leaf.name: array for leaf, array in zip(leaves, arrays, strict=True)}
        np.savez(file, **by_name)
        file.flush()
        os.fsync(file.fileno())
    description = {"format": _FORMAT, "leaves": leaves, "meta": dict(meta)}
    disk.write_atomically(directory / _DESCRIPTION, json.dumps(description))
    sums = {name: _checksum(directory / name) for name in (_ARRAYS, _DESCRIPTION)}
    disk.write_atomically(directory / _CHECKSUMS, json.dumps(sums))


def read(directory: Path) -> Content:
    """Reads a checkpoint.

    Raises:
      DamagedError: A file is missing, or differs from its checksum.
      OSError: A file cannot be read.
      UserError: The checkpoint has another format.
    """
    _check_sums(directory)
    try:
        description = json.loads((directory / _DESCRIPTION).read_bytes())
        leaves = [Leaf(name, dtype, tuple(shape)) for name, dtype, shape in description["leaves"]]
        if description["format"] != _FORMAT or not isinstance(description["meta"], dict):
            raise ValueError
        with np.load(directory / _ARRAYS, allow_pickle=False) as file:
            arrays = [_restore_type(file[leaf.name], leaf) for leaf in leaves]
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError, zipfile.BadZipFile):
        raise UserError(
            f"checkpoint={str(directory)!r}: must be a checkpoint of format {_FORMAT}; resume with the "
            "version of fedjax_masks that wrote it"
        ) from None
    return Content(leaves, arrays, description["meta"])


def place(array: np.ndarray, like: jax.Array) -> jax.Array:
    """Moves an array of a checkpoint to the devices of another array, as a typed key where that is one."""
    if _is_key(like):
        keys = jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
        return jax.device_put(keys, like.sharding)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def _check_sums(directory: Path) -> None:
    """Raises DamagedError if a file is missing, or differs from its checksum."""
    try:
        sums = json.loads((directory / _CHECKSUMS).read_bytes())
    except FileNotFoundError:
        raise DamagedError(f"{_CHECKSUMS} is missing") from None
    except (ValueError, RecursionError):
        raise DamagedError(f"{_CHECKSUMS} is no JSON") from None
    if not isinstance(sums, dict) or not {_ARRAYS, _DESCRIPTION} <= sums.keys():
        raise DamagedError(f"{_CHECKSUMS} names other files")
    for name in (_ARRAYS, _DESCRIPTION):  # file systems and people put others beside them
        try:
            value = _checksum(directory / name)
        except FileNotFoundError:
            raise DamagedError(f"{name} is missing") from None
        if sums[name] != value:
            raise DamagedError(f"the checksum of {name} does not match")


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _portable(array: np.ndarray) -> np.ndarray:
    """An array that NumPy's files can hold; dtypes that NumPy lacks become integers of the same bytes."""
    array = np.asarray(array)
    return array if array.dtype.kind in "biufc" else array.view(f"u{array.dtype.itemsize}")


def _restore_type(array: np.ndarray, leaf: Leaf) -> np.ndarray:
    """An array of the described dtype and shape; the data of a typed key stay as they are.

    Raises:
      ValueError: The array has another shape.
    """
    if leaf.dtype.startswith("key<"):
        return array
    array = array.view(jnp.dtype(leaf.dtype))
    if array.shape != leaf.shape:
        raise ValueError
    return array


def _checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value
