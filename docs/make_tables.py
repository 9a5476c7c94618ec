"""Refreshes the tables of documents from the committed results.

A table lies between two comments, of which the first names a script of ``experiments`` and its arguments::

    <!-- table: collect.py --table experiments/results/fedskel_int8.jsonl -->
    <!-- end of table -->

``python docs/make_tables.py FILE.md ...`` runs the commands, which also write figures, and puts their output
between the comments.
"""

import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"<!-- table: (?P<command>[^>]+?) -->\n(?P<table>.*?)<!-- end of table -->", re.DOTALL)


def refreshed(text: str, *, figures: bool = True) -> str:
    """The document with the tables that its commands print.

    Args:
      text: The document.
      figures: Whether the commands also write their figures (``--out FILE``).
    """
    return _BLOCK.sub(partial(_with_table, figures), text)


def _with_table(figures: bool, match: re.Match[str]) -> str:
    script, *arguments = shlex.split(match["command"])
    if not figures and "--out" in arguments:
        place = arguments.index("--out")
        del arguments[place : place + 2]
    command = [sys.executable, str(ROOT / "experiments" / script), *arguments]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return f"<!-- table: {match['command']} -->\n\n{output.strip()}\n\n<!-- end of table -->"


def main(arguments: list[str]) -> None:
    """Refreshes the files."""
    for name in arguments:
        path = Path(name)
        path.write_text(refreshed(path.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
