"""Parts of matplotlib for the figures, imported whatever ``$MPLBACKEND`` names.

Jupyter and Colab export ``MPLBACKEND`` to every shell command of a cell, where its backend often cannot be
imported; ``import matplotlib`` then fails. The figures have no window and need no backend. The pyplot of a
notebook keeps its backend. Functions import this module late, as the import takes a second.
"""

import contextlib
import os
import sys
from types import ModuleType


def _import() -> ModuleType:
    """Imports matplotlib, and sets the backend of the variable if it exists."""
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
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
