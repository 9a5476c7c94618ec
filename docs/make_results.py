"""Makes the page of results: published figures beside ours, from the code and the committed files.

A hook of mkdocs, so that the site is never behind the results; ``python docs/make_results.py`` prints
the page.
"""

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
"""


def page(claims: Sequence[Claim]) -> str:
    """The page, in Markdown: a table for each system."""
    groups: dict[str, list[Claim]] = {claim.system: [] for claim in claims}
    for claim in claims:
        groups[claim.system].append(claim)
    return "\n".join([_PREFACE, *(_section(name, group) for name, group in groups.items())])


def _section(name: str, claims: Sequence[Claim]) -> str:
    rows = [_HEADINGS, ("---",) * len(_HEADINGS)]
    rows += [(c.claim, c.paper, c.ours or "n/a", c.label, _verdict(c), _source(c)) for c in claims]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"## {name}", "", *lines, ""])


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
