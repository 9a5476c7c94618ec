"""Clipping and Gaussian noise of uploads, and the norm of a payload."""

import math

import chex
import jax
import jax.numpy as jnp

from fedjax_masks.communication.codec import Codec, array_keys, map_floats
from fedjax_masks.communication.payload import Dialogue, nodes
from fedjax_masks.communication.visitor import Part, fold_sent
from fedjax_masks.core.algorithm import PyTree
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.options import Count, Decay, Rate, check


def clip_and_noise(norm: float, multiplier: float, *, cohort: int) -> Codec:
    """Clips a payload's l2 norm, and adds one client's part of the cohort's Gaussian noise.

    The noise has the standard deviation ``multiplier * norm / sqrt(cohort)``, so that an unweighted sum over
    the cohort has ``multiplier * norm`` (McMahan et al. 2018, "Learning Differentially Private Recurrent
    Language Models", arXiv 1710.06963, where the server adds the noise). The norm is that of all sent floats
    together. :mod:`fedjax_masks.transforms.privacy` computes the guarantee.

    Args:
      norm: The largest l2 norm of a payload.
      multiplier: Standard deviation of the sum's noise, in norms; 0 clips only.
      cohort: Number of clients whose uploads are summed.

    Raises:
      UserError: An argument is out of range. From ``pack``: there is no key, or the payload sends other
        arrays than floats: bits, integers and encoded arrays have no norm, and noise does not hide them.

    >>> codec = clip_and_noise(1.0, 0.0, cohort=10)
    >>> packed, _ = codec.pack(jax.random.key(0), jnp.array([3.0, 4.0]), ())
    >>> [round(value, 3) for value in packed.tolist()]
    [0.6, 0.8]
    """
    check("clip_and_noise.norm", norm, Rate)
    check("clip_and_noise.multiplier", multiplier, Decay)
    check("clip_and_noise.cohort", cohort, Count)
    deviation = multiplier * norm / math.sqrt(cohort)

    def pack(key: chex.PRNGKey | None, payload: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        if key is None:
            raise UserError("clip_and_noise: must get a key, for its noise; pass a key")
        if (contents := kinds(payload)) != {"float"}:
            others = " and ".join(sorted(contents - {"float"})) or "nothing"
            raise UserError(f"clip_and_noise: must get floats alone, and the payload sends {others}")
        keys = array_keys(key)

        def add_noise(leaf: jax.Array, mask: jax.Array | bool) -> jax.Array:
            noise = deviation * jax.random.normal(next(keys), leaf.shape, leaf.dtype)
            return jnp.where(mask, leaf + noise.astype(leaf.dtype), leaf)

        return map_floats(add_noise, clip(payload, norm)), state

    return Codec(lambda _: (), pack, lambda packed: packed)


def global_norm(payload: PyTree) -> jax.Array:
    """The l2 norm of all floats that a payload sends, ``float32[]``.

    >>> from fedjax_masks.communication.payload import Masked
    >>> masked = Masked(jnp.array([4.0, 9.0]), jnp.array([True, False]))
    >>> float(global_norm({"a": jnp.array(3.0), "b": masked}))
    5.0
    """
    floats = [part for part in fold_sent(lambda part: part, payload) if part.is_float]
    squares = (jnp.square(jnp.where(part.sent_mask, part.leaf, 0).astype(jnp.float32)) for part in floats)
    return jnp.sqrt(sum(map(jnp.sum, squares), jnp.zeros(())))


def clip(payload: PyTree, norm: jax.typing.ArrayLike) -> PyTree:
    """Scales the floats of a payload by one factor, so that their norm is at most ``norm``."""
    length = global_norm(payload)
    factor = jnp.where(length > norm, norm / length, 1)
    return map_floats(lambda leaf, mask: (leaf * factor).astype(leaf.dtype), payload)


def kinds(payload: PyTree) -> set[str]:
    """The kinds of a payload's contents: ``"float"``, other dtypes, and names of nodes.

    >>> from fedjax_masks.communication.payload import Encoded
    >>> sorted(kinds({"a": jnp.ones(2), "b": Encoded(jnp.ones(3, bool))}))
    ['Encoded', 'float']
    """
    names = {"code": "Quantized", "scale": "Quantized", "index": "Sparse"}

    def kind(part: Part) -> str:
        if part.is_coded:
            return "Encoded"
        return "float" if part.is_float else names.get(part.role, str(part.dtype))

    dialogues = {Dialogue.__name__} if nodes(Dialogue, payload) else set()
    return dialogues | set(fold_sent(kind, payload))
