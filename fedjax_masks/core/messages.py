"""Messages to the user: one printable line each, whatever text of a user or a library they hold."""

import logging

_LOGGER = logging.getLogger("fedjax_masks")


def printable(text: str) -> str:
    r"""The text with the escape sequences of :func:`repr` for all characters that are not printable.

    Line ends, other control characters and lone surrogates are not printable, see :meth:`str.isprintable`.

    >>> print(printable("é\x1b[2J\n漢字"))
    é\x1b[2J\n漢字
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def single_line(message: object) -> str:
    r"""The printable text of an error from a library, which may be laid out over several lines.

    Args:
      message: The error, or its text. White space becomes single spaces.

    >>> single_line(OSError("no\n  space\0"))
    'no space\\x00'
    """
    return printable(" ".join(str(message).split()))


def warn(message: str) -> None:
    """Logs a warning of one printable line with the logger ``fedjax_masks``."""
    _LOGGER.warning("%s", printable(message), stacklevel=2)
