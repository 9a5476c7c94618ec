"""The notation of codecs; :mod:`fedjax_masks.communication.codecs` makes them."""

from collections.abc import Mapping
from types import MappingProxyType

CODECS: Mapping[str, str] = MappingProxyType(
    {
        "top_k:SHARE": "the largest values of every array, the rest later",
        "top_k:SHARE:forget": "without error feedback",
        "quantize:BITS": "rounded to so many bits",
        "quantize:BITS:stochastic": "without bias",
        "entropy": "masks entropy-coded, without loss",
    }
)
"""The notation of codecs, and their meaning."""
