"""The figures of the report, as matplotlib figures that need no display and no pyplot."""

from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedjax_masks.analysis.records import (
    MEGABYTE,
    RunRecord,
    bytes_per_client_round,
    client_accuracy,
    column,
    layer_densities,
    total_bytes,
)
from fedjax_masks.analysis.style import INK, Series, drawing, group
from fedjax_masks.analysis.table import quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 5.0
_BANDS_UP_TO = 4
_PERSONAL, _GLOBAL = "personal_accuracy_mean", "global_accuracy"
_YLABEL = {_PERSONAL: "personal accuracy (%)", _GLOBAL: "global accuracy (%)"}


class _Along(NamedTuple):
    """What accuracy is drawn against.

    Attributes:
      slug: For file names.
      label: Of the axis.
      values: At each evaluation of a run: ``float64[evaluations]``.
      log: Whether the axis is logarithmic; a run that is 0 throughout is then a level line.
    """

    slug: str
    label: str
    values: Callable[[RunRecord], np.ndarray]
    log: bool = True


_ROUNDS = _Along("rounds", "round", lambda run: column(run, "round"), log=False)
_BYTES = _Along("bytes", "MB sent in total, log scale", lambda run: total_bytes(run) / MEGABYTE)
_SECONDS = _Along("seconds", "simulated seconds, log scale", lambda run: column(run, "sim_seconds"))
_JOULES = _Along("joules", "joules of all clients, log scale", lambda run: column(run, "energy_joules"))


class Drawn(NamedTuple):
    """A figure with what the page says about it.

    Attributes:
      slug: A short name, for file names and anchors.
      title: The heading.
      caption: How to read it.
      figure: The figure.
    """

    slug: str
    title: str
    caption: str
    figure: "Figure"


def plot_run(*runs: Any) -> "Figure":
    """Accuracy against rounds, and against what was sent.

    Args:
      *runs: One run, or several to compare: :class:`RunRecord`, or anything else that has
        ``records`` (and, as far as it has them, ``name``, ``config`` and ``summary``).

    Returns:
      A figure of two panels; the personal accuracy is drawn solid with the range from the
      10th to the 90th percentile of the clients, the global accuracy dotted. A notebook shows it.
    """
    with drawing():
        series = group([_as_record(run) for run in runs])
        figure = _figure(8.4, 3.0)
        axes = figure.subplots(1, 2, sharey=True)
        for ax, x in zip(axes, (_ROUNDS, _BYTES)):
            _draw_accuracy(ax, series, _PERSONAL, x)
            _draw_accuracy(ax, series, _GLOBAL, x, linestyle=":", marker="")
        axes[0].set_ylabel("accuracy (%)")
        keys = [_key(member) for member in series] if len(series) > 1 else []
        kinds = [(_line(INK, "-"), "personal"), (_line(INK, ":"), "global")]
        _legend(figure, keys + [kind for kind, key in zip(kinds, _YLABEL) if _have(series, key)])
        return figure


def _as_record(run: Any) -> RunRecord:
    """A run in memory, which need not know its name or configuration."""
    name, config = getattr(run, "name", "run"), getattr(run, "config", None)
    return RunRecord(name, dict(config or {}), list(run.records), dict(getattr(run, "summary", None) or {}))


def draw_all(series: Sequence[Series]) -> list[Drawn]:
    """Every figure for which the runs have the numbers."""
    with drawing():
        drawn = [item for draw in _FIGURES if (item := draw(series)) is not None]
        for item in drawn:  # laid out once, however many times it is saved
            item.figure.draw_without_rendering()
            item.figure.set_layout_engine("none")
        return drawn


def accuracy_by_rounds(series: Sequence[Series]) -> Drawn | None:
    """Personal and global accuracy against rounds."""
    caption = (
        "Mean over clients of each client's own model on its own test data, and the global model on the "
        "global test set, each where it exists. Bands: 10th to 90th percentile of the clients."
    )
    return _accuracy(series, _ROUNDS, "Accuracy against rounds", caption)


def accuracy_by_bytes(series: Sequence[Series]) -> Drawn | None:
    """Personal and global accuracy against bytes sent, on a log scale."""
    caption = (
        "The same against all that was sent, up and down, by all clients so far (1 MB = 1e6 bytes); "
        "further left is cheaper. A run that sends nothing is a level line."
    )
    return _accuracy(series, _BYTES, "Accuracy against communication", caption)


def accuracy_by_seconds(series: Sequence[Series]) -> Drawn | None:
    """Personal and global accuracy against simulated time, on a log scale."""
    caption = (
        "The same against the simulated time of all rounds so far: a round lasts until its slowest client "
        "has answered, or until the deadline."
    )
    return _accuracy(series, _SECONDS, "Accuracy against simulated time", caption)


def accuracy_by_joules(series: Sequence[Series]) -> Drawn | None:
    """Personal and global accuracy against the clients' energy, on a log scale."""
    caption = (
        "The same against the energy that all clients have spent so far, computing, sending and receiving."
    )
    return _accuracy(series, _JOULES, "Accuracy against energy", caption)


def client_spread(series: Sequence[Series]) -> Drawn | None:
    """Each client's accuracy at the end, sorted."""
    found = [(member, values) for member in series if (values := _spread(member)).size]
    if not found:
        return None
    figure = _figure(_WIDTH, 3.6)
    ax = figure.subplots()
    for member, values in found:
        share = 100 * (np.arange(values.size) + 0.5) / values.size
        (line,) = ax.plot(share, 100 * values, member.marker, color=member.color, linestyle=member.dash)
        line.set_markevery((0.08, 0.16) if values.size > 1 else None)
    ax.set(xlabel="clients, from worst to best (%)", ylabel="personal accuracy (%)", xlim=(0, 100))
    _legend(figure, [_key(member) for member, _ in found])
    caption = (
        "Every client's personal accuracy at the last evaluation, sorted: the left end is the worst-served "
        "client, the middle the median. A flat curve is a fair one."
    )
    return Drawn("client-spread", "Spread over clients", caption, figure)


def mask_density(series: Sequence[Series]) -> Drawn | None:
    """Mask density of each layer, at the first and the last evaluation."""
    found = [(member, densities) for member in series if (densities := layer_densities(member.runs[0]))]
    if not found:
        return None
    layers = list(dict.fromkeys(layer for _, densities in found for layer in densities))
    figure = _figure(_WIDTH, 1.0 + 0.2 * len(layers) * (1 + len(found)) * 0.8)
    ax = figure.subplots()
    for place, (member, densities) in enumerate(found):
        offset = (place - (len(found) - 1) / 2) * 0.7 / len(found)
        for layer, values in densities.items():
            values = values[np.isfinite(values)]
            ends, height = (100 * values[0], 100 * values[-1]), layers.index(layer) + offset
            ax.plot(ends, (height, height), color=member.color, linewidth=1.4)
            ax.plot(*ends[:1], height, member.marker, color=member.color, markerfacecolor="none")
            ax.plot(*ends[1:], height, member.marker, color=member.color)
    ax.set_yticks(range(len(layers)), [_plain(layer) for layer in layers])
    ax.set(xlabel="weights kept (%)", xlim=(-2, 102), ylim=(len(layers) - 0.5, -0.5))
    ax.grid(False, axis="y")
    _legend(figure, [_key(member) for member, _ in found])
    caption = (
        "Share of each layer's weights that the masks keep, mean over clients: hollow at the first "
        "evaluation, filled at the last."
    )
    return Drawn("mask-density", "Mask density by layer", caption, figure)


def traffic(series: Sequence[Series]) -> Drawn | None:
    """MB per client and round, up and down."""
    found = [(member, *pair) for member in series if (pair := _traffic(member))]
    if not found:
        return None
    figure = _figure(_WIDTH, 0.8 + 0.52 * len(found))
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
    ax.set_yticks(range(len(found)), [_plain(member.label) for member, _, _ in found])
    ax.set(xlabel="MB per client and round", ylim=(len(found) - 0.5, -0.5))
    ax.margins(x=0.2)
    ax.set_xlim(left=0)
    ax.grid(False)
    ax.tick_params(axis="y", length=0)
    caption = (
        "What one client sends (solid) and gets (pale) in one round, mean over all rounds (1 MB = 1e6 "
        "bytes). What devices hold from the start is not in it."
    )
    return Drawn("traffic", "Communication per round", caption, figure)


_FIGURES: tuple[Callable[[Sequence[Series]], Drawn | None], ...] = (
    accuracy_by_rounds,
    accuracy_by_bytes,
    accuracy_by_seconds,
    accuracy_by_joules,
    client_spread,
    traffic,
    mask_density,
)


def _accuracy(series: Sequence[Series], x: _Along, title: str, caption: str) -> Drawn | None:
    """One panel for each kind of accuracy that some run has."""
    keys = [key for key in _YLABEL if _have(series, key)]
    known = any(np.isfinite(x.values(run)).any() for member in series for run in member.runs)
    if not keys or not known:
        return None
    figure = _figure(_WIDTH, 0.7 + 2.3 * len(keys))
    axes = figure.subplots(len(keys), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for ax, key in zip(axes, keys):
        _draw_accuracy(ax, series, key, x)
        ax.set_ylabel(_YLABEL[key])
        ax.label_outer()
    _legend(figure, [_key(member) for member in series])
    return Drawn(f"accuracy-{x.slug}", title, caption, figure)


def _draw_accuracy(ax: "Axes", series: Sequence[Series], key: str, x: _Along, **style: Any) -> None:
    """One kind of accuracy of all series."""
    few = sum(len(member.runs) for member in series) <= _BANDS_UP_TO
    for member in series:
        look = {"color": member.color, "linestyle": member.dash, "marker": member.marker} | style
        for index, run in enumerate(member.runs):
            repeated = {"linewidth": 0.9, "marker": ""} if index else {}
            _curve(ax, run, key, x, look | repeated, band=few and key == _PERSONAL)
    if x.log:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        ax.minorticks_off()
    ax.set_xlabel(x.label)


def _curve(ax: "Axes", run: RunRecord, key: str, x: _Along, look: dict[str, Any], *, band: bool) -> None:
    """One run's accuracy, with the range of its clients where that is wanted."""
    values = 100 * column(run, key)
    along = x.values(run)
    if x.log and not (along > 0).any():
        _level(ax, values, look)
        return
    seen = np.isfinite(values) & np.isfinite(along) & ((along > 0) | (not x.log))
    ax.plot(along[seen], values[seen], markevery=(0.0, 0.15) if seen.sum() > 8 else None, **look)
    if band:
        low, high = (100 * column(run, f"personal_accuracy_{end}")[seen] for end in ("p10", "p90"))
        ax.fill_between(along[seen], low, high, color=look["color"], alpha=0.13, linewidth=0)


def _level(ax: "Axes", values: np.ndarray, look: dict[str, Any]) -> None:
    """The last accuracy of a run that sent nothing: it has no place on a log axis."""
    values = values[np.isfinite(values)]
    if values.size:
        ax.axhline(values[-1], color=look["color"], linestyle=look["linestyle"], linewidth=1.2)


def _spread(member: Series) -> np.ndarray:
    """The clients of all seeds together, ascending."""
    return np.sort(np.concatenate([client_accuracy(run) for run in member.runs]))


def _traffic(member: Series) -> tuple[float, float] | None:
    """MB per client and round, up and down, mean over seeds, or None."""
    pairs = [
        (up, down)
        for run in member.runs
        if (up := bytes_per_client_round(run, "up")) is not None
        and (down := bytes_per_client_round(run, "down")) is not None
    ]
    if not pairs:
        return None
    up, down = np.mean(pairs, 0) / MEGABYTE
    return float(up), float(down)


def _have(series: Sequence[Series], key: str) -> bool:
    return any(np.isfinite(column(run, key)).any() for member in series for run in member.runs)


def _figure(width: float, height: float) -> "Figure":
    return _figure_class()(figsize=(width, height), layout="constrained")


@cache
def _figure_class() -> type["Figure"]:
    """A figure that a notebook shows even where pyplot was never imported."""
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:
            buffer = BytesIO()
            self.savefig(buffer, format="png", dpi=120)
            return buffer.getvalue()

    return NotebookFigure


def _line(color: str, dash: Any, marker: str = "") -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linestyle=dash, marker=marker)


def _key(member: Series) -> tuple[Any, str]:
    """A series' entry in the legend."""
    seeds = f" ({len(member.runs)} seeds)" if len(member.runs) > 1 else ""
    return _line(member.color, member.dash, member.marker), _plain(member.label) + seeds


def _legend(figure: "Figure", entries: Sequence[tuple[Any, str]]) -> None:
    """A legend under the figure, in as many columns as its labels leave room for.

    The figure grows by the legend's height, so that the axes keep theirs.
    """
    longest = max(len(label) for _, label in entries)
    width, height = figure.get_size_inches()
    ncols = max(1, min(len(entries), int(width * 12 / (longest + 6))))
    figure.set_size_inches(width, height + 0.2 * -(-len(entries) // ncols))
    handles, labels = zip(*entries)
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, labelcolor=INK)


def _plain(text: str) -> str:
    """Text that matplotlib takes as it is: no mathematics, no label hidden by an underscore."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
