"""Checkpoints that describe themselves, and that reading never deletes.

A checkpoint is a directory named by its round: ``arrays.npz`` with the state's arrays by name,
``checkpoint.json`` with their names, dtypes and shapes and with what was saved beside them, and
``checksums.json``. It is written under another name and renamed when complete, so that a process killed at
any moment leaves either all of it or nothing.
"""

import contextlib
import json
import logging
import os
import re
import shutil
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

_ARRAYS, _DESCRIPTION, _CHECKSUMS = "arrays.npz", "checkpoint.json", "checksums.json"
_FORMAT = 2
_STEP, _LEFTOVER = re.compile(r"[0-9]{8,}"), re.compile(r"[0-9]{8,}\.(partial|deleted)")
_BLOCK = 2**24  # bytes that are read at once
_UNDO = "undo the change to resume, or start again in another directory"
_LOGGER = logging.getLogger("fedjax_masks")


class Restored(NamedTuple):
    """A checkpoint, read back.

    Attributes:
      state: Like the one it was given, on the same devices.
      meta: What was saved beside it.
      round: Rounds done.
      damaged: Newer checkpoints, which are damaged.
    """

    state: State
    meta: dict[str, Any]
    round: int = 0
    damaged: tuple[Path, ...] = ()


class Leaf(NamedTuple):
    """One array of a state: its name, its dtype, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


class _Damaged(Exception):
    """A checkpoint whose files are not those that were written."""


def save(directory: Path, round: int, state: State, meta: Mapping[str, Any], *, keep: int) -> None:
    """Saves a checkpoint, and deletes the oldest ones.

    Args:
      directory: Of all checkpoints of a run.
      round: Rounds done.
      state: Any pytree of arrays.
      meta: JSON values.
      keep: How many checkpoints stay.

    Raises:
      OSError: It cannot be written; nothing of it is left, and the older ones are as they were.
    """
    final, partial = directory / f"{round:08d}", directory / f"{round:08d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        directory.mkdir(exist_ok=True)  # but no run directory that somebody has moved away
        partial.mkdir()
        _write(partial, state, meta)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"checkpoint {final.name}: {' '.join(str(error).split())}") from error
    _remove(final)
    partial.rename(final)
    with contextlib.suppress(OSError):  # the checkpoint is there, whatever becomes of the older ones
        _sync(directory)
        for old in steps(directory)[:-keep]:
            _remove(old)
    for leftover in directory.iterdir():
        if _LEFTOVER.fullmatch(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)


def describe(state: State) -> list[Leaf]:
    """The arrays of a state, by name.

    >>> [str(leaf) for leaf in describe(State((), {"w": jnp.zeros((2, 3))}, ()))]
    ['server/w float32[2, 3]']
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [
        Leaf(jax.tree_util.keystr(path, simple=True, separator="/"), str(leaf.dtype), tuple(leaf.shape))
        for path, leaf in leaves
    ]


def _write(directory: Path, state: State, meta: Mapping[str, Any]) -> None:
    leaves = describe(state)
    raw = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(state)]
    arrays = [_portable(array) for array in jax.device_get(raw)]
    with open(directory / _ARRAYS, "wb") as file:
        named: dict[str, Any] = {leaf.name: array for leaf, array in zip(leaves, arrays, strict=True)}
        np.savez(file, **named)
        file.flush()
        os.fsync(file.fileno())
    description = {"format": _FORMAT, "leaves": leaves, "meta": dict(meta)}
    write_atomically(directory / _DESCRIPTION, json.dumps(description))
    sums = {name: _checksum(directory / name) for name in (_ARRAYS, _DESCRIPTION)}
    write_atomically(directory / _CHECKSUMS, json.dumps(sums))


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _portable(array: np.ndarray) -> np.ndarray:
    """An array that NumPy's files can hold: of a dtype that is not NumPy's own, its bytes as integers."""
    array = np.asarray(array)
    return array if array.dtype.kind in "biufc" else array.view(f"u{array.dtype.itemsize}")


def restore_latest(directory: Path, like: State, *, at_most: int | None = None) -> Restored | None:
    """Reads the newest checkpoint that is undamaged; changes nothing on disk.

    Only what differs from its checksums is damaged. The caller renames damaged checkpoints, once it is known
    that the run goes on from an older one.

    Args:
      directory: Of all checkpoints of a run.
      like: A state of the same structure; gives shapes, types and devices.
      at_most: Rounds of the newest checkpoint to look at; None for all.

    Returns:
      The checkpoint, or None where there is none at all.

    Raises:
      UserError: A checkpoint cannot be read, holds another state than this, or is of another version;
        or all are damaged.
    """
    damaged: list[Path] = []
    for step in reversed(steps(directory)):
        if at_most is not None and int(step.name) > at_most:
            continue
        try:
            description, arrays = _read(step)
        except _Damaged as error:
            _LOGGER.warning("checkpoint %s is damaged (%s): falling back to the one before", step.name, error)
            damaged.append(step)
            continue
        except OSError as error:
            raise _refused(step, f"readable; {_text(error)}; try again when it can be read") from None
        _check_same(step, description["leaves"], describe(like))
        leaves, structure = jax.tree.flatten(like)
        restored = [_place(array, leaf) for array, leaf in zip(arrays, leaves, strict=True)]
        return Restored(
            jax.tree.unflatten(structure, restored), description["meta"], int(step.name), tuple(damaged)
        )
    if damaged:
        raise UserError(
            f"checkpoints={str(directory)!r}: must hold an undamaged one; all {len(damaged)} are damaged, "
            "and left as they are; start again in another directory"
        )
    return None


def steps(directory: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _STEP.fullmatch(path.name) and path.is_dir())


def estimate_seconds(state: State) -> float:
    """A guess at how long saving takes, for before the first time."""
    return 0.1 + sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 50e6


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file's content; whoever reads sees the old content or the new one."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read(step: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """A checkpoint's description and its arrays in the order of the description.

    Raises:
      _Damaged: Its files are not those that were written.
      OSError: A file cannot be read.
      UserError: It is of another version.
    """
    try:
        wanted = json.loads((step / _CHECKSUMS).read_bytes())
    except FileNotFoundError:
        raise _Damaged(f"{_CHECKSUMS} is missing") from None
    except (ValueError, RecursionError):
        raise _Damaged(f"{_CHECKSUMS} is no JSON") from None
    if not isinstance(wanted, dict) or not {_ARRAYS, _DESCRIPTION} <= wanted.keys():
        raise _Damaged(f"{_CHECKSUMS} names other files")
    for name in (_ARRAYS, _DESCRIPTION):  # file systems and people put others beside them
        try:
            found = _checksum(step / name)
        except FileNotFoundError:
            raise _Damaged(f"{name} is missing") from None
        if wanted[name] != found:
            raise _Damaged(f"the checksum of {name} does not match")
    try:
        description = json.loads((step / _DESCRIPTION).read_bytes())
        leaves = [Leaf(name, dtype, tuple(shape)) for name, dtype, shape in description["leaves"]]
        if description["format"] != _FORMAT or not isinstance(description["meta"], dict):
            raise ValueError
        with np.load(step / _ARRAYS, allow_pickle=False) as file:
            arrays = [_as_described(file[leaf.name], leaf) for leaf in leaves]
    except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError, zipfile.BadZipFile):
        accepted = f"a checkpoint of format {_FORMAT}; resume with the version of fedjax_masks that wrote it"
        raise _refused(step, accepted) from None
    return {**description, "leaves": leaves}, arrays


def _as_described(array: np.ndarray, leaf: Leaf) -> np.ndarray:
    """An array of the described dtype and shape; of a typed key, its data."""
    if leaf.dtype.startswith("key<"):
        return array
    array = array.view(jnp.dtype(leaf.dtype))
    if array.shape != leaf.shape:
        raise ValueError
    return array


def _check_same(step: Path, found: list[Leaf], wanted: list[Leaf]) -> None:
    """Raises UserError that names the first difference between two states."""
    by_name = {leaf.name: leaf for leaf in found}
    for leaf in wanted:
        if by_name.get(leaf.name) != leaf:
            other = by_name.get(leaf.name, f"no {leaf.name}")
            width = str(other).replace("64[", "32[") == str(leaf).replace("64[", "32[")
            cure = "set JAX_ENABLE_X64 as it was then" if width else _UNDO
            raise _refused(step, f"of this algorithm's state, with {leaf}; it holds {other}; {cure}")
    for leaf in found:
        if leaf.name not in {other.name for other in wanted}:
            raise _refused(step, f"of this algorithm's state, which has no {leaf.name}; {_UNDO}")


def _refused(step: Path, accepted: str) -> UserError:
    return UserError(f"checkpoint={str(step)!r}: must be {accepted}")


def _text(error: OSError) -> str:
    return " ".join((error.strerror or str(error)).split())


def _place(array: np.ndarray, like: jax.Array) -> jax.Array:
    if _is_key(like):
        keys = jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
        return jax.device_put(keys, like.sharding)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def _checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _sync(directory: Path) -> None:
    """Makes sure that a directory's names are on disk, where the system lets a process ask for that."""
    if hasattr(os, "O_DIRECTORY"):
        number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _remove(path: Path) -> None:
    """Deletes a checkpoint; killed half-way, it leaves nothing that looks like one."""
    if path.is_dir():
        doomed = path.with_name(path.name + ".deleted")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)
