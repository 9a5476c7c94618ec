"""The command line: ``fedjax-masks``.

The command line turns arguments into a configuration, calls the package, and prints. A user's error ends
with exit code 2 and one line on stderr.
"""

import codecs
import io
import os
import sys
from collections.abc import Sequence

from fedjax_masks.cli.parser import make_parser
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.messages import printable, single_line
from fedjax_masks.experiment import signals

_PLAIN = {"±": "+-", "·": "*", "÷": "/", "\u00d7": "x", "\u2013": "-", "\u2212": "-", "≤": "<=", "≥": ">="}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    _split_host()
    _write_anywhere()
    try:
        arguments = make_parser().parse_args(argv)
        with signals.second_signal_ends():
            arguments.command(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of the output has ended; Python must not try to flush it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # for a path of the command line
        path = "" if error.filename is None else f"{error.filename}: "
        text = f"error: {path}must be accessible; {single_line(error.strerror or error)}"
        print(printable(text), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; 'run' and 'sweep' continue with --resume", file=sys.stderr)
        return 130
    return 0


def _write_anywhere() -> None:
    """Makes streams of any encoding write foreign characters as plain letters or escape sequences."""

    def plain(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        text = error.object[error.start : error.end]
        letters = (_PLAIN.get(a) or a.encode("ascii", "backslashreplace").decode() for a in text)
        return "".join(letters), error.end

    codecs.register_error("fedjax_masks.plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="fedjax_masks.plain")


def _split_host() -> None:
    """Makes the CPU appear as several devices, unless the user has set their number.

    One client's step is too short to be divided, so clients are spread over devices.
    Has an effect only before jax has started.
    """
    flag, flags = "--xla_force_host_platform_device_count", os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}={min(os.cpu_count() or 1, 4)}".strip()


if __name__ == "__main__":
    sys.exit(main())
