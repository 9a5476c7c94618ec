"""The interface of codecs, and their composition.

A :class:`Codec` packs a payload on the sender's side and unpacks it on the receiver's side. A codec handles
one array at a time. Lossy codecs change floats alone, and only arrays that become smaller; integers, bools,
and arrays that are already encoded or quantized stay as they are. Under a mask, only the sent elements count,
and the mask stays.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax

from fedjax_masks.communication.visitor import map_sent
from fedjax_masks.core.algorithm import PyTree

Init = Callable[[PyTree], PyTree]
Pack = Callable[[chex.PRNGKey | None, PyTree, PyTree], tuple[PyTree, PyTree]]
Unpack = Callable[[PyTree], PyTree]


class Codec(NamedTuple):
    """A transform of payloads, as pure functions.

    Attributes:
      init: ``(like) -> state`` of the sender; ``like`` is a payload whose leaves may be
        ``ShapeDtypeStruct``.
      pack: ``(key, payload, state) -> (packed, state)``; the key may be None where the codec
        is deterministic.
      unpack: ``(packed) -> payload``, with the structure, shapes and dtypes of the original payload.
    """

    init: Init
    pack: Pack
    unpack: Unpack


def chain(*codecs: Codec) -> Codec:
    """Packs with the first codec, packs the result with the second codec, and so on.

    >>> import jax.numpy as jnp
    >>> from fedjax_masks.communication.codecs import quantize, top_k
    >>> from fedjax_masks.communication.size import bits
    >>> codec = chain(top_k(0.25), quantize(8))
    >>> values = jnp.array([0.0, -3.0, 1.0, 0.5] * 50)
    >>> packed, residual = codec.pack(None, values, codec.init(values))
    >>> bits(packed)  # 50 values of 8 bits, 50 indices of 8 bits, one scale
    832
    """

    def init(like: PyTree) -> PyTree:
        states = []
        for codec in codecs:
            states.append(codec.init(like))
            like, _ = jax.eval_shape(codec.pack, jax.random.key(0), like, states[-1])
        return tuple(states)

    def pack(key: chex.PRNGKey | None, payload: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        states = []
        for i, codec in enumerate(codecs):
            codec_key = None if key is None else jax.random.fold_in(key, i)
            payload, codec_state = codec.pack(codec_key, payload, state[i])
            states.append(codec_state)
        return payload, tuple(states)

    def unpack(packed: PyTree) -> PyTree:
        for codec in reversed(codecs):
            packed = codec.unpack(packed)
        return packed

    return Codec(init, pack, unpack)


def identity() -> Codec:
    """Sends every payload as it is."""
    return Codec(lambda _: (), lambda key, payload, state: (payload, state), lambda packed: packed)


def map_floats(fn: Callable[[Any, Any], Any], payload: PyTree) -> PyTree:
    """Replaces every float array that may be sent by ``fn(array, mask)``.

    ``mask`` is bool, or True: the elements of the array that are sent. It broadcasts against the array.
    """
    return map_sent(lambda part: fn(part.leaf, part.sent_mask) if part.is_float else part.leaf, payload)


def array_keys(key: chex.PRNGKey | None) -> Iterator[Any]:
    """A new key for each array of a payload, or always None."""
    index = 0
    while True:
        yield None if key is None else jax.random.fold_in(key, index)
        index += 1
