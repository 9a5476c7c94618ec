"""Figures of accuracy against cost."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fedjax_masks.analysis import marks
from fedjax_masks.analysis.canvas import WIDTH, Plot, keys_of, legend, line, log_axis, new_figure, plain
from fedjax_masks.analysis.curves import (
    ACCURACIES,
    BYTES,
    COSTS,
    GLOBAL,
    PERSONAL,
    ROUNDS,
    Cost,
    Curve,
    have,
    mean_curve,
)
from fedjax_masks.analysis.records import RunRecord, column
from fedjax_masks.analysis.setup import counts_setup, setup_received
from fedjax_masks.analysis.style import FRONT, INK, Series, by_data, drawing, group

if TYPE_CHECKING:
    from fedjax_masks.analysis.plotting import Axes, Figure

_BANDS_UP_TO = 4
_CAPTIONS = {
    "bytes": "Bytes of all rounds so far, up and down, of all clients; points further left are cheaper.",
    "rounds": (
        "Personal: each client's own model on its own test data, mean over the clients that have trained by "
        "then. Global: the global model on the global test set."
    ),
    "flops": "FLOPs of all clients so far; the server's FLOPs are not included.",
    "seconds": (
        "The simulated time of all rounds so far: a round lasts until its slowest client has answered, "
        "or until the deadline."
    ),
    "joules": "The energy that all clients have spent so far, computing, sending and receiving.",
}


class HasRecords(Protocol):
    """A run: an object with records; ``name``, ``config`` and ``summary`` are optional."""

    @property
    def records(self) -> Sequence[Mapping[str, Any]]: ...


def plot_run(*runs: HasRecords) -> "Figure":
    """Draws accuracy against rounds and against bytes.

    Args:
      *runs: The runs to compare, such as :class:`RunRecord` or the result of ``fm.simulate``.

    Returns:
      A figure of two panels, which a notebook shows; personal accuracy is solid, global accuracy dotted.
      Bands are 95 % confidence intervals over seeds. With a few runs of one seed each, bands are the range
      from the 10th to the 90th percentile of the clients instead.
    """
    with drawing():
        series = group([_as_record(run) for run in runs])
        figure = new_figure(8.4, 3.0)
        axes = figure.subplots(1, 2, sharey=True)
        for ax, cost in zip(axes, (ROUNDS, BYTES)):
            _draw(ax, series, PERSONAL, cost)
            _draw(ax, series, GLOBAL, cost, linestyle=":", marker="")
            _draw_clients(ax, series, cost)
            _finish(ax, cost, series)
        setup = sum(marks.setup_end(axes[1], series, key) for key in ACCURACIES) > 0
        axes[0].set_ylabel("accuracy (%)")
        keys = keys_of(series) if len(series) > 1 else []
        kinds = [(line(INK, "-"), "personal"), (line(INK, ":"), "global")]
        entries = keys + [kind for kind, key in zip(kinds, ACCURACIES) if have(series, key)]
        legend(figure, entries + [marks.setup_key()] * setup)
        return figure


def _as_record(run: HasRecords) -> RunRecord:
    """The record of a run in memory, which may lack a name and a configuration."""
    name, config = getattr(run, "name", "run"), getattr(run, "config", None)
    records = [dict(record) for record in run.records]
    return RunRecord(name, dict(config or {}), records, dict(getattr(run, "summary", None) or {}))


def accuracy_figures(series: Sequence[Series]) -> list[Plot]:
    """Figures of accuracy against each cost that some run counted, bytes first."""
    figures = [*(_against(series, cost) for cost in COSTS), seed_bands(series)]
    return [figure for figure in figures if figure is not None]


def seed_bands(series: Sequence[Series]) -> Plot | None:
    """Small panels, one per series, with intervals over seeds; None where one panel holds all series."""
    key = next((key for key in ACCURACIES if have(series, key)), None)
    if key is None or len(series) <= _BANDS_UP_TO or all(len(member.runs) == 1 for member in series):
        return None
    rows = -(-len(series) // 3)
    figure = new_figure(WIDTH, 0.5 + 1.25 * rows)
    axes = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, member in zip(axes, series):
        for other in series:
            curve = mean_curve(other, key, ROUNDS)
            ax.plot(curve.rounds, 100 * curve.accuracy, color=FRONT, linewidth=0.8)
        _draw(ax, [member._replace(marker="", dash="-")], key, ROUNDS)
        ax.set_title(plain(member.label))
        ax.tick_params(labelbottom=True)
    for ax in axes[len(series) :]:
        ax.set_visible(False)
    _bound(axes[0], series, [key])
    _finish(axes[0], ROUNDS, series)
    axes[0].set_xlabel("")
    figure.supxlabel("rounds", fontsize="medium")
    figure.supylabel(f"{ACCURACIES[key]} (%)", fontsize="medium")
    caption = (
        "Each panel shows one series, with the others in gray. Line: mean over seeds; band: its 95 % "
        "confidence interval (Student's t), which is wide where seeds are few."
    )
    return Plot("seed-bands", "Confidence intervals of the means", caption, figure)


def _against(series: Sequence[Series], cost: Cost) -> Plot | None:
    """A figure with one panel for each kind of accuracy that some run has; None without any."""
    keys = [key for key in ACCURACIES if any(mean_curve(member, key, cost).cost.size for member in series)]
    if not keys:
        return None
    figure = new_figure(WIDTH, 0.7 + 2.5 * len(keys))
    axes = figure.subplots(len(keys), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    caption = _CAPTIONS[cost.slug]
    bands = len(series) <= _BANDS_UP_TO
    if cost.unit and any(_spends_nothing(mean_curve(m, key, cost)) for m in series for key in keys):
        caption += " Level lines: the last accuracies of series that spent nothing."
    if any(len(member.runs) > 1 for member in series):
        mark = "bands" if bands else "whiskers at their ends"
        caption += f" Lines: means over seeds; {mark}: 95 % confidence intervals."
    clients = setup_marks = False
    for ax, key in zip(axes, keys):
        _draw(ax, series, key, cost, bands=bands)
        if key == PERSONAL and (clients := _draw_clients(ax, series, cost)):
            caption += " Bands: 10th to 90th percentile of these clients."
        if cost is BYTES:
            setup_marks |= marks.setup_end(ax, series, key)
            caption += "".join(marks.front(ax, members, key, name) for name, members in by_data(series))
        ax.set_ylabel(f"{ACCURACIES[key]} (%)")
    _finish(axes[-1], cost, series)
    for ax in axes[:-1]:
        ax.tick_params(labelbottom=False)
    if not clients:
        _bound(axes[0], series, keys)
    if cost is BYTES and (setup := setup_received(series)):
        included = counts_setup(series)
        caption += f" The lines {'include' if included else 'exclude'} {setup}."
        if not included:
            caption += " Stars mark the ends with these bytes; --setup-bytes counts them everywhere."
    legend(figure, keys_of(series) + [marks.setup_key()] * setup_marks)
    return Plot(f"accuracy-{cost.slug}", f"Accuracy against {cost.title}", caption, figure)


def _draw(
    ax: "Axes", series: Sequence[Series], key: str, cost: Cost, *, bands: bool = True, **style: Any
) -> None:
    """Draws one kind of accuracy of all series, with intervals as bands or as whiskers at the ends."""
    for place, member in enumerate(series):
        line_style = {"color": member.color, "linestyle": member.dash, "marker": member.marker} | style
        curve = mean_curve(member, key, cost)
        if not curve.cost.size:
            continue
        if cost.unit and _spends_nothing(curve):
            marks.level(ax, curve, line_style)
            continue
        # A logarithmic axis has no place for a cost of 0.
        visible = curve.cost > 0 if cost.unit else np.ones(curve.cost.shape, bool)
        x, mean, half = curve.cost[visible], curve.accuracy[visible], curve.half_width[visible]
        ax.plot(x, 100 * mean, markevery=(0.0, 0.15) if visible.sum() > 8 else None, **line_style)
        if bands:
            marks.band(ax, x, mean - half, mean + half, member.color)
        else:
            # At the same round, the whiskers of several series would cover one another.
            offset = 0.0 if cost.unit else 3.0 * (place - (len(series) - 1) / 2)
            marks.whisker(ax, x[-1], mean[-1], half[-1], member.color, offset)


def _draw_clients(ax: "Axes", series: Sequence[Series], cost: Cost) -> bool:
    """Draws the range of each run's clients where there are a few runs of one seed each.

    Returns:
      Whether it drew ranges.
    """
    if len(series) > _BANDS_UP_TO or any(len(member.runs) > 1 for member in series):
        return False
    for member in series:
        run = member.runs[0]
        x = cost.values(run)
        low, high = (column(run, f"personal_accuracy_{end}_seen") for end in ("p10", "p90"))
        visible = np.isfinite(x) & ((x > 0) | (not cost.unit))
        marks.band(ax, x[visible], low[visible], high[visible], member.color)
    return True


def _spends_nothing(curve: Curve) -> bool:
    return curve.cost.size > 0 and not (curve.cost > 0).any()


def _bound(ax: "Axes", series: Sequence[Series], keys: Sequence[str]) -> None:
    """Sets limits by the means and the last intervals; a wide first interval would squeeze the curves."""
    ends = []
    for curve in (mean_curve(member, key, ROUNDS) for member in series for key in keys):
        last = curve.accuracy[-1:] + np.outer((-1, 1), np.nan_to_num(curve.half_width[-1:])).ravel()
        ends.extend(np.clip(np.concatenate([curve.accuracy, last]), 0, 1))
    if ends:
        low, high = 100 * min(ends), 100 * max(ends)
        margin = max(2.0, 0.06 * (high - low))
        ax.set_ylim(max(low - margin, -2.0), min(high + margin, 102.0))


def _finish(ax: "Axes", cost: Cost, series: Sequence[Series]) -> None:
    """Sets the scale, ticks and label of the axis of costs."""
    from fedjax_masks.analysis.plotting import MaxNLocator

    if cost.unit:
        log_axis(ax, cost.unit)
    else:
        ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    setup = cost is BYTES and counts_setup(series)
    ax.set_xlabel(cost.label + ", setup included" * setup)
