"""Starts ``fedjax-masks`` with its arrays in huge pages, where Linux gives them to those who ask.

On a CPU, a round strides through arrays of tens of megabytes, and in pages of 4 kB much of its time goes into
looking these up. Only the C library can ask for larger ones, and only from the beginning of a process: so
the process replaces itself, once, by one that does, before anything that takes time is imported.
"""

import os
import signal
import sys
from pathlib import Path

_TUNABLE = "glibc.malloc.hugetlb"
_MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def main() -> int:
    """Runs the command line; returns the exit code."""
    asked = os.environ.get("GLIBC_TUNABLES", "")
    if _TUNABLE not in asked and on_request(_MODES):
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [asked, f"{_TUNABLE}=1"]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    try:
        from fedjax_masks.cli import main
    except KeyboardInterrupt:  # importing takes a second, in which a person may change their mind
        return 128 + signal.SIGINT
    return main.main()


def on_request(modes: Path) -> bool:
    """Whether the system gives huge pages to those processes that ask, by the file that says so."""
    try:
        return "[madvise]" in modes.read_text()
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
