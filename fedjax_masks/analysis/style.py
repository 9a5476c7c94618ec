"""How figures look: one colour and marker per algorithm, the same in every figure."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from fedjax_masks.analysis.records import (
    RunRecord,
    algorithm_name,
    data_settings,
    data_title,
    flatten,
    is_diverged,
)

INK, MUTED, GRID = "#1c2530", "#66717d", "#e1e5ea"
BASELINE = "#5a6570"
FRONT = "#c3cad2"
# Okabe and Ito's palette, safe for the colour-blind, without black and its pale yellow.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "osD^vPX*"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)), (0, (3, 1)))
# What may differ between runs that are repetitions of one another.
_INCIDENTAL = (
    *("versions", "platform", "plan", "out", "name"),
    *("chosen_plan", "chosen_plan_reason", "chosen_storage", "fingerprints"),
)
_LONGEST = 60  # characters of a label

_RC: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "axes.unicode_minus": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedjax_masks",
}


class Series(NamedTuple):
    """Runs that are drawn alike: one configuration, over all its seeds.

    Attributes:
      label: What the legend says.
      algorithm: The algorithm's name.
      color: Its colour, as ``#rrggbb``.
      marker: Its marker.
      dash: A line style of matplotlib, which tells configurations of one algorithm apart.
      runs: The runs, which differ only by seed.
    """

    label: str
    algorithm: str
    color: str
    marker: str
    dash: Any
    runs: tuple[RunRecord, ...]


def group(runs: Sequence[RunRecord]) -> list[Series]:
    """Groups runs into series, and gives each algorithm its colour.

    FedAvg, the baseline of any comparison, is always grey.

    Args:
      runs: The runs.

    Returns:
      The series, in the order in which they first appear.
    """
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(
            json.dumps([algorithm_name(run), _settings(run)], sort_keys=True, default=str), []
        ).append(run)
    members = list(groups.values())
    colored = [n for n in dict.fromkeys(map(algorithm_name, runs)) if n != "fedavg"]
    series = []
    for index, (alike, label) in enumerate(zip(members, _labels(members))):
        name = algorithm_name(alike[0])
        place = colored.index(name) if name in colored else -1
        variant = sum(algorithm_name(other[0]) == name for other in members[:index])
        series.append(
            Series(
                label=label,
                algorithm=name,
                color=PALETTE[place % len(PALETTE)] if place >= 0 else BASELINE,
                marker=_MARKERS[(place + 1) % len(_MARKERS)],
                dash=_DASHES[(variant + max(place, 0) // len(PALETTE)) % len(_DASHES)],
                runs=tuple(alike),
            )
        )
    return series


def sound(series: Sequence[Series]) -> list[Series]:
    """The series none of whose runs diverged: without its bad seeds a mean over seeds would flatter."""
    return [member for member in series if not any(map(is_diverged, member.runs))]


def by_data(series: Sequence[Series]) -> list[tuple[str, list[Series]]]:
    """The series that may be compared with one another: those on the same data, divided alike.

    Returns:
      What the data are called, and the series on them; the name is empty where all are on the same.
    """
    groups: dict[str, list[Series]] = {}
    for member in series:
        groups.setdefault(json.dumps(data_settings(member.runs[0]), sort_keys=True, default=str), []).append(
            member
        )
    titles = [data_title(members[0].runs[0]) for members in groups.values()]
    if len(titles) == 1:
        titles = [""]
    again = [titles[:place].count(title) for place, title in enumerate(titles)]
    names = [f"{title} ({n + 1})" if n else title for title, n in zip(titles, again)]
    return list(zip(names, groups.values()))


@contextmanager
def drawing() -> Iterator[None]:
    """The settings under which figures are made and saved."""
    from fedjax_masks.analysis.plotting import rc_context

    with rc_context(_RC):
        yield


def _settings(run: RunRecord) -> dict[str, Any]:
    """The flat configuration without what may differ between repetitions."""
    flat = flatten(run.config)
    apart = ("data.dir", "data.cache_dir")
    kept = (
        key
        for key in flat
        if key.split(".")[0] not in _INCIDENTAL and key.split(".")[-1] != "seed" and key not in apart
    )
    return {key: flat[key] for key in kept}


def _labels(members: Sequence[Sequence[RunRecord]]) -> list[str]:
    """The algorithm, and where that is ambiguous the settings that differ, or the run's name."""
    labels = []
    for alike in members:
        name = algorithm_name(alike[0])
        rivals = [_settings(other[0]) for other in members if algorithm_name(other[0]) == name]
        own = _settings(alike[0])
        differing = [key for key in own if any(other.get(key) != own[key] for other in rivals)]
        told = ", ".join(f"{key.split('.')[-1]}={own[key]}" for key in differing)
        labels.append(name if len(rivals) == 1 else f"{name}, {told}" if len(differing) in (1, 2) else "")
    names = [f"{algorithm_name(alike[0])} ({alike[0].name})" for alike in members]
    fits = [0 < len(label) <= _LONGEST and labels.count(label) == 1 for label in labels]
    short = [label if fit else _cut(name) for label, name, fit in zip(labels, names, fits)]
    again = [short[:place].count(label) for place, label in enumerate(short)]
    return [f"{label} #{n + 1}" if n else label for label, n in zip(short, again)]


def _cut(text: str) -> str:
    """A text without its middle where it is too long for a label."""
    half = (_LONGEST - 1) // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}…{text[-half:]}"
