"""Hook of mkdocs that turns TeX into MathML, which browsers show without a script or a network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?:\((?P<inline>.*?)\\\)|\[(?P<block>.*?)\\\])</(?P=tag)>',
    re.DOTALL,
)


def on_page_content(content: str, **_: Any) -> str:
    """Replaces every formula of a page."""
    return _FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    block = match["block"] is not None
    tex = html.unescape(match["block"] if block else match["inline"]).strip()
    return convert(tex, display="block" if block else "inline")
