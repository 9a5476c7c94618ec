"""Decoded arrays on disk: memory-mapped, checksummed, written atomically.

An entry is a folder of ``.npy`` files and a ``manifest.json`` with the SHA-256 of each. Every
load checks them (about a second per gigabyte) and rebuilds a damaged entry.

Unfinished entries have separate names. Processes that write share the cache's lock; a process that gets
the lock alone removes the leftovers of killed processes.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from fedjax_masks.core.errors import UserError

_MANIFEST, _FRESH, _STALE = "manifest.json", ".new-", ".old-"


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """The folder of the cache: the argument, ``$FEDJAX_MASKS_CACHE``, or ``~/.cache/fedjax_masks``."""
    return Path(cache_dir or os.environ.get("FEDJAX_MASKS_CACHE") or "~/.cache/fedjax_masks").expanduser()


def load_or_build(
    entry: str, build: Callable[[], Mapping[str, np.ndarray]], *, cache_dir: str | Path | None = None
) -> dict[str, np.ndarray]:
    """Loads the arrays of an entry, memory-mapped; builds and stores them first where needed.

    Processes may race for one entry: the first one stores it, the others use it.

    Args:
      entry: The entry's name, different for different contents.
      build: Makes the arrays by name.
      cache_dir: The folder of the cache, see :func:`cache_root`.

    Raises:
      UserError: The cache folder cannot be read or written to.
    """
    root = cache_root(cache_dir)
    folder = root / entry
    try:
        intact = is_intact(folder)
    except OSError as error:
        reason = f"{entry}: {error.strerror or error}"
        raise UserError(f"cache_dir={str(root)!r}: must be readable; {reason}; try again later") from None
    if not intact:
        arrays = build()
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _writer_lock(root):
                _store(folder, arrays)
        except OSError as error:
            raise UserError(
                f"cache_dir={str(root)!r}: must be a writable folder ({error.strerror or error}); choose one "
                "by cache_dir or $FEDJAX_MASKS_CACHE"
            ) from None
    return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in folder.glob("*.npy")}


def is_intact(folder: Path) -> bool:
    """Whether an entry exists, complete and unchanged.

    Raises:
      OSError: The entry cannot be read, which is no reason to remove it and build it again.
    """
    try:
        sums = json.loads((folder / _MANIFEST).read_text())
        return bool(sums) and all(_sha256(folder / name) == value for name, value in sums.items())
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        return False


@contextlib.contextmanager
def _writer_lock(root: Path) -> Iterator[None]:
    """Shares the cache's lock with other writers; before that, removes leftovers of killed processes.

    The kernel frees a lock of a process that dies, however it dies. Where folders cannot be locked (Windows,
    some network file systems) leftovers stay.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            handle = os.open(root, os.O_RDONLY)
            stack.callback(os.close, handle)
            with contextlib.suppress(BlockingIOError):  # another process writes; a later one cleans
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for leftover in (*root.glob(f"{_FRESH}*"), *root.glob(f"{_STALE}*")):
                    shutil.rmtree(leftover, ignore_errors=True)
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield


def _store(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    fresh = Path(tempfile.mkdtemp(prefix=_FRESH, dir=folder.parent))
    try:
        for name, array in arrays.items():
            np.save(fresh / f"{name}.npy", array, allow_pickle=False)
        sums = {path.name: _sha256(path) for path in sorted(fresh.glob("*.npy"))}
        (fresh / _MANIFEST).write_text(json.dumps(sums, indent=2))
        fresh.chmod(0o755)  # mkdtemp's mode is private
        _publish(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _publish(fresh: Path, folder: Path) -> None:
    """Moves a finished entry into place; a folder can only replace an empty one."""
    if folder.exists() and not is_intact(folder):
        stale = Path(tempfile.mkdtemp(prefix=_STALE, dir=folder.parent))
        with contextlib.suppress(FileNotFoundError):  # another process removed it first
            os.replace(folder, stale)
        shutil.rmtree(stale, ignore_errors=True)
    try:
        os.replace(fresh, folder)
    except OSError:
        if not is_intact(folder):
            raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
