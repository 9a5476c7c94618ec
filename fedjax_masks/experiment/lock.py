"""Exclusive use of a directory by one process at a time."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedjax_masks.core.errors import UserError
from fedjax_masks.core.messages import warn

NAME = ".lock"
_NO_LINK, _NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
_ATTEMPTS = 100
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Reserves a directory for this process; creates the directory where needed.

    The system holds the lock, so that it ends with the process, however the process ends. New directories
    that are empty at the end are removed again.

    Args:
      directory: A directory, which exists or can be created.

    Raises:
      UserError: Another process has reserved the directory.
      OSError: The directory cannot be created or written to.
    """
    new_directories = [path for path in (directory, *directory.parents) if not path.exists()]
    file = -1
    try:
        file = _acquire(directory / NAME)
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        if file >= 0:
            # Removed while it is locked: a process that has opened it meanwhile finds that it has no name.
            with contextlib.suppress(PermissionError):  # Windows removes no open file
                (directory / NAME).unlink(missing_ok=True)
            os.close(file)
        for path in new_directories:
            with contextlib.suppress(OSError):
                path.rmdir()


def _acquire(path: Path) -> int:
    """Opens and locks the file of a name; the file descriptor."""
    while True:
        _create(path.parent)
        try:
            # Through a link, the lock would overwrite the link's target; a pipe would block.
            file = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK | _NO_WAIT, 0o644)
        except FileNotFoundError:  # the process that created the directory has just removed it
            continue
        except OSError as error:
            if path.is_symlink() or error.errno in (errno.ENXIO, errno.EISDIR):
                raise _foreign(path) from None
            raise
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise _foreign(path)
            _lock(file)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    return file
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(file)
            raise UserError(
                f"out={str(path.parent)!r}: must be a directory that no other process writes to; "
                f"{holder} does now"
            ) from None
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _create(directory: Path) -> None:
    """Creates a directory that other processes may create and remove at the same time."""
    for attempt in range(_ATTEMPTS):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            return
        except (FileNotFoundError, FileExistsError):
            # A parent, or the directory itself, was there and has been removed since; or a file is there.
            if attempt == _ATTEMPTS - 1:
                raise


def _foreign(path: Path) -> UserError:
    return UserError(f"out={str(path.parent)!r}: must have no {NAME} but that of a run; remove it")


def _lock(file: int) -> None:
    """Locks an open file.

    Raises:
      BlockingIOError: Another process has the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        warn("this file system has no locks: make sure that no other process writes to --out")
