"""Composable transforms of payloads, and algorithms that use them.

A :class:`Wire` packs a payload on the sender's side and unpacks it on the receiver's. Wires
compose with :func:`chain` and fit any algorithm::

    with_wire(fedavg(model, optimizer), up=chain(top_k(0.1), quantize(8)), down=quantize(8))

Floats alone are transformed. Compression takes one array at a time, and only those that get smaller; what is
Known, Encoded or Quantized already, integers and bools pass as they are. Under a mask only
what is sent counts, and the mask stays.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.communication import payload as payloads
from fedjax_masks.communication.payload import Encoded, Known, Masked, Passed, Quantized, Sparse, When
from fedjax_masks.core import returns, trees
from fedjax_masks.core.algorithm import (
    ClientData,
    Cohort,
    FederatedAlgorithm,
    Predict,
    PyTree,
    State,
    Task,
)

Init = Callable[[PyTree], PyTree]
Pack = Callable[[chex.PRNGKey | None, PyTree, PyTree], tuple[PyTree, PyTree]]
Unpack = Callable[[PyTree], PyTree]


class Wire(NamedTuple):
    """A transform of payloads, as pure functions.

    Attributes:
      init: ``(like) -> state`` of the sender; ``like`` is a payload whose leaves may be
        ``ShapeDtypeStruct``.
      pack: ``(key, payload, state) -> (packed, state)``; the key may be None where the wire
        is deterministic.
      unpack: ``(packed) -> payload``, with the structure, shapes and dtypes of what was packed.
    """

    init: Init
    pack: Pack
    unpack: Unpack


def chain(*wires: Wire) -> Wire:
    """Packs with the first wire, what comes out with the second, and so on.

    >>> wire = chain(top_k(0.25), quantize(8))
    >>> values = jnp.array([0.0, -3.0, 1.0, 0.5] * 50)
    >>> packed, residual = wire.pack(None, values, wire.init(values))
    >>> payloads.bits(packed)  # 50 of 8 bits, 50 indices of 8 bits, one scale
    832
    """

    def init(like: PyTree) -> PyTree:
        states = []
        for wire in wires:
            states.append(wire.init(like))
            like, _ = jax.eval_shape(wire.pack, jax.random.key(0), like, states[-1])
        return tuple(states)

    def pack(key: chex.PRNGKey | None, payload: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        states = []
        for i, wire in enumerate(wires):
            wire_key = None if key is None else jax.random.fold_in(key, i)
            payload, new = wire.pack(wire_key, payload, state[i])
            states.append(new)
        return payload, tuple(states)

    def unpack(packed: PyTree) -> PyTree:
        for wire in reversed(wires):
            packed = wire.unpack(packed)
        return packed

    return Wire(init, pack, unpack)


def identity() -> Wire:
    """Sends every payload as it is."""
    return Wire(lambda _: (), lambda key, payload, state: (payload, state), lambda packed: packed)


def quantize(bits: int = 8, *, stochastic: bool = False) -> Wire:
    """Rounds to multiples of one scale per array, ``max|x| / (2 ** (bits - 1) - 1)``.

    Deterministic rounding is to the nearest (ties to even), so that no error exceeds half
    the scale. Stochastic rounding is unbiased and errs by less than the scale (Alistarh et al.
    2017, "QSGD", arXiv 1610.02132, sec. 3.1, with the maximum for the norm).

    Args:
      bits: Bits per value, 2 to 8; an array costs 32 bits more for its scale.
      stochastic: Whether rounding is stochastic. Needs a key: not for the down link.

    Raises:
      ValueError: If ``bits`` is not in 2 to 8, if a stochastic ``pack`` gets no key, or if
        the payload is quantised already.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"quantize: bits={bits}; accepted are 2 to 8")
    top = 2 ** (bits - 1) - 1

    def pack_leaf(key: chex.PRNGKey | None, leaf: jax.Array, sent: Any) -> PyTree:
        if leaf.size * bits + 32 >= leaf.size * 8 * leaf.dtype.itemsize:
            return leaf
        values = jnp.where(sent, leaf, 0).astype(jnp.float32)
        scale = jnp.max(jnp.abs(values)) / top
        ratio = values / jnp.where(scale > 0, scale, 1)
        rounded = jnp.round(ratio) if key is None else _round_randomly(key, ratio)
        codes = jnp.clip(rounded, -top, top).astype(jnp.int8)
        return Quantized(codes, scale, payloads.shape_only((bits,), leaf.dtype))

    def pack(key: chex.PRNGKey | None, payload: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        if stochastic and key is None:
            raise ValueError(
                "quantize: stochastic=True needs a key; accepted without one is stochastic=False"
            )
        if _holds(payload, Quantized):
            raise ValueError("quantize: the payload is quantised already; accepted is one quantize per link")
        keys = _keys(key if stochastic else None)
        return map_floats(lambda leaf, sent: pack_leaf(next(keys), leaf, sent), payload), state

    return Wire(lambda _: (), pack, lambda packed: _replace_nodes(Quantized, dequantize, packed))


def _round_randomly(key: chex.PRNGKey, values: jax.Array) -> jax.Array:
    lower = jnp.floor(values)
    return lower + (jax.random.uniform(key, values.shape, values.dtype) < values - lower)


def _keys(key: chex.PRNGKey | None) -> Any:
    """A fresh key per array, or always None."""
    index = 0
    while True:
        yield None if key is None else jax.random.fold_in(key, index)
        index += 1


def dequantize(quantized: Quantized) -> jax.Array:
    """The values of a :class:`Quantized`, in the dtype of its ``like``."""
    return (quantized.codes * quantized.scale).astype(quantized.like.dtype)


def top_k(fraction: float, *, error_feedback: bool = True) -> Wire:
    """Sends the largest ``max(1, round(fraction * n))`` magnitudes of every array.

    With error feedback what was not sent is added to the next round's values, so that sent
    plus residual always equals values plus old residual (Stich et al. 2018, "Sparsified SGD
    with memory", arXiv 1809.07599, algorithm 1). Under a mask, elements that are not sent keep
    their residual. Meant for updates, whose zeros mean "no change", rather than for weights.

    Args:
      fraction: Share of the elements to send, in (0, 1].
      error_feedback: Whether the sender keeps residuals: one float32 (or wider) array per
        float array, in the sender's state.

    Raises:
      ValueError: If ``fraction`` is not in (0, 1], or if the payload is sparse already.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"top_k: fraction={fraction}; accepted is more than 0 and at most 1")

    def residuals(payload: PyTree) -> PyTree:
        found: list[jax.Array] = []
        map_floats(lambda leaf, sent: found.append(_residual_like(leaf)), payload)
        return tuple(found)

    def init(like: PyTree) -> PyTree:
        return trees.zeros_like(jax.eval_shape(residuals, like)) if error_feedback else ()

    def pack(key: chex.PRNGKey | None, payload: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        del key
        if _holds(payload, Sparse):
            raise ValueError("top_k: the payload is sparse already; accepted is one top_k per link")
        old, new = iter(state), []

        def pack_leaf(leaf: jax.Array, sent: Any) -> PyTree:
            if not error_feedback:
                return sparsify(jnp.where(sent, leaf, 0), fraction)
            residual = next(old)
            wanted = jnp.where(sent, leaf + residual, 0)
            packed = sparsify(wanted.astype(leaf.dtype), fraction)
            left = wanted - (densify(packed) if isinstance(packed, Sparse) else packed)
            new.append(jnp.where(sent, left, residual))
            return packed

        return map_floats(pack_leaf, payload), tuple(new)

    return Wire(init, pack, lambda packed: _replace_nodes(Sparse, densify, packed))


def _residual_like(leaf: Any) -> jax.Array:
    return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))


def sparsify(values: jax.Array, fraction: float) -> Sparse | jax.Array:
    """The largest magnitudes of an array, or the array where that is no larger.

    >>> sparsify(jnp.array([1.0, -5.0, 0.0, 2.0]), 0.25).values.tolist()
    [-5.0]
    """
    keep = max(1, round(fraction * values.size))
    width = 8 * values.dtype.itemsize
    if keep * (width + max(0, values.size - 1).bit_length()) >= values.size * width:
        return values
    flat = values.ravel()
    _, indices = jax.lax.top_k(jnp.abs(flat), keep)
    return Sparse(flat[indices], indices, payloads.shape_only(values.shape, values.dtype))


def densify(sparse: Sparse) -> jax.Array:
    """The array that a :class:`Sparse` stands for.

    >>> like = payloads.shape_only((2, 2))
    >>> densify(Sparse(jnp.array([5.0]), jnp.array([2]), like)).tolist()
    [[0.0, 0.0], [5.0, 0.0]]
    """
    shape = sparse.like.shape[:-1]
    zeros = jnp.zeros(math.prod(shape), sparse.values.dtype)
    return zeros.at[sparse.indices].set(sparse.values, mode="drop").reshape(shape)


def clip_and_noise(norm: float, multiplier: float, *, cohort: int) -> Wire:
    """Clips the upload's l2 norm and adds this client's part of the cohort's Gaussian noise.

    The noise has the standard deviation ``multiplier * norm / sqrt(cohort)``, so that an unweighted
    sum over the cohort has ``multiplier * norm`` (McMahan et al. 2018, "Learning Differentially
    Private Recurrent Language Models", arXiv 1710.06963, where the server adds it). The norm is that of
    all floats that are sent together. What that guarantees says :mod:`fedjax_masks.transforms.privacy`.

    Args:
      norm: The largest l2 norm that an upload keeps.
      multiplier: The noise of the sum, in norms; 0 clips only.
      cohort: Clients whose uploads are added up.

    Raises:
      ValueError: An argument is out of range; from ``pack``, if there is no key, or if anything but
        floats is sent: bits, integers and what is coded have no norm, and noise does not hide them.

    >>> wire = clip_and_noise(1.0, 0.0, cohort=10)
    >>> sent, _ = wire.pack(jax.random.key(0), jnp.array([3.0, 4.0]), ())
    >>> [round(value, 3) for value in sent.tolist()]
    [0.6, 0.8]
    """
    for name, value, low in (
        ("norm", norm, math.ulp(0)),
        ("multiplier", multiplier, 0),
        ("cohort", cohort, 1),
    ):
        if not low <= value < math.inf:
            accepted = "above 0" if 0 < low < 1 else f"at least {low}"
            raise ValueError(f"clip_and_noise: {name}={value}; accepted is a number {accepted}")
    deviation = multiplier * norm / math.sqrt(cohort)

    def pack(key: chex.PRNGKey | None, payload: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        if key is None:
            raise ValueError("clip_and_noise: needs a key; accepted is the up link")
        if (found := kinds(payload)) != {"float"}:
            others = " and ".join(sorted(found - {"float"})) or "nothing"
            raise ValueError(f"clip_and_noise: the payload sends {others}; accepted are floats alone")
        keys = _keys(key)

        def add_noise(leaf: jax.Array, sent: Any) -> jax.Array:
            noise = deviation * jax.random.normal(next(keys), leaf.shape, leaf.dtype)
            return jnp.where(sent, leaf + noise.astype(leaf.dtype), leaf)

        return map_floats(add_noise, clip(payload, norm)), state

    return Wire(lambda _: (), pack, lambda packed: packed)


def global_norm(payload: PyTree) -> jax.Array:
    """``float32[]``: the l2 norm of all floats that a payload sends.

    >>> masked = Masked(jnp.array([4.0, 9.0]), jnp.array([True, False]))
    >>> float(global_norm({"a": jnp.array(3.0), "b": masked}))
    5.0
    """
    squares = [jnp.zeros(())]

    def add(leaf: jax.Array, sent: Any) -> jax.Array:
        squares.append(jnp.sum(jnp.square(jnp.where(sent, leaf, 0).astype(jnp.float32))))
        return leaf

    map_floats(add, payload)
    return jnp.sqrt(sum(squares))


def clip(payload: PyTree, norm: jax.typing.ArrayLike) -> PyTree:
    """The payload with its floats scaled down, by one factor, to a norm of at most ``norm``."""
    length = global_norm(payload)
    factor = jnp.where(length > norm, norm / length, 1)
    return map_floats(lambda leaf, sent: (leaf * factor).astype(leaf.dtype), payload)


def kinds(payload: PyTree) -> set[str]:
    """What a payload sends: ``"float"``, the names of other dtypes, and of wrappers that are no floats.

    >>> sorted(kinds({"a": jnp.ones(2), "b": Encoded(jnp.ones(3, bool)), "c": Known(jnp.ones(3, bool))}))
    ['Encoded', 'float']
    """
    found: set[str] = set()

    def visit(node: Any) -> None:
        match node:
            case Known():
                return
            case When(_, tree) | Masked(tree, _):
                found.update(kinds(tree))
            case Passed() | Encoded() | Quantized() | Sparse():
                found.add(type(node).__name__)
            case _:
                found.add("float" if jnp.issubdtype(node.dtype, jnp.floating) else str(node.dtype))

    jax.tree.map(visit, payload, is_leaf=lambda node: isinstance(node, _WRAPPERS))
    return found


_WRAPPERS = (Known, Passed, Encoded, Quantized, When, Masked, Sparse)


def map_floats(fn: Callable[[Any, Any], Any], payload: PyTree, sent: Any = True) -> PyTree:
    """Replaces every float array that a wire may transform by ``fn(array, sent)``.

    ``sent`` broadcasts against the array: which elements are sent.
    """

    def visit(node: Any) -> Any:
        match node:
            case Known() | Passed() | Encoded() | Quantized():
                return node
            case When(flag, tree):
                return When(flag, map_floats(fn, tree, flag & sent))
            case Masked(values, mask):
                return Masked(jax.tree.map(lambda m, v: map_floats(fn, v, m & sent), mask, values), mask)
            case Sparse(values):
                return node._replace(values=map_floats(fn, values))
        return fn(node, sent) if jnp.issubdtype(node.dtype, jnp.floating) else node

    return jax.tree.map(visit, payload, is_leaf=lambda node: isinstance(node, _WRAPPERS))


def _replace_nodes(kind: type, fn: Callable[[Any], Any], tree: PyTree) -> PyTree:
    """Replaces every node of one kind; what is Known stays."""

    def visit(node: Any) -> Any:
        return fn(node) if isinstance(node, kind) else node

    return jax.tree.map(visit, tree, is_leaf=lambda node: isinstance(node, (kind, Known)))


def _holds(tree: PyTree, kind: type) -> bool:
    found: list[Any] = []
    _replace_nodes(kind, found.append, tree)
    return bool(found)


WIRES: Mapping[str, tuple[str, Callable[..., Wire]]] = MappingProxyType(
    {
        "top_k:SHARE": ("the largest values of every array, the rest later", top_k),
        "top_k:SHARE:forget": ("without error feedback", partial(top_k, error_feedback=False)),
        "quantize:BITS": ("rounded to so many bits", quantize),
        "quantize:BITS:stochastic": ("without bias", partial(quantize, stochastic=True)),
    }
)
"""How wires are written, what they do, and what makes them."""


def parse_wire(text: str) -> Wire:
    """Reads a wire, or several joined by ``+``, the first of which packs first.

    Raises:
      ValueError: The text is none of :data:`WIRES`, or a number is out of range.

    >>> wire = parse_wire("top_k:0.25+quantize:8")
    >>> payloads.bits(wire.pack(None, jnp.ones(200), wire.init(jnp.ones(200)))[0])
    832
    """
    makers = {tuple(usage.split(":")): maker for usage, (_, maker) in WIRES.items()}
    found = []
    for part in text.split("+"):
        name, number, *way = part.strip().split(":") if ":" in part else (part, "")
        matching = [m for (kind, _, *how), m in makers.items() if (kind, how) == (name, way)]
        try:
            value = int(number) if name == "quantize" else float(number)
            (maker,) = matching
        except ValueError:
            raise ValueError(f"wire={text}: {part}; accepted are {', '.join(WIRES)}, joined by +") from None
        found.append(maker(value))
    return chain(*found)


class WiredClient(NamedTuple):
    """The state of a client behind a wire.

    Attributes:
      inner: The algorithm's own client state.
      wire: The state of the upload's wire, such as residuals.
    """

    inner: PyTree
    wire: PyTree


_WIRE_KEY = 0x77697265  # far from the small integers that algorithms fold into their keys


def with_wire(
    algorithm: FederatedAlgorithm, *, up: Wire | None = None, down: Wire | None = None
) -> FederatedAlgorithm:
    """Puts a wire on an algorithm's uploads and messages; nothing else of it changes.

    Args:
      algorithm: Any algorithm.
      up: The wire of uploads; its state lives with the client. None is :func:`identity`.
      down: The wire of messages: deterministic, and without a state. None is :func:`identity`.

    Returns:
      An algorithm whose client state is a :class:`WiredClient`.

    Raises:
      ValueError: From ``init`` and ``send``, if ``down`` is stochastic or keeps a state.
    """
    algorithm = returns.checked(algorithm)
    up, down = up or identity(), down or identity()

    def init(key: chex.PRNGKey, task: Task) -> State:
        state = algorithm.init(key, task)
        like = jax.eval_shape(lambda: _first_upload(key, task, state))
        return state._replace(
            clients=WiredClient(state.clients, trees.replicate(up.init(like), task.num_clients))
        )

    def _first_upload(key: chex.PRNGKey, task: Task, state: State) -> PyTree:
        message = down.unpack(send(state.server, jnp.zeros((), jnp.int32)))
        client = jax.tree.map(lambda rows: rows[0], state.clients)
        return algorithm.train(key, state.common, message, client, _no_data(task))[1]

    def send(server: PyTree, client_id: jax.Array) -> PyTree:
        message = algorithm.send(server, client_id)
        state = down.init(message)
        if jax.tree.leaves(state):
            raise ValueError("with_wire: down keeps a state; accepted is a wire without error feedback")
        return down.pack(None, message, state)[0]

    def train(key: chex.PRNGKey, common: PyTree, message: PyTree, client: WiredClient, data: ClientData):
        inner, upload, metrics = algorithm.train(key, common, down.unpack(message), client.inner, data)
        packed, wire = up.pack(jax.random.fold_in(key, _WIRE_KEY), upload, client.wire)
        return WiredClient(inner, wire), packed, metrics

    def serve(key: chex.PRNGKey, common: PyTree, server: PyTree, kept: PyTree, upload: PyTree):
        assert algorithm.serve is not None
        return algorithm.serve(key, common, server, kept, up.unpack(upload))

    def reduce(upload: PyTree, weight: jax.Array) -> PyTree:
        assert algorithm.reduce is not None
        return algorithm.reduce(up.unpack(upload), weight)

    def merge(key: chex.PRNGKey, common: PyTree, server: PyTree, uploads: PyTree, cohort: Cohort) -> PyTree:
        return algorithm.merge(key, common, server, jax.vmap(up.unpack)(uploads), cohort)

    wired = algorithm._replace(
        init=init,
        send=send,
        train=train,
        predict=algorithm.predict and on_inner(algorithm.predict),
        probes={name: on_inner(probe) for name, probe in algorithm.probes.items()},
    )
    if algorithm.serve:  # the first to see an upload unpacks it
        return wired._replace(serve=serve)
    return wired._replace(reduce=reduce) if algorithm.reduce else wired._replace(merge=merge)


def on_inner(predict: Predict) -> Predict:
    """A prediction by the client's own state, where something is wrapped around it as its ``inner``."""
    return lambda common, server, client, x: predict(common, server, client.inner, x)


def _no_data(task: Task) -> ClientData:
    """Zeros in the shapes of a client's data."""
    inputs = jnp.zeros(task.inputs.shape, task.inputs.dtype)
    labels = jnp.zeros(task.labels.shape, jnp.int32)
    rows = jnp.zeros(max(1, int(np.max(task.train.sizes))), jnp.int32)
    size = jnp.zeros((), jnp.int32)
    return ClientData(inputs, labels, rows, size, size, size)
