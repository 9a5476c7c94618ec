"""Style sheet of the page, with colors for light and dark screens."""

from fedjax_masks.analysis.style import BASELINE, FRONT, GRID, INK, MUTED, PALETTE

# By color on a light screen: the name of the variable, and the color on a dark screen.
_COLORS = {
    INK: ("ink", "#e8ecf1"),
    MUTED: ("muted", "#9aa5b1"),
    GRID: ("line", "#2b333d"),
    BASELINE: ("base", "#b3bcc6"),
    FRONT: ("front", "#4a545f"),
} | {
    color: (f"c{index}", dark)
    for index, (color, dark) in enumerate(
        zip(PALETTE, ("#4aa8e8", "#ff8b4d", "#2fc796", "#e6a3c6", "#f2b73f", "#9bd4f7"))
    )
}
_STYLE = """
:root{color-scheme:light dark;--page:#fff;--soft:#f5f7f9;LIGHT}
@media (prefers-color-scheme:dark){:root{--page:#12161b;--soft:#1a2027;DARK}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1256px;margin:0 auto;padding:40px 28px 56px}
h1{font-size:1.85rem;line-height:1.2;margin:0 0 .4rem;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:1.05rem;line-height:1.3;margin:0 0 .35rem}
p{margin:0}
.facts{color:var(--muted);margin-bottom:1.9rem;overflow-wrap:anywhere}
.note,figcaption,footer{color:var(--muted);font-size:.86rem;line-height:1.5}
.remark{margin:.6rem 0 0;max-width:60rem;font-weight:600;font-size:.92rem}
.note{margin:.6rem 0 2.4rem;max-width:60rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.5rem .6rem;text-align:right;border-bottom:1px solid var(--line);vertical-align:baseline}
thead th{color:var(--muted);font-weight:500;font-size:.8rem;line-height:1.3;vertical-align:bottom}
thead th{border-bottom-color:var(--muted)}
th:first-child,td:first-child{text-align:left;padding-left:0}
tbody th{font-weight:600;overflow-wrap:anywhere}
.runs:not(.cards) th:first-child{position:sticky;left:0;background:var(--page);z-index:1}
.runs{font-size:.86rem}
.runs th,.runs td{padding:.42rem .45rem}
.runs th:first-child{min-width:7rem;padding-left:0}
tbody th small{display:block;font-weight:400;color:var(--muted);font-size:.8rem}
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.45em}
td.best{font-weight:700}
td.none,td.missed{color:var(--muted)}
.pair{white-space:nowrap}
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:2.6rem 2.4rem;margin-bottom:2.6rem}
figure{margin:0;min-width:0}
figure svg{display:block;width:100%;height:auto;overflow:visible;margin:.7rem 0 .6rem}
figure svg text{font-family:inherit!important}
details{border-top:1px solid var(--line);padding:.9rem 0}
summary{cursor:pointer;font-weight:600}
.scroll{overflow-x:auto;margin-top:.8rem;
 background:linear-gradient(to left,var(--page) 40%,transparent) right/48px 100% no-repeat local,
 linear-gradient(to left,#8886,transparent) right/16px 100% no-repeat scroll}
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
 .cards thead{display:none}
 .cards,.cards tbody,.cards tr,.cards th,.cards td{display:block;width:100%}
 .cards tr{padding:.8rem 0;border-bottom:1px solid var(--line)}
 .cards th,.cards td{border:0;padding:.14rem 0;text-align:left}
 .cards th{padding-bottom:.35rem;font-size:1.02rem}
 .cards td{font-size:.9rem;display:flex;justify-content:space-between;gap:1rem}
 .cards td::before{content:attr(data-label);color:var(--muted);font-weight:400}
 .cards td.none{display:none}
 .runs:not(.cards) th:first-child{min-width:6.6rem;max-width:9rem}
}
@media print{main{max-width:none;padding:0}figure,tr{break-inside:avoid}}
"""


def variable(color: str) -> str:
    """The variable of the page for a color of the palette; any other color stays as it is."""
    return f"var(--{_COLORS[color][0]})" if color in _COLORS else color


def style_sheet() -> str:
    """The style sheet."""
    light = ";".join(f"--{name}:{color}" for color, (name, _) in _COLORS.items())
    dark = ";".join(f"--{name}:{color}" for name, color in _COLORS.values())
    return _STYLE.replace("LIGHT", light).replace("DARK", dark)
