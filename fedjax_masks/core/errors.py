"""The one exception that is the user's to mend."""

import errno
import logging
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedjax_masks.core.synonyms import meant


class UserError(ValueError):
    """A request that cannot be served; the message is one line and says what would be."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns what preparation raises about its input into a :class:`UserError` of one line.

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
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(text) from error


@contextmanager
def unlogged(name: str) -> Iterator[None]:
    """Silences a library's logger that reports, with tracebacks, what the library also raises."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def regular_file(path: str | Path) -> Path:
    """The path of a file to read, after a check that reading it ends.

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
    """Refuses to write over what is no ordinary file.

    Raises:
      UserError: There is a directory, a pipe or a device of this name.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"out={str(path)!r}: must be a new name or an ordinary file, which is replaced")


def in_a_line(error: BaseException) -> str:
    r"""An error's name and text in one line, cut where it is long.

    >>> in_a_line(OSError("no\nspace"))
    'OSError: no space'
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def unknown(key: str, value: str, accepted: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest one that does.

    Args:
      key: What was named.
      value: The name given.
      accepted: The names that exist.

    >>> print(unknown("model.name", "lenet5", ["mlp", "lenet"]))
    model.name='lenet5': unknown; did you mean 'lenet'? accepted are lenet, mlp
    """
    accepted = sorted(accepted)
    near = meant(value, accepted)
    hint = f"; did you mean {near!r}?" if near else ";"
    return UserError(f"{key}={value!r}: unknown{hint} accepted are {', '.join(accepted)}")
