"""The exact size of a payload in bits: a static part from shapes, and a traced part from masks and flags."""

import functools
import math

import jax
import jax.numpy as jnp

from fedjax_masks.communication import entropy
from fedjax_masks.communication.payload import Dialogue, Installed, nodes
from fedjax_masks.communication.visitor import Part, fold_sent
from fedjax_masks.core import trees
from fedjax_masks.core.algorithm import PyTree


def _parts(payload: PyTree) -> list[Part]:
    return fold_sent(lambda part: part, payload)


def _fixed_bits(part: Part) -> int:
    """The bits of an array that do not depend on its mask or its values."""
    if part.is_coded:
        return entropy.count_bits(part.size)
    return 0 if part.mask is not None else part.size * part.width


def _max_bits(part: Part) -> int:
    """The largest number of data-dependent bits."""
    if part.is_coded:
        varying = entropy.max_pattern_bits(part.size)
    else:
        varying = 0 if part.mask is None else part.size * part.width
    return varying + (0 if part.flag is None else _fixed_bits(part))


def _varying_bits(part: Part) -> tuple[jax.Array | int, int]:
    """The data-dependent bits, as a product of ``uint32[]`` and a Python int."""
    if part.is_coded:
        units, factor = entropy.pattern_bits(jnp.asarray(part.leaf)), 1
        if part.flag is not None:
            units += _fixed_bits(part)
    elif part.mask is not None:
        factor = part.size // max(1, math.prod(part.mask.shape)) * part.width
        units = jnp.sum(part.mask, dtype=jnp.uint32)
    else:
        units, factor = jnp.ones((), jnp.uint32), _fixed_bits(part)
    return (units if part.flag is None else jnp.where(part.flag, units, 0)), factor


def static_bits(payload: PyTree) -> int:
    """The bits that follow from shapes and dtypes alone.

    Args:
      payload: Any payload; leaves may be ``ShapeDtypeStruct`` or tracers.

    Returns:
      A Python int, so that large models cannot overflow it.

    >>> static_bits({"weights": jax.ShapeDtypeStruct((134_301_514,), jnp.float32)})
    4297648448
    """
    return sum(_fixed_bits(part) for part in _parts(payload) if part.flag is None)


def traced_bits(payload: PyTree) -> jax.Array:
    """The bits that depend on masks, flags and entropy-coded masks.

    Args:
      payload: Any payload; its masks, flags and entropy-coded masks may be tracers.

    Returns:
      ``uint32[]``. The sum with :func:`static_bits` is the exact size of the payload.

    Raises:
      OverflowError: While tracing, if shapes and dtypes do not exclude 2**32 bits or more.

    >>> from fedjax_masks.communication.payload import Masked
    >>> payload = Masked(jnp.zeros((2, 3)), jnp.array([[True, False, True]]))
    >>> int(jax.jit(traced_bits)(payload)) == 2 * 2 * 32
    True
    """
    varying = [part for part in _parts(payload) if _max_bits(part)]
    bound = sum(_max_bits(part) for part in varying)
    if bound >= 2**32:
        raise OverflowError(
            f"payload: must have less than 2**32 data-dependent bits, and may have {bound}; choose a smaller "
            "model, or send arrays without masks and flags"
        )
    total = jnp.zeros((), jnp.uint32)
    for part in varying:
        units, factor = _varying_bits(part)
        total += units * jnp.uint32(factor)
    return total


def bits(payload: PyTree) -> int:
    """The exact size of a concrete payload, of any size, in bits.

    >>> from fedjax_masks.communication.payload import Masked
    >>> bits({"kernel": Masked(jnp.zeros(4), jnp.arange(4) < 1), "signs": jnp.zeros(7, bool)})
    39
    """
    varying = (_varying_bits(part) for part in _parts(payload) if _max_bits(part))
    return static_bits(payload) + sum(int(units) * factor for units, factor in varying)


def installed_bytes(payload: PyTree) -> int:
    """The bytes of all :class:`~fedjax_masks.communication.payload.Installed` parts of a payload.

    >>> installed_bytes({"weights": Installed(jnp.zeros(3)), "scores": jnp.zeros(3)})
    12
    """
    return sum(trees.num_bytes(node.tree) for node in nodes(Installed, payload))


def total_dialogue(payload: PyTree) -> Dialogue | None:
    """The sum of all dialogues in a payload, which no other count includes; None where there is none."""
    dialogues = nodes(Dialogue, payload)
    return functools.reduce(trees.add, dialogues) if dialogues else None


def dialogue(
    up: PyTree,
    down: PyTree,
    times: jax.Array,
    max_times: int,
    *,
    messages: jax.typing.ArrayLike = 0.0,
    flops: jax.typing.ArrayLike = 0.0,
) -> Dialogue:
    """A dialogue of repeated messages within a round.

    Args:
      up: A payload: one message from the client; leaves may be ``ShapeDtypeStruct``.
      down: A payload: one message to the client.
      times: ``int32[]``: the number of repetitions of both messages.
      max_times: A static upper bound of ``times``.
      messages: ``float32[]``: the number of messages, where one may carry several payloads.
      flops: ``float32[]``: FLOPs of the server.

    Raises:
      OverflowError: The dialogue may have 2**32 bits or more in one direction.

    >>> talk = dialogue(jax.ShapeDtypeStruct((3,), jnp.float32), (), jnp.int32(2), 5)
    >>> int(talk.up), int(talk.down)
    (192, 0)
    """
    sizes = [static_bits(payload) for payload in (up, down)]
    bound = max(sizes) * max_times
    if bound >= 2**32:
        raise OverflowError(
            f"payload: must have less than 2**32 bits of messages in a round, and may have {bound}; cut the "
            "model elsewhere, or train less per round"
        )
    bits_up, bits_down = (times.astype(jnp.uint32) * jnp.uint32(size) for size in sizes)
    return Dialogue(bits_up, bits_down, jnp.asarray(messages, jnp.float32), jnp.asarray(flops, jnp.float32))
