"""The exception for users' mistakes, and helpers that raise it."""

import errno
import logging
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedjax_masks.core.messages import printable, single_line
from fedjax_masks.core.synonyms import nearest_name


class UserError(ValueError):
    r"""A request that cannot be served.

    The message is one printable line: ``KEY=VALUE: must be CONSTRAINT``, then what to do. Characters that are
    not printable, which a user's value may hold, become escape sequences.

    >>> print(UserError("lr=\x00\n1: must be a finite number"))
    lr=\x00\n1: must be a finite number
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns errors about input into a :class:`UserError` of one line.

    >>> with user_errors():
    ...     raise FileNotFoundError("no file data.npz")
    Traceback (most recent call last):
    fedjax_masks.core.errors.UserError: no file data.npz
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError, MemoryError, RecursionError) as error:
        raise UserError(single_line(error) or type(error).__name__) from error


@contextmanager
def silence_logger(name: str) -> Iterator[None]:
    """Silences a logger, such as that of a library which logs the errors that it also raises."""
    logger = logging.getLogger(name)
    previous, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = previous


def regular_file(path: str | Path) -> Path:
    """Checks that a path is no pipe and no device, which may never end, and returns it.

    A pipe without a writer blocks the process that opens it, and a device such as ``/dev/zero`` never
    ends. A directory passes: opening it raises its own error.

    Raises:
      OSError: There is no such file, or it is a pipe, a socket or a device.

    >>> regular_file("/dev/zero")
    Traceback (most recent call last):
    OSError: [Errno 22] must be a regular file, not a pipe or a device: '/dev/zero'
    """
    mode = Path(path).stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "must be a regular file, not a pipe or a device", str(path))
    return Path(path)


def check_replaceable(path: Path) -> None:
    """Checks that a path is new, or an ordinary file that may be replaced.

    Raises:
      UserError: There is a directory, a pipe or a device of this name.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"out={str(path)!r}: must be a new name or an ordinary file, which is replaced")


def one_line(error: BaseException) -> str:
    r"""An error's name and text in one printable line of at most 200 characters of text.

    >>> one_line(OSError("no\nspace"))
    'OSError: no space'
    """
    return f"{type(error).__name__}: {single_line(error)[:200]}"


def unknown_name(key: str, value: str, names: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest name that does.

    Args:
      key: The key of the name.
      value: The name.
      names: The names that exist.

    >>> print(unknown_name("model.name", "lenet5", ["mlp", "lenet"]))
    model.name='lenet5': must be one of lenet, mlp; did you mean 'lenet'?
    """
    names = sorted(names)
    near = nearest_name(value, names)
    hint = f"; did you mean {near!r}?" if near else ""
    return UserError(f"{key}={value!r}: must be one of {', '.join(names)}{hint}")
