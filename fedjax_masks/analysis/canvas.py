"""Canvas of the figures: sizes, legends, text, ticks; needs no display and no pyplot."""

import contextlib
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedjax_masks.analysis.style import INK, Dash, Series
from fedjax_masks.core.errors import one_line
from fedjax_masks.core.messages import warn

if TYPE_CHECKING:
    from fedjax_masks.analysis.plotting import Axes, Figure, Line2D

WIDTH = 5.0
_DPI = 150


class Plot(NamedTuple):
    """A figure with its texts on the page.

    Attributes:
      slug: A short name, for file names and anchors.
      title: The heading.
      caption: An explanation of the figure.
      figure: The figure.
    """

    slug: str
    title: str
    caption: str
    figure: "Figure"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure.

    Args:
      width: The width in inches.
      height: The height in inches.
    """
    return _figure_class()(figsize=(width, height), layout="constrained")


@cache
def _figure_class() -> type["Figure"]:
    """A class of figures that a notebook shows even if pyplot was never imported."""
    from fedjax_masks.analysis.plotting import Figure

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:
            buffer = BytesIO()
            self.savefig(buffer, format="png", dpi=120)
            return buffer.getvalue()

    return NotebookFigure


def save_figure(draw: Callable[[], "Figure"], path: Path) -> None:
    """Draws a figure into a PNG file; a failure is a one-line warning.

    Args:
      draw: A function that makes the figure.
      path: The file; a missing folder is created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw().savefig(path, dpi=_DPI)
    except Exception as error:  # missing libraries, fonts and full disks raise errors of many types
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        warn(f"{path}: not drawn: {one_line(error)}; 'fedjax-masks report' draws it later")


def line(color: str, dash: Dash, marker: str = "") -> "Line2D":
    """A line for a legend."""
    from fedjax_masks.analysis.plotting import Line2D

    return Line2D([], [], color=color, linestyle=dash, marker=marker)


def keys_of(series: Sequence[Series]) -> list[tuple[Any, str]]:
    """The entries of the legend; they name the numbers of seeds where these differ."""
    differ = len({len(member.runs) for member in series}) > 1
    return [
        (
            line(member.color, member.dash, member.marker),
            plain(member.label) + (f" ({len(member.runs)} seeds)" if differ and len(member.runs) > 1 else ""),
        )
        for member in series
    ]


def legend(figure: "Figure", entries: Sequence[tuple[Any, str]]) -> None:
    """Puts a legend under the figure, in as many columns as fit.

    The figure grows by the height of the legend, so the axes keep their size.
    """
    longest = max(len(label) for _, label in entries)
    width, height = figure.get_size_inches()
    ncols = max(1, min(len(entries), int(width * 12 / (longest + 6))))
    figure.set_size_inches(width, height + 0.2 * -(-len(entries) // ncols))
    handles, labels = zip(*entries)
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, labelcolor=INK, handlelength=2.8)


def log_axis(ax: "Axes", unit: str) -> None:
    """Makes the x axis logarithmic, with a few ticks that have SI prefixes: ``10 MB``.

    Args:
      ax: The axes, after their data are drawn.
      unit: The unit after the prefix.
    """
    from fedjax_masks.analysis.plotting import EngFormatter, LogLocator

    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ratio = high / low
    subs = (1.0, 2.0, 5.0) if ratio < 30 else (1.0, 3.0) if ratio < 300 else (1.0,)
    ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    ax.xaxis.set_major_formatter((lambda value, _: f"{value:,.6g} s") if unit == "s" else EngFormatter(unit))
    ax.minorticks_off()


def plain(text: str) -> str:
    """Text that matplotlib prints unchanged: without mathematics, and with labels that begin with ``_``."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
