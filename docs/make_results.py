"""Makes the page of results: published figures beside ours, from the code and the committed files.

A hook of mkdocs, so that the site is never behind the results; ``python docs/make_results.py`` prints
the page.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedjax_masks.claims import all_claims
from fedjax_masks.claims.claim import LIVE, Claim

_EXPERIMENTS = Path(__file__).parents[1] / "experiments"
_HEADINGS = ("claim", "paper", "ours", "class", "verdict", "source")
_PREFACE = """# Results

Published figures beside ours, as `fedjax-masks claims` prints them. A figure of ours is *exact*
(counted), *measured* (a ratio of times on a named machine) or a *trend* (an order of accuracies, with
95 % confidence intervals over seeds). [Experiments](experiments.md) has the recipes and all tables.

![Personal accuracy and bytes of all algorithms](results/two_classes.png)

*The five systems and their baselines, two classes per client, three seeds; what the marks mean, and accuracy,
bytes and FLOPs as [tables](experiments.md#all-side-by-side).*
"""


def page(claims: Sequence[Claim]) -> str:
    """The page, in Markdown: a table for each system."""
    groups: dict[str, list[Claim]] = {claim.system: [] for claim in claims}
    for claim in claims:
        groups[claim.system].append(claim)
    return "\n".join([_PREFACE, *(_section(name, group) for name, group in groups.items()), _recipes()])


def _section(name: str, claims: Sequence[Claim]) -> str:
    rows = [(c.claim, c.paper, c.ours or "n/a", c.label, _verdict(c), _source(c)) for c in claims]
    return _table(name, _HEADINGS, rows)


def _recipes() -> str:
    """What recipes with results expect, beside what came out."""
    sys.path.insert(0, str(_EXPERIMENTS))
    from common import lines
    from expected import read_expected, results_of, row

    headings = ("recipe", "class", "what", "expected", "found", "")
    rows = []
    for recipe in sorted(_EXPERIMENTS.glob("*.toml")):
        if results_of(recipe).is_file():
            runs = lines(results_of(recipe))
            rows += [(recipe.stem, *row(one, runs)) for one in read_expected(recipe)]
    return _table("Recipes: expected and found", headings, rows)


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [headings, ("---",) * len(headings), *rows]
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in one) + " |" for one in cells]
    return "\n".join([f"## {title}", "", *text, ""])


def _verdict(claim: Claim) -> str:
    return f"{claim.verdict}: {claim.note}" if claim.note else claim.verdict


def _source(claim: Claim) -> str:
    """Where our figure comes from; a committed file as a link."""
    path, separator, rest = claim.source.removeprefix("experiments/").partition(", ")
    if claim.source == LIVE:
        return claim.source
    if not separator:
        return f"{claim.source}: `{claim.command}`"
    return f"[{Path(path).name}]({path}), {rest}: `{claim.command}`"


def on_files(files: Any, config: Any) -> Any:
    """Adds the page, the recipes, and the files and figures that both refer to."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "results.md", content=page(all_claims())))
    files.append(File.generated(config, "experiments.md", abs_src_path=str(_EXPERIMENTS / "README.md")))
    for path in sorted((_EXPERIMENTS / "results").iterdir()):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


if __name__ == "__main__":
    print(page(all_claims()))
