"""Merges that hostile or broken clients cannot steer.

A :data:`Defence` looks at the uploads of a whole cohort before the algorithm reduces them. Defences
stand in a row and fit any algorithm with ``reduce``, of which nothing else changes::

    with_robust_merge(fedavg(model, optimizer), clip_to_median(2.0), trimmed_mean(0.2))

Uploads that are not finite never get here: the engine leaves them out of any merge.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.communication.payload import Known, Masked, Passed, When
from fedjax_masks.core.algorithm import Cohort, FederatedAlgorithm, PyTree
from fedjax_masks.transforms import compression

Defence = Callable[[PyTree, jax.Array], tuple[PyTree, jax.Array]]
"""``(uploads, weight) -> (uploads, weight)``: rows ``[cohort, ...]`` and ``float32[cohort]``, 0 for a row
that is padding or left out. What comes out may have fewer rows; its weights have the same sum."""


def with_robust_merge(algorithm: FederatedAlgorithm, *defences: Defence) -> FederatedAlgorithm:
    """Sends the uploads of a cohort through defences before the algorithm reduces what they leave.

    All uploads of a cohort are then in memory at once. A wire that compresses goes around:
    ``with_wire(with_robust_merge(...))``.

    Args:
      algorithm: An algorithm with ``reduce``, whose uploads are floats.
      *defences: In their order.

    Returns:
      The algorithm without ``reduce``.

    Raises:
      ValueError: The algorithm has no ``reduce``, or serves; from ``merge``, if its uploads are not floats.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=10)
      >>> algorithm = fm.fedavg(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1))
      >>> run = fm.simulate(with_robust_merge(algorithm, median()), task, rounds=2, cohort=5)
    """
    reduce = algorithm.reduce
    if reduce is None or algorithm.serve is not None:
        raise ValueError(
            "with_robust_merge: the algorithm's server reads every upload; accepted is one that adds them up"
        )

    def merge(key: chex.PRNGKey, common: PyTree, server: PyTree, uploads: PyTree, cohort: Cohort) -> PyTree:
        _check(uploads)
        weight = cohort.weight
        for defence in defences:
            uploads, weight = defence(uploads, weight)
        total = jax.tree.map(lambda a: a.sum(0, dtype=a.dtype), jax.vmap(reduce)(uploads, weight))
        return algorithm.merge(key, common, server, total, cohort)

    return algorithm._replace(merge=merge, reduce=None)


def _check(uploads: PyTree) -> None:
    found = compression.kinds(uploads) - {"Passed"}
    if found != {"float"}:
        others = " and ".join(sorted(found - {"float"})) or "nothing"
        raise ValueError(f"with_robust_merge: uploads hold {others}; accepted are floats")


def clip(norm: float) -> Defence:
    """Scales every upload down to an l2 norm of at most ``norm``.

    Raises:
      ValueError: If ``norm`` is not above 0.
    """
    _check_positive("clip", "norm", norm)
    return lambda uploads, weight: (jax.vmap(lambda upload: compression.clip(upload, norm))(uploads), weight)


def clip_to_median(factor: float = 1.0) -> Defence:
    """Scales every upload down to an l2 norm of at most ``factor`` times the median norm of the cohort.

    Raises:
      ValueError: If ``factor`` is not above 0.
    """
    _check_positive("clip_to_median", "factor", factor)

    def defence(uploads: PyTree, weight: jax.Array) -> tuple[PyTree, jax.Array]:
        norms = jax.vmap(compression.global_norm)(uploads)
        limit = factor * _trimmed(norms, weight > 0, _half(len(weight)))
        return jax.vmap(compression.clip, (0, None))(uploads, limit), weight

    return defence


def _check_positive(name: str, key: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: {key}={value}; accepted is a number above 0")


def median() -> Defence:
    """Leaves the median of every coordinate, over the clients that sent it.

    Yin et al. 2018, arXiv 1803.01498, definition 1. Clients count equally, whatever numbers of examples
    they claim, and the median takes over the sum of their weights. Holds while less than half of a
    cohort is hostile.
    """
    return _centre(_half)


def trimmed_mean(share: float = 0.2) -> Defence:
    """Leaves the mean of every coordinate without its ``floor(share * n)`` smallest and largest of n values.

    Yin et al. 2018, arXiv 1803.01498, definition 2. Clients count equally, as in :func:`median`; a share
    of 0 is the mean without weights. Holds while at most a share ``share`` of a cohort is hostile.

    Raises:
      ValueError: If ``share`` is not in [0, 0.5).
    """
    if not 0 <= share < 0.5:
        raise ValueError(f"trimmed_mean: share={share}; accepted is at least 0 and below 0.5")
    # Rounded first: 0.3 * 10 is a little less than 3.
    return _centre(lambda cohort: np.floor(np.round(share * np.arange(cohort + 1), 9)).astype(np.int32))


def _half(cohort: int) -> np.ndarray:
    """What a median cuts off at either end, of 0 to ``cohort`` values."""
    return np.maximum(np.arange(cohort + 1, dtype=np.int32) - 1, 0) // 2


def _centre(cuts: Callable[[int], np.ndarray]) -> Defence:
    """Leaves one row; ``cuts(cohort)`` is ``int32[cohort + 1]``: of n values, how many go at either end."""

    def defence(uploads: PyTree, weight: jax.Array) -> tuple[PyTree, jax.Array]:
        centre = _centre_of(uploads, weight > 0, cuts(len(weight)))
        return jax.tree.map(lambda a: a[None], (centre, jnp.sum(weight)))

    return defence


_WRAPPERS = (Known, Passed, When, Masked)


def _centre_of(uploads: PyTree, present: jax.Array, cuts: np.ndarray) -> PyTree:
    """One upload; ``present`` broadcasts, from its first axis on, against every array."""

    def visit(node: Any) -> Any:
        match node:
            case Passed():
                return jax.tree.map(lambda a: a[0], node)  # its size alone is left of it
            case Known(tree):
                return Known(_centre_of(tree, present, cuts))
            case When(flag, tree):
                sent = flag & present
                return When(jnp.any(sent, 0), _centre_of(tree, sent, cuts))
            case Masked(values, mask):
                sent = jax.tree.map(lambda m: m & _align(present, m), mask)
                values = jax.tree.map(lambda s, v: _centre_of(v, s, cuts), sent, values)
                return Masked(values, jax.tree.map(lambda s: jnp.any(s, 0), sent))
        _check(node)
        return _trimmed(node, _align(present, node), cuts)

    return jax.tree.map(visit, uploads, is_leaf=lambda node: isinstance(node, _WRAPPERS))


def _align(present: jax.Array, like: jax.Array) -> jax.Array:
    return present.reshape(*present.shape, *(1,) * (like.ndim - present.ndim))


def _trimmed(values: jax.Array, present: jax.Array, cuts: np.ndarray) -> jax.Array:
    """The mean over axis 0 of what is present, without the ends; 0 where nothing is.

    >>> values = jnp.array([[1.0, 7.0], [2.0, 8.0], [9.0, 9.0]])
    >>> present = jnp.array([[True, False], [True, False], [True, False]])
    >>> _trimmed(values, present, _half(3)).tolist()
    [2.0, 0.0]
    """
    number = jnp.sum(present, 0)
    cut = jnp.asarray(cuts)[number]
    ranked = jnp.sort(jnp.where(present, values, jnp.inf), 0)
    rank = jnp.arange(len(values)).reshape(-1, *(1,) * (values.ndim - 1))
    kept = (rank >= cut) & (rank < number - cut)
    total = jnp.sum(jnp.where(kept, ranked, 0), 0)
    return (total / jnp.maximum(number - 2 * cut, 1)).astype(values.dtype)
