"""The figures of the report, as matplotlib figures that need no display and no pyplot."""

from collections.abc import Sequence

import numpy as np

from fedjax_masks.analysis.accuracy import accuracy_figures
from fedjax_masks.analysis.canvas import WIDTH, Drawn, keys_of, legend, new_figure, plain
from fedjax_masks.analysis.partition import Division, partition_figure
from fedjax_masks.analysis.records import MEGABYTE, client_accuracy, layer_densities, per_client_round
from fedjax_masks.analysis.setup import counts_setup, setup_received
from fedjax_masks.analysis.style import Series, drawing
from fedjax_masks.analysis.wording import quantity


def draw_all(series: Sequence[Series], divisions: Sequence[Division] = ()) -> list[Drawn]:
    """Every figure for which the runs have the numbers."""
    with drawing():
        others = (client_spread(series), traffic(series), mask_density(series), partition_figure(divisions))
        drawn = accuracy_figures(series) + [item for item in others if item is not None]
        for item in drawn:  # laid out once, however many times it is saved
            item.figure.draw_without_rendering()
            item.figure.set_layout_engine("none")
        return drawn


def client_spread(series: Sequence[Series]) -> Drawn | None:
    """Each client's accuracy at the end, sorted."""
    found = [(member, values) for member in series if (values := _spread(member)).size]
    if not found:
        return None
    figure = new_figure(WIDTH, 3.6)
    ax = figure.subplots()
    for member, values in found:
        share = 100 * (np.arange(values.size) + 0.5) / values.size
        (line,) = ax.plot(share, 100 * values, member.marker, color=member.color, linestyle=member.dash)
        line.set_markevery((0.08, 0.16) if values.size > 1 else None)
    ax.set(xlabel="clients, from worst to best (%)", ylabel="personal accuracy (%)", xlim=(0, 100))
    legend(figure, keys_of([member for member, _ in found]))
    caption = (
        "The personal accuracy at the last evaluation of every client that has trained, sorted: the left end "
        "is the worst-served client, the middle the median. A flat curve is a fair one."
    )
    return Drawn("client-spread", "Spread over clients", caption, figure)


def mask_density(series: Sequence[Series]) -> Drawn | None:
    """Mask density of each layer, at the first and the last evaluation."""
    found = [(member, densities) for member in series if (densities := _densities(member))]
    if not found:
        return None
    layers = list(dict.fromkeys(layer for _, densities in found for layer in densities))
    figure = new_figure(WIDTH, 1.0 + 0.2 * len(layers) * (1 + len(found)) * 0.8)
    ax = figure.subplots()
    for place, (member, densities) in enumerate(found):
        offset = (place - (len(found) - 1) / 2) * 0.7 / len(found)
        for layer, ends in densities.items():
            height = layers.index(layer) + offset
            ax.plot(ends, (height, height), color=member.color, linewidth=1.4)
            ax.plot(*ends[:1], height, member.marker, color=member.color, markerfacecolor="none")
            ax.plot(*ends[1:], height, member.marker, color=member.color)
    ax.set_yticks(range(len(layers)), [plain(layer) for layer in layers])
    ax.set(xlabel="weights kept (%)", xlim=(-2, 102), ylim=(len(layers) - 0.5, -0.5))
    ax.grid(False, axis="y")
    legend(figure, keys_of([member for member, _ in found]))
    caption = (
        "Share of each layer's weights that the masks keep, mean over clients and seeds: hollow at the first "
        "evaluation, filled at the last."
    )
    return Drawn("mask-density", "Mask density by layer", caption, figure)


def traffic(series: Sequence[Series]) -> Drawn | None:
    """MB per client and round, up and down."""
    found = [(member, *pair) for member in series if (pair := _traffic(member))]
    if not found:
        return None
    figure = new_figure(WIDTH, 0.8 + 0.52 * len(found))
    ax = figure.subplots()
    for place, (member, up, down) in enumerate(found):
        for value, side, alpha in ((up, -0.19, 1.0), (down, 0.19, 0.45)):
            word = "up" if side < 0 else "down"
            ax.barh(place + side, value, 0.34, color=member.color, alpha=alpha, linewidth=0)
            ax.annotate(
                f"{quantity(value)} {word}",
                (value, place + side),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
    ax.set_yticks(range(len(found)), [plain(member.label) for member, _, _ in found])
    ax.set(xlabel="MB per client and round", ylim=(len(found) - 0.5, -0.5))
    ax.margins(x=0.2)
    ax.set_xlim(left=0)
    ax.grid(False)
    ax.tick_params(axis="y", length=0)
    caption = (
        "What one client sends (solid) and gets (pale) in one round, mean over all rounds (1 MB = 1e6 bytes)."
    )
    if setup := setup_received(series):
        caption += f" {'Down holds a share of' if counts_setup(series) else 'It leaves out'} {setup}."
    return Drawn("traffic", "Communication per round", caption, figure)


def _densities(member: Series) -> dict[str, tuple[float, float]]:
    """Weights that each layer keeps at its first and last evaluation, in percent: means over seeds."""
    ends: dict[str, list[np.ndarray]] = {}
    for run in member.runs:
        for layer, values in layer_densities(run).items():
            ends.setdefault(layer, []).append(100 * values[np.isfinite(values)][[0, -1]])
    means = {layer: np.mean(pairs, 0) for layer, pairs in ends.items()}
    return {layer: (float(first), float(last)) for layer, (first, last) in means.items()}


def _spread(member: Series) -> np.ndarray:
    """The clients of all seeds together, ascending."""
    return np.sort(np.concatenate([client_accuracy(run) for run in member.runs]))


def _traffic(member: Series) -> tuple[float, float] | None:
    """MB per client and round, up and down, mean over seeds, or None."""
    pairs = [
        (up, down)
        for run in member.runs
        if (up := per_client_round(run, "bytes_up_total")) is not None
        and (down := per_client_round(run, "bytes_down_total")) is not None
    ]
    if not pairs:
        return None
    up, down = np.mean(pairs, 0) / MEGABYTE
    return float(up), float(down)
