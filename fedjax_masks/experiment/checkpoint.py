"""Checkpoints of a run, in directories named by their round; reading never deletes one.

A checkpoint is written under another name and renamed when complete, so that a process killed at any moment
leaves either all of it or nothing. :mod:`fedjax_masks.experiment.checkpoint_files` describes its files.
"""

import contextlib
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_masks.core.algorithm import State
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.messages import single_line, warn
from fedjax_masks.experiment import disk
from fedjax_masks.experiment.checkpoint_files import DamagedError, Leaf, describe, place, read, write
from fedjax_masks.experiment.run_directory import steps

_LEFTOVER = re.compile(r"[0-9]{8,}\.(partial|deleted)")
_UNDO = "undo the change to resume, or start again in another directory"


class Checkpoint(NamedTuple):
    """A checkpoint, read back.

    Attributes:
      state: The state, on the devices of the state that :func:`restore_latest` gets.
      meta: JSON values that were saved with the state.
      round: The number of rounds before the checkpoint.
      damaged: Newer checkpoints, which are damaged.
    """

    state: State
    meta: dict[str, Any]
    round: int = 0
    damaged: tuple[Path, ...] = ()


def save(directory: Path, round: int, state: State, meta: Mapping[str, Any], *, keep: int) -> None:
    """Saves a checkpoint, and deletes the oldest ones.

    Args:
      directory: The directory of all checkpoints of a run.
      round: The number of rounds so far.
      state: Any pytree of arrays.
      meta: JSON values.
      keep: The number of checkpoints that are kept.

    Raises:
      OSError: The checkpoint cannot be written; no part of it remains, and the older ones are unchanged.
    """
    final, partial = directory / f"{round:08d}", directory / f"{round:08d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        directory.mkdir(exist_ok=True)  # without parents: a run directory that was moved away stays away
        partial.mkdir()
        write(partial, state, meta)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"checkpoint {final.name}: {single_line(error)}") from error
    _remove(final)
    partial.rename(final)
    with contextlib.suppress(OSError):  # the checkpoint is complete, even if old ones cannot be removed
        disk.sync_directory(directory)
        for old in steps(directory)[:-keep]:
            _remove(old)
    for leftover in directory.iterdir():
        if _LEFTOVER.fullmatch(leftover.name):
            shutil.rmtree(leftover, ignore_errors=True)


def restore_latest(directory: Path, like: State, *, at_most: int | None = None) -> Checkpoint | None:
    """Reads the newest checkpoint that is undamaged; changes nothing on disk.

    A checkpoint counts as damaged only if a file differs from its checksum. The caller renames damaged
    checkpoints, once it is certain that the run continues from an older one.

    Args:
      directory: The directory of all checkpoints of a run.
      like: A state of the same structure, shapes and dtypes; gives the devices.
      at_most: The largest number of rounds of a checkpoint; None for any.

    Returns:
      The checkpoint, or None if there is none at all.

    Raises:
      UserError: A checkpoint cannot be read, holds a state that is not like this one, or has another format;
        or all are damaged.
    """
    damaged_steps: list[Path] = []
    for step in reversed(steps(directory)):
        if at_most is not None and int(step.name) > at_most:
            continue
        try:
            content = read(step)
        except DamagedError as error:
            warn(f"checkpoint {step.name} is damaged ({single_line(error)}): falling back to the one before")
            damaged_steps.append(step)
            continue
        except OSError as error:
            reason = single_line(error.strerror or error)
            raise _checkpoint_error(step, f"readable; {reason}; try again when it can be read") from None
        _check_same(step, content.leaves, describe(like))
        leaves, structure = jax.tree.flatten(like)
        arrays = [place(array, leaf) for array, leaf in zip(content.arrays, leaves, strict=True)]
        state = jax.tree.unflatten(structure, arrays)
        return Checkpoint(state, content.meta, int(step.name), tuple(damaged_steps))
    if damaged_steps:
        raise UserError(
            f"checkpoints={str(directory)!r}: must hold an undamaged one; all {len(damaged_steps)} are "
            "damaged, and left as they are; start again in another directory"
        )
    return None


def estimate_seconds(state: State) -> float:
    """A guess at the seconds that saving takes, for before the first time."""
    return 0.1 + sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 50e6


def _check_same(step: Path, leaves: Sequence[Leaf], state_leaves: Sequence[Leaf]) -> None:
    """Raises UserError that names the first difference between a checkpoint and the algorithm's state."""
    by_name = {leaf.name: leaf for leaf in leaves}
    for leaf in state_leaves:
        if by_name.get(leaf.name) != leaf:
            other = by_name.get(leaf.name, f"no {leaf.name}")
            same_but_width = str(other).replace("64[", "32[") == str(leaf).replace("64[", "32[")
            remedy = "set JAX_ENABLE_X64 as it was then" if same_but_width else _UNDO
            constraint = f"of this algorithm's state, with {leaf}"
            raise _checkpoint_error(step, f"{constraint}; it holds {other}; {remedy}")
    names = {leaf.name for leaf in state_leaves}
    for leaf in leaves:
        if leaf.name not in names:
            raise _checkpoint_error(step, f"of this algorithm's state, which has no {leaf.name}; {_UNDO}")


def _checkpoint_error(step: Path, constraint: str) -> UserError:
    return UserError(f"checkpoint={str(step)!r}: must be {constraint}")


def _remove(path: Path) -> None:
    """Deletes a checkpoint; a process killed half-way leaves nothing that looks like one."""
    if path.is_dir():
        trash = path.with_name(path.name + ".deleted")
        shutil.rmtree(trash, ignore_errors=True)
        path.rename(trash)
        shutil.rmtree(trash)
