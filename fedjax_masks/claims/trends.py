"""Orders of accuracies from result files: one row of a claim for each set of conditions.

A new result file adds a row to a claim by one :class:`Comparison`::

    Comparison("new.jsonl", "fedskel-fresh", "fedavg", percent("last_global_accuracy"), "cohorts=fresh")

The data set, the network, the clients, the rounds and the number of seeds are read from the file.
"""

import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedjax_masks.claims.claim import Claim, Statement, claim_not_run, explained, judged_claim
from fedjax_masks.claims.result_files import FOLDER, Line, gaps, read_results, setting
from fedjax_masks.core.intervals import half_width, interval, surely_above

Value = Callable[[Line], float]
Group = Callable[[Line], Hashable]


@dataclass(frozen=True)
class Comparison:
    """Two groups of runs of a result file, under one set of conditions.

    Attributes:
      file: The name of the result file.
      ours: The group whose figure is claimed to be higher.
      other: The group that it is compared with.
      value: The figure of a run, in points.
      options: The setting of our runs where it is not the default one; the first words of the conditions.
      group: The group of a line; by default, the run's name without the seed.
      reason: An explanation, used where the order is not the claimed one.
      command: The command that makes the file, for a row whose file is to come.
    """

    file: str
    ours: Hashable
    other: Hashable
    value: Value
    options: str = "defaults"
    group: Group = setting
    reason: str = ""
    command: str = ""


def trend_claims(
    statement: Statement,
    comparisons: Iterable[Comparison],
    *,
    bound: float = 0.0,
    unit: str = "points",
    digits: int = 1,
) -> list[Claim]:
    """One row for each comparison; a row is met if the whole 95 % interval lies above the bound.

    Args:
      statement: The statement.
      comparisons: The comparisons.
      bound: The difference that must be exceeded, 0 where a higher figure is claimed.
      unit: The unit of the differences.
      digits: Decimal places of the differences.
    """
    return [_row(statement, comparison, bound, unit, digits) for comparison in comparisons]


def _row(statement: Statement, comparison: Comparison, bound: float, unit: str, digits: int) -> Claim:
    results = read_results(comparison.file)
    if results is None:
        reason = f"needs {FOLDER}/{comparison.file}"
        return claim_not_run(statement, comparison.options, comparison.command, reason)
    lines, ours, other = results.lines, comparison.ours, comparison.other
    differences = gaps(lines, comparison.value, comparison.group, ours, other)
    first = next(line for line in lines if comparison.group(line) == ours)
    return judged_claim(
        statement,
        conditions_of(comparison.options, first, len(differences)),
        f"{interval(differences, digits)} {unit}",
        surely_above(differences, bound),
        note=explained(position(differences, bound), comparison.reason),
        command=results.command,
        source=results.source,
    )


def position(values: Sequence[float], bound: float) -> str:
    """The place of the 95 % interval of the mean, where it is not wholly above a bound.

    >>> position([1.0, 2.0, 3.0], 0), position([-5.0, -4.0, -6.0], 0)
    ('open, as the interval includes 0', 'refuted, as the whole interval is below 0')
    """
    if len(values) < 2:
        return "open, as one seed has no interval"
    if statistics.fmean(values) + half_width(values) < bound:
        return f"refuted, as the whole interval is below {bound:g}"
    return f"open, as the interval includes {bound:g}"


def conditions_of(options: str, line: Line, seeds: int) -> str:
    """The conditions of runs: the setting, then data set, division, network, clients, rounds and seeds.

    Args:
      options: The setting in words.
      line: A line of ``experiments/collect.py``, or of a script that writes the same facts flat.
      seeds: The number of seeds.

    >>> conditions_of("defaults", {"dataset": "digits", "clients": 5, "rounds": 1}, seeds=3)
    'defaults; digits, 5 clients, 1 round, 3 seeds'
    """
    data, training = line.get("data", {}), line.get("training", line)
    facts = [
        data.get("name", line.get("dataset")),
        data.get("partition", line.get("partition")),
        _network(line["model"]) if "model" in line else None,
        _some(data.get("clients", line.get("clients")), "client"),
        _some(data.get("examples_per_client", line.get("examples")), "example", " each"),
        _some(line.get("cohort"), "client", " per round"),
        _some(line.get("rounds"), "round"),
        _some(training.get("epochs"), "epoch", " per round"),
        _count(seeds, "seed"),
    ]
    return f"{options}; {', '.join(fact for fact in facts if fact)}"


def percent(key: str) -> Value:
    """A function that reads a share from a line, in per cent."""
    return lambda line: 100 * line[key]


def _network(model: Mapping[str, Any] | str) -> str:
    """A model's name, with the options that are set; scripts write a name alone.

    >>> _network({"name": "vgg11", "channels": [8, 16], "norm": None})
    'vgg11 (channels=8-16)'
    """
    if isinstance(model, str):
        return model
    options = {key: value for key, value in model.items() if key != "name" and value is not None}
    texts = [
        f"{key}={'-'.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in options.items()
    ]
    return f"{model['name']} ({', '.join(texts)})" if texts else model["name"]


def _some(number: int | None, noun: str, suffix: str = "") -> str | None:
    return None if number is None else _count(number, noun) + suffix


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number != 1 else "")
