"""Figure of the division of the data: the classes of each client."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_masks.analysis.canvas import WIDTH, Plot, new_figure
from fedjax_masks.analysis.records import RunRecord, data_settings, data_title, setting
from fedjax_masks.analysis.style import PALETTE
from fedjax_masks.analysis.wording import enumeration
from fedjax_masks.core.errors import silence_logger
from fedjax_masks.core.messages import single_line

_CLIENTS, _PANELS = 60, 4


class Division(NamedTuple):
    """A division of a data set.

    Attributes:
      title: The data set, the partition and ``data.seed``.
      counts: ``int64[num_clients, num_classes]``: numbers of training examples.
      other_seeds: The ``data.seed`` of runs with the same partition and another seed.
    """

    title: str
    counts: np.ndarray
    other_seeds: tuple[Any, ...] = ()


def divisions_of(runs: Sequence[RunRecord]) -> tuple[list[Division], list[str]]:
    """Divides the runs' data again, without downloads.

    Args:
      runs: The runs; among runs that differ in seeds alone, the first one counts.

    Returns:
      The divisions, and the reasons why others are missing, one line each.
    """
    divisions, missing = [], []
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(json.dumps(data_settings(run), sort_keys=True), []).append(run)
    for group in groups.values():
        run = group[0]
        if not data_settings(run):
            continue
        seed, *other_seeds = dict.fromkeys(setting(member, "data", "seed") for member in group)
        title = data_title(run) if seed is None else f"{data_title(run)}, data.seed {seed}"
        try:
            divisions.append(Division(title, _histogram(run.config["data"]), tuple(other_seeds)))
        except (ValueError, TypeError, OSError) as error:
            missing.append(f"{data_title(run)}: {single_line(error)}")
    return divisions, missing


def _histogram(settings: dict[str, Any]) -> np.ndarray:
    from fedjax_masks.data import label_histogram, load_task
    from fedjax_masks.data.prepared import library_folder

    arguments = dict(settings)
    name, folder = arguments.pop("name"), arguments.pop("dir", None)
    with silence_logger("fedjax_masks"):  # the run itself has logged how its data were prepared
        return label_histogram(load_task(name, data_dir=folder or library_folder(), **arguments))


def partition_figure(divisions: Sequence[Division]) -> Plot | None:
    """The figure: one column per client, one row per class, darker for more examples."""
    from fedjax_masks.analysis.plotting import PolyCollection

    panels = divisions[:_PANELS]
    if not panels:
        return None
    heights = [0.8 + min(0.2 * division.counts.shape[1], 3.2) for division in panels]
    figure = new_figure(WIDTH, sum(heights))
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, division in zip(axes, panels):
        counts = division.counts[:_CLIENTS]
        clients, classes = counts.shape
        client, label = np.nonzero(counts)
        corners = np.stack([client, label], 1)[:, None] + [[0, 0], [1, 0], [1, 1], [0, 1]]
        # Shades by opacity suit a light and a dark page.
        shades = [(PALETTE[0], 0.12 + 0.88 * share) for share in counts[client, label] / counts.max()]
        ax.add_collection(PolyCollection(list(corners), facecolors=shades, linewidths=0))
        ax.set(xlim=(0, clients), ylim=(classes, 0), ylabel="class", title=division.title)
        ax.set_xticks(*_middle(clients))
        ax.set_yticks(*_middle(classes))
        ax.grid(False)
        ax.tick_params(length=0)
    axes[-1].set_xlabel("client")
    return Plot("partition", "Classes of the clients", _caption(divisions), figure)


def _middle(number: int) -> tuple[list[float], list[str]]:
    """Positions and labels of ticks in the middle of cells, at most about a dozen."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000, number) if number <= 12 * step)
    return [place + 0.5 for place in range(0, number, step)], [str(n) for n in range(0, number, step)]


def _caption(divisions: Sequence[Division]) -> str:
    parts = ["Training examples of each class by client; darker cells have more."]
    for division in divisions[:_PANELS]:
        sizes = division.counts.sum(1)
        more = f", the first {_CLIENTS} shown" if len(sizes) > _CLIENTS else ""
        parts.append(
            f"{division.title}: {len(sizes)} clients{more}, {sizes.min()} to {sizes.max()} examples each; "
            f"the darkest cell has {division.counts[:_CLIENTS].max()}."
        )
        if division.other_seeds:
            parts.append(f"The divisions with data.seed {enumeration(division.other_seeds)} are not shown.")
    if len(divisions) > _PANELS:
        parts.append(f"{len(divisions) - _PANELS} further divisions are not shown.")
    return " ".join(parts)
