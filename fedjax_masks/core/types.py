"""Names for trees of arrays."""

from typing import Any

PyTree = Any
"""Any nesting of containers that jax knows, with arrays as leaves."""

Params = Any
"""The parameters of a model: nested dicts of float32 arrays."""
