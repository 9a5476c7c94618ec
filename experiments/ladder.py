"""Gaps in accuracy between variants of a system and a rival, by rung: a table and a figure.

A rung is a size of net, data and rounds together; files of lines of ``collect.py`` hold its runs. Gaps are
paired by seed, in percentage points:

    python experiments/ladder.py --ours fedmask fedmask-keep-scores --rival local --bytes-of fedavg \
        --out FIGURE.png x1=RESULTS.jsonl x2=RESULTS.jsonl

The table has a row per data set, rung and variant, with the 95 % confidence interval of the mean gap and the
statement that it supports. The figure has a panel per data set and a line per variant.
"""

import argparse
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import by_setting, markdown, read_lines, saved_figure, setting

from fedjax_masks.analysis.plotting import Axes
from fedjax_masks.analysis.style import BASELINE, PALETTE
from fedjax_masks.claims.result_files import gaps
from fedjax_masks.core.intervals import half_width, interval

Rungs = dict[str, list[dict[str, Any]]]


class Point(NamedTuple):
    """The gap of one variant on one rung.

    Attributes:
      data: The data set.
      rung: The rung's label.
      variant: The setting of the variant.
      gaps: The variant's accuracy minus the rival's, in points, one for each seed that both have.
      share: The variant's bytes divided by the baseline's, or None.
    """

    data: str
    rung: str
    variant: str
    gaps: list[float]
    share: float | None


def statement(values: Sequence[float], margin: float = 0.0) -> str:
    """The order that the whole interval of the gaps supports; ``margin``: a loss that counts as none."""
    mean, half = statistics.fmean(values), half_width(values)
    if np.isnan(half):
        return "one seed shows no order"
    if mean > half:
        return "above"
    if margin and mean - half >= -margin:
        return f"within {margin:g}"
    return "below" if mean < -half else "no difference shown"


def read_rungs(arguments: Sequence[str]) -> Rungs:
    """Lines by the rung's label, from arguments ``LABEL=FILE``.

    Raises:
      ValueError: An argument has no label, or its file has no lines.
    """
    rungs: Rungs = {}
    for argument in arguments:
        label, _, file = argument.partition("=")
        lines = read_lines(Path(file)) if file else []
        if not lines:
            raise ValueError(f"rung={argument!r}: must be LABEL=FILE, with a file of results")
        rungs.setdefault(label, []).extend(lines)
    return rungs


def points(rungs: Rungs, ours: Sequence[str], rival: str, key: str, baseline: str | None) -> list[Point]:
    """The gaps of all variants on all rungs; a rung without a variant or the rival has none of it.

    Bytes are divided by those of the setting ``baseline``; ``key`` is that of an accuracy, a share.
    """
    names = dict.fromkeys(line["data"]["name"] for lines in rungs.values() for line in lines)
    ladder = []
    for data, (rung, runs), variant in itertools.product(names, rungs.items(), ours):
        lines = [line for line in runs if line["data"]["name"] == data and line[key] is not None]
        values = gaps(lines, lambda line: 100 * line[key], setting, variant, rival)
        if values:
            sizes = [_mean_bytes(lines, name) for name in (variant, baseline)]
            share = sizes[0] / sizes[1] if sizes[1] else None
            ladder.append(Point(data, rung, variant, values, share))
    return ladder


def _mean_bytes(lines: Sequence[dict[str, Any]], name: str | None) -> float:
    runs = by_setting(lines).get(name or "", [])
    return sum(run["bytes_up_total"] + run["bytes_down_total"] for run in runs) / max(1, len(runs))


def table(ladder: Sequence[Point], rival: str, margin: float = 0.0) -> str:
    """A table in Markdown of all gaps; without a baseline, it has no bytes."""
    bytes_heading = ["bytes ÷ baseline's"] if any(point.share is not None for point in ladder) else []
    headings = ["data", "rung", "variant", f"minus {rival}, points", "order", *bytes_heading, "seeds"]
    rows = []
    for data, rung, variant, values, share in ladder:
        shares = ["n/a" if share is None else f"{share:.4f}"] if bytes_heading else []
        cells = interval(values), statement(values, margin), *shares
        rows.append((data, rung, variant, *cells, str(len(values))))
    return markdown(headings, rows)


def draw(ax: Axes, ladder: Sequence[Point], rungs: Sequence[str], variants: Sequence[str]) -> None:
    """Draws a line with intervals per variant, side by side on each rung, of one data set."""
    ax.axhline(0, color=BASELINE)
    for index, variant in enumerate(variants):
        mine = [point for point in ladder if point.variant == variant]
        places = [rungs.index(p.rung) + 0.12 * (index - (len(variants) - 1) / 2) for p in mine]
        means = [statistics.fmean(point.gaps) for point in mine]
        halves = np.nan_to_num([half_width(point.gaps) for point in mine])
        turn, place = divmod(index, len(PALETTE))
        style = {"color": PALETTE[place], "marker": "osD^"[turn % 4]}
        ax.errorbar(places, means, yerr=halves, **style, capsize=2, label=variant)
    ax.set_xticks(range(len(rungs)), list(rungs))


def save_figure(ladder: Sequence[Point], rungs: Sequence[str], variants: Sequence[str], out: Path) -> None:
    """Draws one panel per data set into a file."""
    names = list(dict.fromkeys(point.data for point in ladder))
    with saved_figure(out, 3.6 * len(names) + 0.6, 3.2) as figure:
        panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
        for ax, name in zip(panels, names):
            draw(ax, [point for point in ladder if point.data == name], rungs, variants)
            ax.set_title(name)
        figure.supylabel("gap in accuracy, points, 95 % CI", fontsize="medium")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, prints the table, and draws the figure."""
    parser = argparse.ArgumentParser("ladder.py", description="Gaps by rung.", epilog=__doc__)
    parser.add_argument("--ours", nargs="+", required=True, help="settings of the variants")
    parser.add_argument("--rival", required=True, help="the setting that is subtracted")
    parser.add_argument("--key", default="last_personal_accuracy_mean", help="key of the accuracy")
    parser.add_argument("--bytes-of", help="the setting whose bytes the variants' are divided by")
    parser.add_argument("--margin", type=float, default=0.0, help="a loss in points that counts as none")
    parser.add_argument("--out", type=Path, help="file of the figure")
    parser.add_argument("rungs", nargs="+", metavar="LABEL=FILE")
    args = parser.parse_args(arguments)
    rungs = read_rungs(args.rungs)
    ladder = points(rungs, args.ours, args.rival, args.key, args.bytes_of)
    print(table(ladder, args.rival, args.margin))
    if args.out:
        save_figure(ladder, list(rungs), args.ours, args.out)


if __name__ == "__main__":
    main()
