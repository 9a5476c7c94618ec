"""Title of a comparison, and the settings that its runs share."""

from collections.abc import Sequence
from typing import Any

from fedjax_masks.analysis.records import RunRecord, algorithm_name, flatten, seeds_of, setting
from fedjax_masks.analysis.style import Series
from fedjax_masks.analysis.wording import as_text, enumeration

_FACTS = (
    ("model {}", "model.name"),
    ("partition {}", "data.partition"),
    ("{} clients", "data.clients"),
    ("{} per round", "cohort"),
    ("{} rounds", "rounds"),
    ("{} local epochs", "training.epochs"),
)
_SEEDS = {"seed": "run seed", "data.seed": "data.seed"}


def title_of(runs: Sequence[RunRecord]) -> str:
    """The names of the algorithms and the data, or their numbers where there are many."""
    names = list(dict.fromkeys(map(algorithm_name, runs)))
    data = list(dict.fromkeys(str(setting(run, "data", "name")) for run in runs))
    algorithms = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    algorithms = algorithms if len(names) <= 6 else f"{len(names)} algorithms"
    return f"{algorithms} on {data[0] if len(data) == 1 else f'{len(data)} data sets'}"


def facts_of(series: Sequence[Series]) -> str:
    """The settings that all runs share, in a line."""
    runs = [run for member in series for run in member.runs]
    facts = [f"{len(runs)} run" + "s" * (len(runs) > 1)]
    seeds = {len(member.runs) for member in series}
    if seeds != {1}:
        facts.append(f"{min(seeds)} seeds each" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)} seeds")
    for text, key in _FACTS:
        values = {as_text(flatten(run.config).get(key)) for run in runs}
        if len(values) == 1 and values != {"null"}:
            facts.append(text.format(values.pop()))
    return " · ".join(facts + _seed_facts(runs))


def _seed_facts(runs: Sequence[RunRecord]) -> list[str]:
    """The seeds of the runs and the partitions, and further seeds in which runs differ."""
    values: dict[str, list[Any]] = {key: [] for key in _SEEDS}
    for run in runs:
        for key, value in seeds_of(run).items():
            values.setdefault(key, []).append(value)
    return [
        f"{_SEEDS.get(key, key)} {enumeration(seeds)}"
        for key, seeds in values.items()
        if seeds and (key in _SEEDS or len(set(seeds)) > 1)
    ]
