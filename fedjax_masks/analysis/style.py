"""Style of the figures: one color and marker per algorithm, the same in every figure."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from fedjax_masks.analysis.records import (
    RunRecord,
    algorithm_name,
    data_settings,
    data_title,
    flatten,
    is_diverged,
)

Dash = Literal["-", ":"] | tuple[float, Sequence[float]]
"""A line style of matplotlib."""

INK, MUTED, GRID = "#1c2530", "#66717d", "#e1e5ea"
BASELINE = "#5a6570"
FRONT = "#c3cad2"
# Okabe and Ito's palette for color blindness, without black and its pale yellow.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "osD^vPX*"
_DASHES: tuple[Dash, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)), (0, (3, 1)))
# Keys that may differ between repetitions of a run.
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
    """Runs of one configuration, over all its seeds.

    Attributes:
      label: The label in the legend.
      algorithm: The name of the algorithm.
      color: The color of the algorithm, as ``#rrggbb``.
      marker: The marker of the algorithm.
      dash: A line style of matplotlib, different for each configuration of an algorithm.
      runs: The runs, which differ in their seeds alone.
    """

    label: str
    algorithm: str
    color: str
    marker: str
    dash: Dash
    runs: tuple[RunRecord, ...]


def group(runs: Sequence[RunRecord]) -> list[Series]:
    """Groups runs into series, and gives each algorithm a color.

    FedAvg, the usual baseline, is always gray.

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
    algorithms = [n for n in dict.fromkeys(map(algorithm_name, runs)) if n != "fedavg"]
    series = []
    for index, (members_runs, label) in enumerate(zip(members, _labels(members))):
        name = algorithm_name(members_runs[0])
        place = algorithms.index(name) if name in algorithms else -1
        variant = sum(algorithm_name(other[0]) == name for other in members[:index])
        series.append(
            Series(
                label=label,
                algorithm=name,
                color=PALETTE[place % len(PALETTE)] if place >= 0 else BASELINE,
                marker=_MARKERS[(place + 1) % len(_MARKERS)],
                dash=_DASHES[(variant + max(place, 0) // len(PALETTE)) % len(_DASHES)],
                runs=tuple(members_runs),
            )
        )
    return series


def sound(series: Sequence[Series]) -> list[Series]:
    """The series without diverged runs; a mean over the other seeds would look better than it is."""
    return [member for member in series if not any(map(is_diverged, member.runs))]


def by_data(series: Sequence[Series]) -> list[tuple[str, list[Series]]]:
    """Groups of comparable series: series of a group have the same data and partition.

    Returns:
      The name of the data and the series of each group; the name is empty where there is one group.
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
    """Applies matplotlib's settings for making and saving figures."""
    from fedjax_masks.analysis.plotting import rc_context

    with rc_context(_RC):
        yield


def _settings(run: RunRecord) -> dict[str, Any]:
    """The flat configuration without the keys that may differ between repetitions."""
    flat = flatten(run.config)
    folders = ("data.dir", "data.cache_dir")
    return {
        key: value
        for key, value in flat.items()
        if key.split(".")[0] not in _INCIDENTAL and key.split(".")[-1] != "seed" and key not in folders
    }


def _labels(members: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Labels: the algorithm; where that is ambiguous, also the settings that differ, or the run's name."""
    labels = []
    for run, *_ in members:
        name, settings = algorithm_name(run), _settings(run)
        rivals = [_settings(other) for other, *_ in members if algorithm_name(other) == name]
        differing = [key for key in settings if any(other.get(key) != settings[key] for other in rivals)]
        values = ", ".join(f"{key.split('.')[-1]}={settings[key]}" for key in differing)
        labels.append(name if len(rivals) == 1 else f"{name}, {values}" if len(differing) in (1, 2) else "")
    names = [f"{algorithm_name(run)} ({run.name})" for run, *_ in members]
    fits = [0 < len(label) <= _LONGEST and labels.count(label) == 1 for label in labels]
    unique = [label if fit else _cut(name) for label, name, fit in zip(labels, names, fits)]
    again = [unique[:place].count(label) for place, label in enumerate(unique)]
    return [f"{label} #{n + 1}" if n else label for label, n in zip(unique, again)]


def _cut(text: str) -> str:
    """A text, cut in the middle where it is too long for a label."""
    half = (_LONGEST - 1) // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}…{text[-half:]}"
