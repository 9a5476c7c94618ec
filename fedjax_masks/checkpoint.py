"""Checkpoints that are whole or detected as damaged.

A checkpoint is a directory named by its round. It holds the state's arrays (orbax), a small JSON
file, and the checksums of all files. It is written under another name and renamed when complete,
so that a process killed at any moment leaves either all of it or nothing.
"""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_masks.algorithm import State
from fedjax_masks.errors import unlogged

_ARRAYS, _META, _CHECKSUMS = "arrays", "meta.json", "checksums.json"
_LOGGER = logging.getLogger("fedjax_masks")


class Restored(NamedTuple):
    """A checkpoint, read back.

    Attributes:
      state: Like the one it was given, on the same devices.
      meta: What was saved beside it.
    """

    state: State
    meta: dict[str, Any]


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
    _remove(partial)
    partial.mkdir(parents=True)
    try:
        _write(partial, state, meta)
    except Exception as error:  # orbax raises what its storage raises
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"checkpoint {final.name}: {' '.join(str(error).split())}") from error
    _remove(final)
    partial.rename(final)
    for old in steps(directory)[:-keep]:
        _remove(old)


def _write(directory: Path, state: State, meta: Mapping[str, Any]) -> None:
    # Orbax refuses empty arrays and is particular about containers; a flat dict suits it.
    arrays = {f"{i:05d}": a for i, a in enumerate(jax.device_get(jax.tree.leaves(state))) if a.size}
    with _checkpointer() as checkpointer:
        checkpointer.save((directory / _ARRAYS).absolute(), arrays)
    (directory / _META).write_text(json.dumps(dict(meta)))
    write_atomically(directory / _CHECKSUMS, json.dumps(_checksums(directory)))


def restore_latest(directory: Path, like: State) -> Restored | None:
    """Reads the newest checkpoint that is undamaged; damaged ones are deleted, and logged.

    What a killed process left half-written or half-deleted goes as well.

    Args:
      directory: Of all checkpoints of a run.
      like: A state of the same structure; gives shapes, types and devices.

    Returns:
      The checkpoint, or None where there is none.
    """
    for leftover in directory.glob("*.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for step in reversed(steps(directory)):
        try:
            return _restore(step, like)
        except (OSError, ValueError, KeyError) as error:
            _LOGGER.warning("checkpoint %s is damaged (%s): falling back to the one before", step.name, error)
            _remove(step)
    return None


def steps(directory: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return sorted(path for path in directory.glob("*") if path.name.isdigit())


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


@contextmanager
def _checkpointer() -> Iterator[Any]:
    import orbax.checkpoint as ocp

    # Each process is by itself: state is everywhere the same, one writes it, and each reads.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process{jax.process_index()}",
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with unlogged("absl"), ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        yield checkpointer


def _restore(step: Path, like: State) -> Restored:
    if json.loads((step / _CHECKSUMS).read_text()) != _checksums(step):
        raise ValueError("its checksums do not match")
    with _checkpointer() as checkpointer:
        arrays = checkpointer.restore((step / _ARRAYS).absolute())
    leaves, structure = jax.tree.flatten(like)
    restored = [_place(arrays.get(f"{i:05d}"), leaf) for i, leaf in enumerate(leaves)]
    return Restored(jax.tree.unflatten(structure, restored), json.loads((step / _META).read_text()))


def _place(array: np.ndarray | None, like: jax.Array) -> jax.Array:
    array = np.zeros(like.shape, like.dtype) if array is None else array
    if (array.shape, array.dtype) != (like.shape, like.dtype):
        raise ValueError(f"it holds {array.dtype}{list(array.shape)} for {like.dtype}{list(like.shape)}")
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def _checksums(directory: Path) -> dict[str, int]:
    """The CRC-32 of every file but the list itself."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    named = {path.relative_to(directory).as_posix(): path for path in files}
    return {
        name: zlib.crc32(path.read_bytes()) for name, path in named.items() if not name.startswith(_CHECKSUMS)
    }


def _remove(path: Path) -> None:
    """Deletes a checkpoint; killed half-way, it leaves nothing that looks like one."""
    if path.is_dir():
        doomed = path.with_name(path.name + ".deleted")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)
