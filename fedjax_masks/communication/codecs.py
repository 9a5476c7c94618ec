"""Codecs by name: quantization, sparsification, noise and entropy coding.

Codecs compose with :func:`chain`, and :func:`fedjax_masks.transforms.compression.with_codecs` applies them to
any algorithm::

    with_codecs(fedavg(model, optimizer), up=chain(top_k(0.1), quantize(8)), down=quantize(8))
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from fedjax_masks.communication.catalog import CODECS
from fedjax_masks.communication.codec import Codec, chain, identity, map_floats
from fedjax_masks.communication.noise import clip, clip_and_noise, global_norm, kinds
from fedjax_masks.communication.payload import Encoded, replace_nodes
from fedjax_masks.communication.quantization import dequantize, quantize
from fedjax_masks.communication.sparsification import densify, sparsify, top_k
from fedjax_masks.communication.visitor import Part, map_sent
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.types import PyTree

__all__ = [
    "Codec",
    "chain",
    "clip",
    "clip_and_noise",
    "densify",
    "dequantize",
    "entropy",
    "global_norm",
    "identity",
    "kinds",
    "map_floats",
    "parse_codec",
    "quantize",
    "sparsify",
    "top_k",
]


class _Coded(Encoded):
    """A mask encoded by :func:`entropy`, and not by an algorithm itself."""

    __slots__ = ()


def entropy() -> Codec:
    """Entropy-codes every bool array without a mask: about ``n H(p)`` bits for a share ``p`` of ones.

    The codec is lossless; see :mod:`fedjax_masks.communication.entropy`.

    >>> import jax.numpy as jnp
    >>> from fedjax_masks.communication.size import bits
    >>> mask = jnp.arange(1000) < 10
    >>> packed, _ = entropy().pack(None, mask, ())
    >>> bits(mask), bits(packed) < 200
    (1000, True)
    """

    def pack_part(part: Part) -> PyTree:
        whole = part.role == "value" and part.mask is None and not part.is_coded
        return _Coded(part.leaf) if whole and part.dtype == bool else part.leaf

    return Codec(
        lambda _: (),
        lambda key, payload, state: (map_sent(pack_part, payload), state),
        lambda packed: replace_nodes(_Coded, lambda node: node.mask, packed),
    )


_FACTORIES: Mapping[str, Callable[..., Codec]] = MappingProxyType(
    {
        "top_k:SHARE": top_k,
        "top_k:SHARE:forget": partial(top_k, error_feedback=False),
        "quantize:BITS": quantize,
        "quantize:BITS:stochastic": partial(quantize, stochastic=True),
        "entropy": entropy,
    }
)


def parse_codec(text: str) -> Codec:
    """Makes a codec from text; of several codecs joined by ``+``, the first packs first.

    Raises:
      UserError: The text is none of :data:`CODECS`, or a number is out of range.

    >>> import jax.numpy as jnp
    >>> from fedjax_masks.communication.size import bits
    >>> codec = parse_codec("top_k:0.25+quantize:8")
    >>> bits(codec.pack(None, jnp.ones(200), codec.init(jnp.ones(200)))[0])
    832
    """
    return chain(*(_parse_one(part.strip(), text) for part in text.split("+")))


def _parse_one(part: str, text: str) -> Codec:
    name, *words = part.split(":")
    for usage in CODECS:
        kind, *parameters = usage.split(":")
        # The first parameter is a number; a second one is a word of the usage itself.
        if (kind, len(parameters), parameters[1:]) == (name, len(words), words[1:]):
            try:
                numbers = [int(word) if name == "quantize" else float(word) for word in words[:1]]
            except ValueError:
                break
            return _FACTORIES[usage](*numbers)
    raise UserError(
        f"wire={text}: must be one of {', '.join(CODECS)}, or several joined by +; {part!r} is none of them"
    )
