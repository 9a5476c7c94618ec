"""HTML of the report: texts and tables around figures."""

import re
from collections.abc import Iterable, Sequence
from datetime import date
from html import escape
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from typing import Any

from fedjax_masks.analysis.canvas import Plot
from fedjax_masks.analysis.facts import facts_of, title_of
from fedjax_masks.analysis.records import RunRecord, flatten
from fedjax_masks.analysis.style import Series, drawing
from fedjax_masks.analysis.stylesheet import style_sheet, variable
from fedjax_masks.analysis.table import Column, Row, Table, is_best
from fedjax_masks.analysis.wording import NOT_APPLICABLE, as_text

_CARDS_UP_TO = 5
_UNDER = ("seed", "data_seed", "model", "data")

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="facts">{facts}</p>
{summary}
{remarks}<p class="note">{note}</p>
<div class="grid">
{figures}
</div>
{tables}
{every_run}{configuration}
<footer>{footer}</footer>
</main>
</body>
</html>
"""


def render(
    series: Sequence[Series],
    summary: Table,
    tables: Sequence[Table],
    every_run: Table | None,
    plots: Sequence[Plot],
    remarks: Sequence[str] = (),
) -> str:
    """The whole page.

    Args:
      series: The series to compare.
      summary: The table above the figures.
      tables: The tables below the figures.
      every_run: The table of single runs, collapsed; None where each series has one seed.
      plots: The figures.
      remarks: Further remarks for the reader, one line each.

    Returns:
      HTML that refers to nothing outside itself.
    """
    runs = [run for member in series for run in member.runs]
    colors = {member.label: member.color for member in series}
    colors |= {run.name: member.color for member in series for run in member.runs}
    return _PAGE.format(
        title=escape(title_of(runs)),
        style=style_sheet(),
        facts=escape(facts_of(series)),
        summary=_table(summary, colors),
        remarks="".join(f'<p class="remark">{escape(remark)}</p>\n' for remark in summary.remarks),
        note=escape(" ".join([summary.note, *remarks])),
        figures="\n".join(map(_figure, plots)),
        tables="\n".join(_titled_table(table, colors) for table in tables),
        every_run="" if every_run is None else _collapsed(every_run, colors),
        configuration=_configuration(runs),
        footer=escape(f"Written by fedjax_masks {_version()} on {date.today().isoformat()}."),
    )


def _titled_table(table: Table, colors: dict[str, str]) -> str:
    return (
        f'<section id="{table.slug}"><h2>{escape(table.title)}</h2>\n{_table(table, colors)}\n'
        f'<p class="note">{escape(table.note)}</p></section>'
    )


def _collapsed(table: Table, colors: dict[str, str]) -> str:
    return f"<details><summary>{escape(table.title)}</summary>\n{_table(table, colors)}</details>\n"


def _table(table: Table, colors: dict[str, str]) -> str:
    """A table with one row per series; on a narrow screen, a few rows become cards and many rows scroll."""
    columns = [column for column in table.columns if not _is_redundant(column, table.rows)]
    head = "".join(f'<th scope="col">{escape(column.title)}</th>' for column in columns)
    body = []
    for row in table.rows:
        cells = "".join(_cell(column, row, table.rows) for column in columns)
        dot = f'<span class="dot" style="background:{variable(colors[row["label"]])}"></span>'
        heading = (
            f'<th scope="row">{dot}{escape(row["label"])}{"".join(map(_small, _under(row, table.rows)))}</th>'
        )
        body.append(f"<tr>{heading}{cells}</tr>")
    lines = "\n".join(body)
    kind = "runs cards" if len(table.rows) <= _CARDS_UP_TO else "runs"
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr><th scope="col"></th>{head}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def _is_redundant(column: Column, rows: Sequence[Row]) -> bool:
    """Whether a column repeats facts above the table or under the names of the rows."""
    equal = len({column.text(row) for row in rows}) == 1 < len(rows)
    is_comparison = "model" in rows[0]  # in a table of targets, rounds are a cost
    return column.needs in ("model", "data", "seed", "data_seed") or (
        column.needs == "rounds" and equal and is_comparison
    )


def _under(row: Row, rows: Sequence[Row]) -> list[str]:
    """Small lines under a row's name: the name of a single run, and the facts in which rows differ."""
    if "run" not in row:
        return []
    is_single = row.get("seeds", 1) == 1
    name = row["run"] if is_single and row["run"] != row["label"] else ""
    facts = {key: row[key] for key in _UNDER if row[key] is not None}
    if len(rows) > 1:
        facts = {key: value for key, value in facts.items() if len({other[key] for other in rows}) > 1}
    words = {"seed": "run seed", "data_seed": "data.seed"}
    seeds = [f"{word} {facts.pop(key)}" for key, word in words.items() if key in facts]
    return [" · ".join(filter(None, (name, *seeds))), " · ".join(facts.values())]


def _cell(column: Column, row: Row, rows: Sequence[Row]) -> str:
    text = column.text(row)
    if row[column.needs] is None:
        kind = "none" if text == NOT_APPLICABLE else "missed"
    else:
        kind = "best" if is_best(column, row, rows) else "plain"
    pair = f'<span class="pair">{escape(text)}</span>'
    return f'<td class="{kind}" data-label="{escape(column.title)}">{pair}</td>'


def _small(text: str) -> str:
    return f"<small>{escape(text)}</small>" if text else ""


def _figure(item: Plot) -> str:
    return (
        f'<figure id="{item.slug}"><h2>{escape(item.title)}</h2>\n{_svg(item)}\n'
        f"<figcaption>{escape(item.caption)}</figcaption></figure>"
    )


def _svg(item: Plot) -> str:
    """A figure as SVG for the page: without outside references, with unique ids and colors by name."""
    buffer = StringIO()
    with drawing():
        item.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{item.slug}-", text)
    text = re.sub("#[0-9a-f]{6}", lambda match: variable(match[0]), text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(item.title)}"', 1)


def _configuration(runs: Sequence[RunRecord]) -> str:
    """Tables of all keys of all configurations; keys in which the runs differ come first."""
    flats = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    differing = [key for key in keys if len({as_text(flat.get(key)) for flat in flats}) > 1]
    software = [key for key in keys if key.split(".")[0] in ("versions", "platform")]
    experiment = [key for key in keys if key not in software]
    return _section("Configuration", runs, flats, experiment, differing) + _section(
        "Versions and platform", runs, flats, software, differing
    )


def _section(
    title: str,
    runs: Sequence[RunRecord],
    flats: Sequence[dict[str, Any]],
    keys: Sequence[str],
    differing: Sequence[str],
) -> str:
    """A collapsed table with one row per key and one column per run."""
    if not keys:
        return ""
    head = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    ordered = sorted(keys, key=lambda key: key not in differing)
    body = "\n".join(_key_row(key, flats, key in differing) for key in ordered)
    return (
        f'<details><summary>{title}</summary><div class="scroll"><table class="keys">'
        f'<thead><tr><th scope="col">key</th>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div></details>\n"
    )


def _key_row(key: str, flats: Iterable[dict[str, Any]], differs: bool) -> str:
    cells = "".join(
        f"<td>{escape(as_text(flat[key]) if key in flat else NOT_APPLICABLE)}</td>" for flat in flats
    )
    mark = ' class="differs"' if differs else ""
    return f'<tr{mark}><th scope="row">{escape(key)}</th>{cells}</tr>'


def _version() -> str:
    try:
        return version("fedjax_masks")
    except PackageNotFoundError:
        return "(from its source tree)"
