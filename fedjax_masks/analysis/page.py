"""The report's HTML: text around figures, with colours for light and dark."""

import json
import re
from collections.abc import Iterable, Sequence
from datetime import date
from html import escape
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from typing import Any

from fedjax_masks.analysis.figures import Drawn
from fedjax_masks.analysis.records import RunRecord, algorithm_name, flatten, setting
from fedjax_masks.analysis.style import BASELINE, GRID, INK, MUTED, PALETTE, Series, drawing
from fedjax_masks.analysis.table import NOT_APPLICABLE, Column, Row, columns, comparison_table, is_best

# Colour on paper: its name in the page, and the colour on a dark screen.
_COLORS = {
    INK: ("ink", "#e8ecf1"),
    MUTED: ("muted", "#9aa5b1"),
    GRID: ("line", "#2b333d"),
    BASELINE: ("base", "#b3bcc6"),
} | {
    color: (f"c{index}", dark)
    for index, (color, dark) in enumerate(
        zip(PALETTE, ("#4aa8e8", "#ff8b4d", "#2fc796", "#e6a3c6", "#f2b73f", "#9bd4f7"))
    )
}
_FACTS = (
    ("model {}", "model.name"),
    ("partition {}", "data.partition"),
    ("{} clients", "data.clients"),
    ("{} per round", "cohort"),
)

_STYLE = """
:root{color-scheme:light dark;--page:#fff;--soft:#f5f7f9;LIGHT}
@media (prefers-color-scheme:dark){:root{--page:#12161b;--soft:#1a2027;DARK}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:40px 28px 56px}
h1{font-size:1.85rem;line-height:1.2;margin:0 0 .4rem;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:1.05rem;line-height:1.3;margin:0 0 .35rem}
p{margin:0}
.facts{color:var(--muted);margin-bottom:1.9rem;overflow-wrap:anywhere}
.note,figcaption,footer{color:var(--muted);font-size:.86rem;line-height:1.5}
.note{margin:.6rem 0 2.4rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.5rem .6rem;text-align:right;border-bottom:1px solid var(--line);vertical-align:baseline}
thead th{color:var(--muted);font-weight:500;font-size:.8rem;line-height:1.3;vertical-align:bottom}
thead th{border-bottom-color:var(--muted)}
th:first-child,td:first-child{text-align:left;padding-left:0}
tbody th{font-weight:600;min-width:12rem;overflow-wrap:anywhere}
tbody th small{display:block;font-weight:400;color:var(--muted);font-size:.8rem}
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.45em}
td.best{font-weight:700}
td.none{color:var(--muted)}
.pair{white-space:nowrap}
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:2.6rem 2.4rem;margin-bottom:2.6rem}
figure{margin:0;min-width:0}
.grid:has(#mask-density) #client-spread{grid-row:span 2}
figure svg{display:block;width:100%;height:auto;overflow:visible;margin:.7rem 0 .6rem}
figure svg text{font-family:inherit!important}
details{border-top:1px solid var(--line);padding:.9rem 0}
summary{cursor:pointer;font-weight:600}
.scroll{overflow-x:auto;margin-top:.8rem}
.keys{font-size:.84rem}
.keys th,.keys td{text-align:left;font-weight:400;padding:.28rem .9rem .28rem 0;overflow-wrap:anywhere}
.keys td{min-width:7rem;max-width:26rem}
.keys th:first-child{color:var(--muted);white-space:nowrap;overflow-wrap:normal}
.keys thead th{font-weight:600;color:var(--ink)}
.keys tr.differs{background:var(--soft)}
.keys tr.differs th:first-child{color:var(--ink);font-weight:600}
footer{border-top:1px solid var(--line);padding-top:1rem}
@media (max-width:900px){.grid{grid-template-columns:minmax(0,1fr)}}
@media (max-width:820px){
 main{padding:24px 16px 40px}
 h1{font-size:1.4rem}
 .runs thead{display:none}
 .runs,.runs tbody,.runs tr,.runs th,.runs td{display:block;width:100%}
 .runs tr{padding:.8rem 0;border-bottom:1px solid var(--line)}
 .runs th,.runs td{border:0;padding:.14rem 0;text-align:left}
 .runs th{padding-bottom:.35rem;font-size:1.02rem}
 .runs td{font-size:.9rem;display:flex;justify-content:space-between;gap:1rem}
 .runs td::before{content:attr(data-label);color:var(--muted);font-weight:400}
 .runs td.none{display:none}
}
@media print{main{max-width:none;padding:0}figure,tr{break-inside:avoid}}
"""

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
{table}
<p class="note">{note}</p>
<div class="grid">
{figures}
</div>
{configuration}
<footer>{footer}</footer>
</main>
</body>
</html>
"""


def render(runs: Sequence[RunRecord], series: Sequence[Series], drawn: Sequence[Drawn]) -> str:
    """The whole page.

    Args:
      runs: The runs.
      series: The same runs, grouped.
      drawn: The figures.

    Returns:
      HTML that refers to nothing outside itself.
    """
    rows = comparison_table(runs)
    colors = {run.name: member.color for member in series for run in member.runs}
    return _PAGE.format(
        title=escape(_title(runs)),
        style=_style(),
        facts=escape(_facts(runs)),
        table=_table(rows, colors),
        note=escape(_note(rows)),
        figures="\n".join(map(_figure, drawn)),
        configuration=_configuration(runs),
        footer=escape(f"Written by fedjax_masks {_version()} on {date.today().isoformat()}."),
    )


def _title(runs: Sequence[RunRecord]) -> str:
    """The algorithms and the data, as far as there are few of them."""
    names = list(dict.fromkeys(map(algorithm_name, runs)))
    data = list(dict.fromkeys(str(setting(run, "data", "name")) for run in runs))
    what = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    what = what if len(names) <= 6 else f"{len(names)} algorithms"
    return f"{what} on {data[0] if len(data) == 1 else f'{len(data)} data sets'}"


def _facts(runs: Sequence[RunRecord]) -> str:
    """What all runs share."""
    facts = [f"{len(runs)} run" + "s" * (len(runs) > 1)]
    for text, key in _FACTS:
        values = {_json(flatten(run.config).get(key)) for run in runs}
        if len(values) == 1 and values != {"null"}:
            facts.append(text.format(values.pop()))
    return " · ".join(facts)


def _note(rows: Sequence[Row]) -> str:
    """How to read the table."""
    parts = ["Accuracies at the last evaluation; in brackets the 10th and 90th percentile of the clients."]
    if any(row["mb_total"] is not None for row in rows):
        parts.append("1 MB = 1e6 bytes; per client and round is the mean over all rounds.")
    if any(row["mb_setup"] is not None for row in rows):
        parts.append(
            "Setup is what every device gets once, before the first round; it is in no other column."
        )
    if any(row["ratio"] is not None for row in rows):
        parts.append("FedAvg's bytes: per client and round, both directions, on the same data.")
    if len({row["data"] for row in rows}) > 1:
        parts.append("The runs are on different data: compare with care.")
    elif len(rows) > 1:
        parts.append("Bold: the best of its column.")
    return " ".join(parts)


def _table(rows: Sequence[Row], colors: dict[str, str]) -> str:
    """One row per run; on a narrow screen each row becomes a card."""
    shown = [column for column in columns(rows) if column.needs not in ("model", "data", "seed")]
    head = "".join(f'<th scope="col">{escape(column.title)}</th>' for column in shown)
    body = []
    for row in rows:
        cells = "".join(_cell(column, row, rows) for column in shown)
        under = " · ".join(str(row[key]) for key in ("model", "data") if row[key] is not None)
        name = row["run"] if row["seed"] is None else f"{row['run']} · seed {row['seed']}"
        dot = f'<span class="dot" style="background:{_variable(colors[row["run"]])}"></span>'
        heading = f'<th scope="row">{dot}{escape(row["algorithm"])}{_small(name)}{_small(under)}</th>'
        body.append(f"<tr>{heading}{cells}</tr>")
    lines = "\n".join(body)
    return (
        f'<div class="scroll"><table class="runs"><thead><tr><th scope="col">run</th>{head}</tr></thead>\n'
        f"<tbody>\n{lines}\n</tbody></table></div>"
    )


def _cell(column: Column, row: Row, rows: Sequence[Row]) -> str:
    kind = "none" if row[column.needs] is None else "best" if is_best(column, row, rows) else "plain"
    text = f'<span class="pair">{escape(column.text(row))}</span>'
    return f'<td class="{kind}" data-label="{escape(column.title)}">{text}</td>'


def _small(text: str) -> str:
    return f"<small>{escape(text)}</small>" if text else ""


def _figure(item: Drawn) -> str:
    return (
        f'<figure id="{item.slug}"><h2>{escape(item.title)}</h2>\n{_svg(item)}\n'
        f"<figcaption>{escape(item.caption)}</figcaption></figure>"
    )


def _svg(item: Drawn) -> str:
    """A figure as SVG inside the page: no references outward, ids of its own, colours by name."""
    buffer = StringIO()
    with drawing():
        item.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{item.slug}-", text)
    text = re.sub("#[0-9a-f]{6}", lambda found: _variable(found[0]), text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(item.title)}"', 1)


def _variable(color: str) -> str:
    """A colour of the palette as the page's variable of the same meaning."""
    return f"var(--{_COLORS[color][0]})" if color in _COLORS else color


def _style() -> str:
    light = ";".join(f"--{name}:{color}" for color, (name, _) in _COLORS.items())
    dark = ";".join(f"--{name}:{color}" for name, color in _COLORS.values())
    return _STYLE.replace("LIGHT", light).replace("DARK", dark)


def _configuration(runs: Sequence[RunRecord]) -> str:
    """Every key of every run's configuration; first those in which the runs differ."""
    flats = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    differing = [key for key in keys if len({_json(flat.get(key)) for flat in flats}) > 1]
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
    """A collapsed table of keys by runs."""
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
        f"<td>{escape(_json(flat[key]) if key in flat else NOT_APPLICABLE)}</td>" for flat in flats
    )
    mark = ' class="differs"' if differs else ""
    return f'<tr{mark}><th scope="row">{escape(key)}</th>{cells}</tr>'


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _version() -> str:
    try:
        return version("fedjax_masks")
    except PackageNotFoundError:
        return "(from its source tree)"
