"""Who has which classes: the division of the data among the clients, as a picture."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_masks.analysis.canvas import WIDTH, Drawn, new_figure
from fedjax_masks.analysis.records import RunRecord, data_settings, data_title, setting
from fedjax_masks.analysis.style import PALETTE
from fedjax_masks.analysis.wording import listed
from fedjax_masks.core.errors import unlogged

_CLIENTS, _PANELS = 60, 4


class Division(NamedTuple):
    """A division of a data set.

    Attributes:
      title: Data set, partition and ``data.seed``.
      counts: ``int64[num_clients, num_classes]``: training examples.
      other_seeds: Those of runs whose data are divided alike but for ``data.seed``.
    """

    title: str
    counts: np.ndarray
    other_seeds: tuple[Any, ...] = ()


def divisions_of(runs: Sequence[RunRecord]) -> tuple[list[Division], list[str]]:
    """Divides the runs' data again; nothing is downloaded.

    Args:
      runs: The runs; of runs that differ in nothing but seeds, the first counts.

    Returns:
      The different divisions, and why others could not be had, one line each.
    """
    found, missing = [], []
    alike: dict[str, list[RunRecord]] = {}
    for run in runs:
        alike.setdefault(json.dumps(data_settings(run), sort_keys=True), []).append(run)
    for run, *others in alike.values():
        if not data_settings(run):
            continue
        seed, *further = dict.fromkeys(setting(one, "data", "seed") for one in (run, *others))
        title = data_title(run) if seed is None else f"{data_title(run)}, data.seed {seed}"
        try:
            found.append(Division(title, _histogram(run.config["data"]), tuple(further)))
        except (ValueError, TypeError, OSError) as error:
            missing.append(f"{data_title(run)}: {' '.join(str(error).split())}")
    return found, missing


def _histogram(settings: dict[str, Any]) -> np.ndarray:
    from fedjax_masks.data import label_histogram, load_task
    from fedjax_masks.data.prepared import library_folder

    arguments = dict(settings)
    name, folder = arguments.pop("name"), arguments.pop("dir", None)
    with unlogged("fedjax_masks"):  # the run has said what was done to its data
        return label_histogram(load_task(name, data_dir=folder or library_folder(), **arguments))


def partition_figure(divisions: Sequence[Division]) -> Drawn | None:
    """A column per client, a row per class: the darker, the more examples."""
    from fedjax_masks.analysis.plotting import PolyCollection

    shown = divisions[:_PANELS]
    if not shown:
        return None
    heights = [0.8 + min(0.2 * division.counts.shape[1], 3.2) for division in shown]
    figure = new_figure(WIDTH, sum(heights))
    axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, division in zip(axes, shown):
        counts = division.counts[:_CLIENTS]
        clients, classes = counts.shape
        client, label = np.nonzero(counts)
        corners = np.stack([client, label], 1)[:, None] + [[0, 0], [1, 0], [1, 1], [0, 1]]
        # One colour, more or less of it: then the picture also suits a dark page.
        shades = [(PALETTE[0], 0.12 + 0.88 * share) for share in counts[client, label] / counts.max()]
        ax.add_collection(PolyCollection(list(corners), facecolors=shades, linewidths=0))
        ax.set(xlim=(0, clients), ylim=(classes, 0), ylabel="class", title=division.title)
        ax.set_xticks(*_middle(clients))
        ax.set_yticks(*_middle(classes))
        ax.grid(False)
        ax.tick_params(length=0)
    axes[-1].set_xlabel("client")
    return Drawn("partition", "Who has which classes", _caption(divisions), figure)


def _middle(number: int) -> tuple[list[float], list[str]]:
    """Ticks in the middle of at most a dozen cells."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000, number) if number <= 12 * step)
    return [place + 0.5 for place in range(0, number, step)], [str(n) for n in range(0, number, step)]


def _caption(divisions: Sequence[Division]) -> str:
    parts = ["Training examples of each class by client: the darker, the more."]
    for division in divisions[:_PANELS]:
        sizes = division.counts.sum(1)
        more = f", of whom the first {_CLIENTS} are shown" if len(sizes) > _CLIENTS else ""
        parts.append(
            f"{division.title}: {len(sizes)} clients{more}, {sizes.min()} to {sizes.max()} examples each; "
            f"darkest: {division.counts[:_CLIENTS].max()}."
        )
        if division.other_seeds:
            parts.append(f"With data.seed {listed(division.other_seeds)} other clients have them; not shown.")
    if len(divisions) > _PANELS:
        parts.append(f"{len(divisions) - _PANELS} more are not shown.")
    return " ".join(parts)
