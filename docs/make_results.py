"""Makes the page of results: published figures beside ours, from the code and the result files.

MkDocs calls the hook of this file at each build, so the page agrees with the results;
``python docs/make_results.py`` prints the page.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedjax_masks.claims import all_claims, summary
from fedjax_masks.claims.claim import LIVE, Claim
from fedjax_masks.claims.table import TABLES

_ROOT = Path(__file__).parents[1]
_EXPERIMENTS = _ROOT / "experiments"
_RESULTS = (_EXPERIMENTS / "results", _ROOT / "fedjax_masks" / "claims" / "results")
_PROVENANCE = "provenance.json"
_PREFACE = """# Results

Published figures beside ours, as `fedjax-masks claims` prints them. A figure of ours is *exact*
(counted), *measured* (a ratio of times on a named machine) or a *trend* (an order of accuracies, with
95 % confidence intervals over seeds; the whole interval must be on the claimed side).
[Experiments](experiments.md) has the recipes and all tables.

Each row has the conditions of our figure: data set, network, clients, rounds, seeds and setting. A claim
has a row for each set of conditions. It is counted once: met if all its rows are, met in part if some are.

The figure beside ours is *published* in the paper, or in the *authors' code* and logs, or *derived here* by
us from a formula, from shapes or from a protocol. In the last case both sides are ours; such rows are
consistency checks, and stand apart at the end.

"""
_FIGURE = """
![Personal accuracy and bytes of all algorithms](results/two_classes.png)

*The five systems and their baselines, two classes per client, three seeds. The
[tables](experiments.md#all-side-by-side) explain the marks, and hold accuracy, bytes and FLOPs.*
"""


def page(claims: Sequence[Claim]) -> str:
    """The page in Markdown, with a table for each system."""
    groups: dict[str, list[Claim]] = {}
    for claim in claims:
        if claim.basis != "derived here":
            groups.setdefault(claim.system, []).append(claim)
    counts = "".join(f"- {part}\n" for part in summary(claims).split("; "))
    return "\n".join(
        [
            _PREFACE + counts + _FIGURE,
            *(_section(name, group) for name, group in groups.items()),
            _checks([claim for claim in claims if claim.basis == "derived here"]),
            _recipes(),
        ]
    )


def _section(name: str, claims: Sequence[Claim]) -> str:
    headings = ("claim", "basis", "paper or code", "conditions", "ours", "class", "verdict", "source")
    rows = [
        (c.claim, c.basis, c.paper, c.conditions, c.ours or "n/a", c.label, _verdict(c), _source(c))
        for c in claims
    ]
    return _table(name, headings, rows)


def _checks(claims: Sequence[Claim]) -> str:
    title, heading = TABLES["derived here"]
    headings = ("system", "claim", heading, "conditions", "ours", "class", "verdict", "source")
    rows = [
        (c.system, c.claim, c.paper, c.conditions, c.ours or "n/a", c.label, _verdict(c), _source(c))
        for c in claims
    ]
    return _table(title, headings, rows)


def _recipes() -> str:
    """The expectations of the recipes with results, beside the results."""
    sys.path.insert(0, str(_EXPERIMENTS))
    from common import read_lines
    from expected import read_expected, results_of, row

    headings = ("recipe", "class", "figure", "expected", "result", "")
    rows = []
    for recipe in sorted(_EXPERIMENTS.glob("*.toml")):
        if results_of(recipe).is_file():
            runs = read_lines(results_of(recipe))
            rows += [(recipe.stem, *row(expectation, runs)) for expectation in read_expected(recipe)]
    return _table("Recipes: expectations and results", headings, rows)


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = [headings, ("---",) * len(headings), *rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    return "\n".join([f"## {title}", "", *lines, ""])


def _verdict(claim: Claim) -> str:
    return f"{claim.verdict}: {claim.note}" if claim.note else claim.verdict


def _source(claim: Claim) -> str:
    """The origin of our figure; a result file is a link."""
    path, separator, rest = claim.source.partition(", ")
    if claim.source == LIVE:
        return claim.source
    if not separator:
        return f"{claim.source}: `{claim.command}`"
    name = Path(path).name
    return f"[{name}](results/{name}), {rest}: `{claim.command}`"


def on_files(files: Any, config: Any) -> Any:
    """Adds this page, the page of recipes, and the files and figures that both refer to."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "results.md", content=page(all_claims())))
    files.append(File.generated(config, "experiments.md", abs_src_path=str(_EXPERIMENTS / "README.md")))
    paths = {path.name: path for folder in _RESULTS for path in folder.iterdir() if path.name != _PROVENANCE}
    for name, path in sorted(paths.items()):
        files.append(File.generated(config, f"results/{name}", abs_src_path=str(path)))
    return files


if __name__ == "__main__":
    print(page(all_claims()))
