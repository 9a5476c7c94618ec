"""The start of ``fedjax-masks``, with arrays in huge pages where Linux offers them on request.

On a CPU, a round strides through arrays of tens of megabytes, and in pages of 4 kB it spends much of its time
on address translation. Only the C library can request huge pages, and only from the start of a process: so
the process replaces itself, once, by one that does, before any slow import.
"""

import os
import signal
import sys
from pathlib import Path

_TUNABLE = "glibc.malloc.hugetlb"
_MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def main() -> int:
    """Runs the command line; returns the exit code."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if _TUNABLE not in tunables and offers_huge_pages(_MODES):
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, f"{_TUNABLE}=1"]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    try:
        from fedjax_masks.cli import main
    except KeyboardInterrupt:  # the import takes a second
        return 128 + signal.SIGINT
    return main.main()


def offers_huge_pages(modes: Path) -> bool:
    """Whether the system gives huge pages to processes that request them.

    Args:
      modes: The file in which Linux tells the mode.
    """
    try:
        return "[madvise]" in modes.read_text()
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
