"""Figures of the report; matplotlib draws them without a display and without pyplot."""

from collections.abc import Sequence

import numpy as np

from fedjax_masks.analysis.accuracy import accuracy_figures
from fedjax_masks.analysis.canvas import WIDTH, Plot, keys_of, legend, new_figure, plain
from fedjax_masks.analysis.partition import Division, partition_figure
from fedjax_masks.analysis.records import MEGABYTE, client_accuracy, layer_densities, per_client_round
from fedjax_masks.analysis.setup import counts_setup, setup_received
from fedjax_masks.analysis.style import Series, drawing
from fedjax_masks.analysis.wording import quantity


def draw_all(series: Sequence[Series], divisions: Sequence[Division] = ()) -> list[Plot]:
    """Draws every figure for which the runs have the numbers.

    Args:
      series: The series to compare.
      divisions: The divisions of the data.
    """
    with drawing():
        further = (client_spread(series), traffic(series), mask_density(series), partition_figure(divisions))
        plots = accuracy_figures(series) + [item for item in further if item is not None]
        for item in plots:  # a fixed layout spares the work when the figure is saved again
            item.figure.draw_without_rendering()
            item.figure.set_layout_engine("none")
        return plots


def client_spread(series: Sequence[Series]) -> Plot | None:
    """The figure of the clients' final accuracies, sorted."""
    spreads = [(member, values) for member in series if (values := _spread(member)).size]
    if not spreads:
        return None
    figure = new_figure(WIDTH, 3.6)
    ax = figure.subplots()
    for member, values in spreads:
        share = 100 * (np.arange(values.size) + 0.5) / values.size
        (line,) = ax.plot(share, 100 * values, member.marker, color=member.color, linestyle=member.dash)
        line.set_markevery((0.08, 0.16) if values.size > 1 else None)
    ax.set(xlabel="clients, from worst to best (%)", ylabel="personal accuracy (%)", xlim=(0, 100))
    legend(figure, keys_of([member for member, _ in spreads]))
    caption = (
        "Personal accuracies of the clients that have trained, at the last evaluation, sorted: the client "
        "with the lowest accuracy is at the left end, the median in the middle. A flat curve means equal "
        "accuracies."
    )
    return Plot("client-spread", "Spread over clients", caption, figure)


def mask_density(series: Sequence[Series]) -> Plot | None:
    """The figure of each layer's mask density, at the first and the last evaluation."""
    members = [(member, densities) for member in series if (densities := _densities(member))]
    if not members:
        return None
    layers = list(dict.fromkeys(layer for _, densities in members for layer in densities))
    figure = new_figure(WIDTH, 1.0 + 0.2 * len(layers) * (1 + len(members)) * 0.8)
    ax = figure.subplots()
    for place, (member, densities) in enumerate(members):
        offset = (place - (len(members) - 1) / 2) * 0.7 / len(members)
        for layer, ends in densities.items():
            height = layers.index(layer) + offset
            ax.plot(ends, (height, height), color=member.color, linewidth=1.4)
            ax.plot(*ends[:1], height, member.marker, color=member.color, markerfacecolor="none")
            ax.plot(*ends[1:], height, member.marker, color=member.color)
    ax.set_yticks(range(len(layers)), [plain(layer) for layer in layers])
    ax.set(xlabel="weights kept (%)", xlim=(-2, 102), ylim=(len(layers) - 0.5, -0.5))
    ax.grid(False, axis="y")
    legend(figure, keys_of([member for member, _ in members]))
    caption = (
        "Share of each layer's weights that the masks keep, mean over clients and seeds. Hollow markers: "
        "first evaluation; filled markers: last evaluation."
    )
    return Plot("mask-density", "Mask density by layer", caption, figure)


def traffic(series: Sequence[Series]) -> Plot | None:
    """The figure of MB per client and round, up and down."""
    bars = [(member, *pair) for member in series if (pair := _traffic(member))]
    if not bars:
        return None
    figure = new_figure(WIDTH, 0.8 + 0.52 * len(bars))
    ax = figure.subplots()
    for place, (member, up, down) in enumerate(bars):
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
    ax.set_yticks(range(len(bars)), [plain(member.label) for member, _, _ in bars])
    ax.set(xlabel="MB per client and round", ylim=(len(bars) - 0.5, -0.5))
    ax.margins(x=0.2)
    ax.set_xlim(left=0)
    ax.grid(False)
    ax.tick_params(axis="y", length=0)
    caption = (
        "Bytes that a client sends (solid) and receives (pale) in a round, mean over all rounds "
        "(1 MB = 1e6 bytes)."
    )
    if setup := setup_received(series):
        caption += f" Down {'includes a share of' if counts_setup(series) else 'excludes'} {setup}."
    return Plot("traffic", "Communication per round", caption, figure)


def _densities(member: Series) -> dict[str, tuple[float, float]]:
    """The share of weights that each layer keeps at the first and the last evaluation, in percent.

    Values are means over seeds.
    """
    ends: dict[str, list[np.ndarray]] = {}
    for run in member.runs:
        for layer, values in layer_densities(run).items():
            ends.setdefault(layer, []).append(100 * values[np.isfinite(values)][[0, -1]])
    means = {layer: np.mean(pairs, 0) for layer, pairs in ends.items()}
    return {layer: (float(first), float(last)) for layer, (first, last) in means.items()}


def _spread(member: Series) -> np.ndarray:
    """Accuracies of the clients of all seeds together, ascending."""
    return np.sort(np.concatenate([client_accuracy(run) for run in member.runs]))


def _traffic(member: Series) -> tuple[float, float] | None:
    """MB per client and round, up and down, means over seeds; None where no run has them."""
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
