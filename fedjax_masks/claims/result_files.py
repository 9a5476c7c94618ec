"""Figures from result files: long runs whose results are part of the package.

The files of ``fedjax_masks/claims/results`` are package data, so an installed package reads the same
figures as the source tree. ``provenance.json`` among them holds the command, commit and machine of each.
"""

import json
import re
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from importlib import resources
from typing import Any, NamedTuple

from fedjax_masks.claims.claim import COMMAND, Claim, Statement, claim_not_run, judged_claim

FOLDER = "fedjax_masks/claims/results"
LATENCY_FILE = "masked_inference.json"

Line = dict[str, Any]
Judge = Callable[[Sequence[Line]], tuple[str, bool]]

_RESULTS = resources.files("fedjax_masks.claims") / "results"
_SEED = re.compile(r"((,(\w+\.)?seed=\d+)+|(?<!\de)-\d+)$")


class Results(NamedTuple):
    """The content of a result file.

    Attributes:
      lines: The JSON objects of the file, one per line of it.
      command: The command that produced them.
      source: The file, the commit and the machine.
    """

    lines: Sequence[Line]
    command: str
    source: str


def result_claim(
    statement: Statement,
    conditions: str,
    file: str,
    judge: Judge,
    *,
    reason: str = "",
    command: str = COMMAND,
) -> Claim:
    """A figure from a result file.

    Args:
      statement: The statement.
      conditions: The conditions of our figure.
      file: The name of the file.
      judge: ``lines -> (figure, met)``: our figure, and whether it meets the statement.
      reason: An explanation, used where our figure does not meet the statement.
      command: The command that makes the file, used where the file is missing.
    """
    results = read_results(file)
    if results is None:
        return claim_not_run(statement, conditions, command, f"needs {FOLDER}/{file}")
    ours, is_met = judge(results.lines)
    origin = {"command": results.command, "source": results.source}
    return judged_claim(statement, conditions, ours, is_met, note=reason, **origin)


def latency_claims(statement: Statement, least: float, model: str) -> list[Claim]:
    """Speed-ups of inference for minibatches of 1 and of 32 examples, a row for each.

    Args:
      statement: The statement.
      least: The speed-up that meets the statement.
      model: A description of our model.
    """

    def judge(batch: str, lines: Sequence[Line]) -> tuple[str, bool]:
        ratio = lines[0]["latency_speedup"][statement.system][batch]
        return f"{ratio:.2f}x", ratio >= least

    return [
        result_claim(statement, f"{model}, minibatches of {batch}", LATENCY_FILE, partial(judge, batch))
        for batch in ("1", "32")
    ]


def read_results(file: str) -> Results | None:
    """The content of a result file by its name; None where the file or its provenance is missing."""
    path, provenance = _RESULTS / file, _RESULTS / "provenance.json"
    if not path.is_file() or not provenance.is_file():
        return None
    origin = json.loads(provenance.read_text("utf-8")).get(file)
    if origin is None:
        return None
    lines = path.read_text("utf-8").splitlines()
    source = f"{FOLDER}/{file}, commit {origin['commit']}, {origin['machine']}"
    return Results([json.loads(line) for line in lines], origin["command"], source)


def pairs(
    lines: Sequence[Line],
    value: Callable[[Line], float],
    group: Callable[[Line], Hashable],
    ours: Hashable,
    theirs: Hashable,
) -> list[tuple[float, float]]:
    """Figures of two groups of lines, a pair for each seed that both groups have.

    Args:
      lines: The lines; ``seed`` holds the seed.
      value: The figure of a line.
      group: The group of a line.
      ours: The first group.
      theirs: The second group.

    >>> lines = [{"seed": 0, "name": name, "x": x} for name, x in (("a", 3.0), ("b", 1.0))]
    >>> pairs(lines, lambda line: line["x"], lambda line: line["name"], "a", "b")
    [(3.0, 1.0)]
    """
    first, second = (
        {line["seed"]: value(line) for line in lines if group(line) == name} for name in (ours, theirs)
    )
    return [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]


def gaps(
    lines: Sequence[Line],
    value: Callable[[Line], float],
    group: Callable[[Line], Hashable],
    ours: Hashable,
    theirs: Hashable,
) -> list[float]:
    """Differences between two groups of lines, one for each seed that both groups have (see :func:`pairs`).

    >>> lines = [{"seed": 0, "name": name, "x": x} for name, x in (("a", 3.0), ("b", 1.0))]
    >>> gaps(lines, lambda line: line["x"], lambda line: line["name"], "a", "b")
    [2.0]
    """
    return [mine - other for mine, other in pairs(lines, value, group, ours, theirs)]


def algorithm(line: Line) -> str:
    """The name of a run's algorithm."""
    return line["algorithm"]["name"]


def setting(line: Line) -> str:
    """The setting of a run: its name without the seeds at the end.

    >>> setting({"run": "ecofed-fractal-0"}), setting({"run": "fedavg,seed=0,data.seed=1"})
    ('ecofed-fractal', 'fedavg')
    """
    return _SEED.sub("", line["run"])
