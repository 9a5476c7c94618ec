"""Brings docstrings to Markdown: doctests become blocks of code, roles become plain names."""

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"(?:^|(?<=\n))([ ]*)>>> .*?(?=\n[ ]*\n|\Z)", re.DOTALL)
_ROLE = re.compile(r":(?:class|data|func|mod):`~?([^`]+)`")


class Markdown(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = _ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = _DOCTEST.sub(r"\1```python\n\g<0>\n\1```", text)
