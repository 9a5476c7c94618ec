"""What the documentation shows works: Python is run, commands are parsed."""

import re
import shlex
from pathlib import Path

import pytest

from fedjax_masks import cli, config

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
COMMANDS = [*PAGES, ROOT / "README.md"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """The calls of the command line in a page, without what a shell would do around them."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = [line for part in text.splitlines() for line in part.split("&&")]
    return [
        words[1:]
        for line in lines
        if (words := shlex.split(line, comments=True)) and words[0] == "fedjax-masks"
    ]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.stem)
def test_python_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {"__name__": page.stem}
    for block in blocks(page, "python"):
        exec(compile(block, str(page.relative_to(ROOT)), "exec"), names)


@pytest.mark.parametrize("page", [p for p in COMMANDS if commands(p)], ids=lambda p: p.stem)
def test_commands_are_accepted(page):
    for words in commands(page):
        arguments = cli._parser().parse_args(words)
        if arguments.command is cli._run:
            config.make_config(cli._values(arguments, cli._FLAGS))
