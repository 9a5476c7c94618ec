"""Merges that hostile or broken clients cannot steer.

A :data:`Defence` looks at the uploads of a whole cohort before the algorithm receives them. Defences stand in
a row and fit any algorithm whose uploads are floats and whose contributions do not depend on profiles::

    with_robust_merge(fedavg(model, optimizer), clip_to_median(2.0), trimmed_mean(0.2))

Uploads that are not finite never get here: the engine leaves them out of any merge.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.communication import codecs
from fedjax_masks.communication.payload import Dialogue, replace_nodes
from fedjax_masks.communication.visitor import Part, map_sent
from fedjax_masks.core import returns, trees
from fedjax_masks.core.algorithm import FederatedAlgorithm, Info, Round, Stack
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.types import PyTree

Defence = Callable[[PyTree, jax.Array], tuple[PyTree, jax.Array]]
"""``(uploads, weight) -> (uploads, weight)``: rows ``[cohort, ...]`` and ``float32[cohort]``, 0 for a row
that is padding or left out. The result may have fewer rows; its weights have the same sum."""


def with_robust_merge(algorithm: FederatedAlgorithm, *defences: Defence) -> FederatedAlgorithm:
    """Sends the uploads of a cohort through defences before the algorithm receives the rest.

    All uploads of a cohort are then in memory at once. Codecs go around:
    ``with_codecs(with_robust_merge(...))``.

    Args:
      algorithm: An algorithm whose uploads are floats.
      *defences: In their order.

    Raises:
      UserError: While tracing, if uploads are not floats, or if what a server makes of an upload depends on
        the client's profile.

    Example:
      >>> import optax, fedjax_masks as fm
      >>> task = fm.load_task("digits", clients=4)
      >>> algorithm = fm.fedavg(fm.models.mlp(task, hidden=(16,)), optax.sgd(0.1))
      >>> run = fm.simulate(with_robust_merge(algorithm, median()), task, rounds=2, cohort=3)
    """
    algorithm = returns.with_checks(algorithm)

    def receive(
        round: Round, server: PyTree, profile: PyTree, upload: PyTree, weight: jax.Array
    ) -> tuple[PyTree, Stack]:
        _check(upload)
        arguments = (round, server, profile, upload, weight)
        if _depends_on_profile(lambda *args: algorithm.receive(*args)[1], *arguments):
            raise UserError(
                "robust: must meet an algorithm whose server treats the uploads of all clients alike; this "
                "one reads what it knows of each"
            )
        new, _ = algorithm.receive(*arguments)
        return new, Stack((_without_dialogues(upload), weight, profile))

    def merge(round: Round, server: PyTree, total: Stack) -> tuple[PyTree, Info | None]:
        uploads, weight, profiles = total.tree
        for defence in defences:
            uploads, weight = defence(uploads, weight)
        profile = jax.tree.map(lambda rows: rows[0], profiles)

        def contribution(upload: PyTree, weight: jax.Array) -> PyTree:
            part = algorithm.receive(round, server, profile, upload, weight)[1]
            return trees.where(weight > 0, part, trees.zeros_like(part))

        return algorithm.merge(round, server, _total(jax.vmap(contribution)(uploads, weight)))

    return algorithm._replace(receive=receive, merge=merge)


def _total(contributions: PyTree) -> PyTree:
    """The sum over axis 0; a :class:`Stack` stays stacked, as the engine leaves it."""

    def add_up(node: PyTree) -> PyTree:
        return node if isinstance(node, Stack) else node.sum(0, dtype=node.dtype)

    return jax.tree.map(add_up, contributions, is_leaf=lambda node: isinstance(node, Stack))


def _without_dialogues(upload: PyTree) -> PyTree:
    """The upload without the size of a conversation, which is counted already."""
    nothing = jnp.zeros((), jnp.uint32)
    none = Dialogue(nothing, nothing, jnp.float32(0), jnp.float32(0))
    return replace_nodes(Dialogue, lambda _: none, upload)


def _depends_on_profile(
    contribution: Callable[..., PyTree],
    round: Round,
    server: PyTree,
    profile: PyTree,
    upload: PyTree,
    weight: jax.Array,
) -> bool:
    program = jax.make_jaxpr(contribution)(round, server, profile, upload, weight).jaxpr
    before = len(jax.tree.leaves((round, server)))
    rows = program.invars[before : before + len(jax.tree.leaves(profile))]
    needed = {id(variable) for variable in program.outvars}
    for equation in reversed(program.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed |= {id(variable) for variable in equation.invars}
    return any(id(row) in needed for row in rows)


def _check(uploads: PyTree) -> None:
    sent = codecs.kinds(uploads) - {Dialogue.__name__}
    if sent != {"float"}:
        others = " and ".join(sorted(sent - {"float"})) or "nothing"
        raise UserError(f"robust: must meet uploads of floats; these hold {others}")


def clip(norm: float) -> Defence:
    """Scales every upload down to an l2 norm of at most ``norm``.

    Raises:
      UserError: If ``norm`` is not above 0.
    """
    _check_positive("clip", "norm", norm)
    return lambda uploads, weight: (jax.vmap(lambda upload: codecs.clip(upload, norm))(uploads), weight)


def clip_to_median(factor: float = 1.0) -> Defence:
    """Scales every upload down to an l2 norm of at most ``factor`` times the median norm of the cohort.

    Raises:
      UserError: If ``factor`` is not above 0.
    """
    _check_positive("clip_to_median", "factor", factor)

    def defence(uploads: PyTree, weight: jax.Array) -> tuple[PyTree, jax.Array]:
        norms = jax.vmap(codecs.global_norm)(uploads)
        limit = factor * _trimmed(norms, weight > 0, _half(len(weight)))
        return jax.vmap(codecs.clip, (0, None))(uploads, limit), weight

    return defence


def _check_positive(name: str, key: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name}: {key}={value}: must be a number above 0")


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
      UserError: If ``share`` is not in [0, 0.5).
    """
    if not 0 <= share < 0.5:
        raise UserError(f"trimmed_mean: share={share}: must be at least 0 and below 0.5")
    # Rounded first: 0.3 * 10 is a little less than 3.
    return _centre(lambda cohort: np.floor(np.round(share * np.arange(cohort + 1), 9)).astype(np.int32))


def _half(cohort: int) -> np.ndarray:
    """``int32[cohort + 1]``: the cut of a median at either end, of 0 to ``cohort`` values."""
    return np.maximum(np.arange(cohort + 1, dtype=np.int32) - 1, 0) // 2


def _centre(cuts: Callable[[int], np.ndarray]) -> Defence:
    """Leaves one row; ``cuts(cohort)`` is ``int32[cohort + 1]``: of n values, how many go at either end."""

    def defence(uploads: PyTree, weight: jax.Array) -> tuple[PyTree, jax.Array]:
        centre = _centre_of(uploads, weight > 0, cuts(len(weight)))
        return jax.tree.map(lambda a: a[None], (centre, jnp.sum(weight)))

    return defence


def _centre_of(uploads: PyTree, present: jax.Array, cuts: np.ndarray) -> PyTree:
    """One upload; ``present`` broadcasts, from its first axis on, against every array."""

    def centre(part: Part) -> jax.Array:
        _check(part.leaf)  # what the server already knows, too
        sent = _align(present, part.leaf)
        return _trimmed(
            part.leaf, sent if part.sent_mask is True else sent & _align(part.sent_mask, part.leaf), cuts
        )

    def anybody(condition: jax.Array) -> jax.Array:
        return jnp.any(condition & _align(present, condition), 0)

    first = replace_nodes(Dialogue, lambda node: jax.tree.map(lambda a: a[0], node), uploads)
    return map_sent(centre, first, condition=anybody, known=True)


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
    inside = (rank >= cut) & (rank < number - cut)
    total = jnp.sum(jnp.where(inside, ranked, 0), 0)
    return (total / jnp.maximum(number - 2 * cut, 1)).astype(values.dtype)
