"""The parts of matplotlib that figures are made of, imported whatever ``$MPLBACKEND`` names.

Jupyter and Colab export ``MPLBACKEND`` to every shell command of a cell, where its backend often cannot be
imported; ``import matplotlib`` then fails. No figure here has a window, so none needs a backend. A notebook's
own backend stays chosen for its pyplot. Imported late, by functions: it takes a second.
"""

import contextlib
import os
import sys
from typing import Any


def _import() -> Any:
    """Imports matplotlib, and takes over the variable's backend where there is such a one."""
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    chosen = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if chosen is not None:
            os.environ["MPLBACKEND"] = chosen
    if chosen:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = chosen
    return matplotlib


rc_context = _import().rc_context

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.collections import PolyCollection  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator  # noqa: E402
from matplotlib.transforms import ScaledTranslation  # noqa: E402

__all__ = [
    "Axes",
    "EngFormatter",
    "Figure",
    "Line2D",
    "LogLocator",
    "MaxNLocator",
    "PolyCollection",
    "ScaledTranslation",
    "rc_context",
]
