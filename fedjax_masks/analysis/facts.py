"""Title of a comparison, and the settings that its runs share."""

from collections.abc import Sequence
from typing import Any

from fedjax_masks.analysis.records import RunRecord, algorithm_name, flatten, seeds_of, setting
from fedjax_masks.analysis.style import Series
from fedjax_masks.analysis.wording import as_text, listed

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
    """The algorithms and the data, as far as there are few of them."""
    names = list(dict.fromkeys(map(algorithm_name, runs)))
    data = list(dict.fromkeys(str(setting(run, "data", "name")) for run in runs))
    what = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    what = what if len(names) <= 6 else f"{len(names)} algorithms"
    return f"{what} on {data[0] if len(data) == 1 else f'{len(data)} data sets'}"


def facts_of(series: Sequence[Series]) -> str:
    """What all runs share."""
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
    """The run's and the partition's seeds, and others where runs differ in them."""
    values: dict[str, list[Any]] = {key: [] for key in _SEEDS}
    for run in runs:
        for key, value in seeds_of(run).items():
            values.setdefault(key, []).append(value)
    return [
        f"{_SEEDS.get(key, key)} {listed(found)}"
        for key, found in values.items()
        if found and (key in _SEEDS or len(set(found)) > 1)
    ]
