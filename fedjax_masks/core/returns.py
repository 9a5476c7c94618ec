"""Checks of an algorithm's results, so that a mistake in it is one line that names its function."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core.algorithm import FederatedAlgorithm, State
from fedjax_masks.core.errors import UserError

_TRAINED = "the client's state, an upload and metrics"
_SERVED = "what the server keeps of the client, and what it has received"


def checked(algorithm: FederatedAlgorithm) -> FederatedAlgorithm:
    """The algorithm, whose functions raise a :class:`UserError` where they return too little or too much.

    >>> import fedjax_masks as fm, optax
    >>> task = fm.load_task("digits", clients=2)
    >>> fedavg = fm.fedavg(fm.models.mlp(task), optax.sgd(0.1))
    >>> checked(fedavg._replace(init=lambda key, task: ())).init(None, task)
    Traceback (most recent call last):
    fedjax_masks.core.errors.UserError: init=<lambda>: must return a State, and returns a tuple of 0
    """
    if not isinstance(algorithm, FederatedAlgorithm):
        raise UserError(f"algorithm: must be a FederatedAlgorithm, and is {_describe(algorithm)}")

    def init(*args: Any) -> State:
        state = algorithm.init(*args)
        if not isinstance(state, State):
            raise _error("init", algorithm.init, "a State", state)
        return state

    def train(key: Any, common: Any, message: Any, client: Any, data: Any) -> Any:
        result = algorithm.train(key, common, message, client, data)
        if not _is_tuple(result, 3):
            raise _error("train", algorithm.train, f"three values, {_TRAINED}", result)
        _check_structure("train", algorithm.train, "the client's state", client, result[0])
        _check_metrics("train", algorithm.train, result[2])
        return result

    def serve(key: Any, common: Any, server: Any, kept: Any, upload: Any) -> Any:
        assert algorithm.serve is not None
        result = algorithm.serve(key, common, server, kept, upload)
        if not _is_tuple(result, 2):
            raise _error("serve", algorithm.serve, f"two values, {_SERVED}", result)
        _check_structure("serve", algorithm.serve, "what the server keeps", kept, result[0])
        return result

    def merge(key: Any, common: Any, server: Any, uploads: Any, cohort: Any) -> Any:
        new = algorithm.merge(key, common, server, uploads, cohort)
        _check_structure("merge", algorithm.merge, "the server's state", server, new)
        return new

    def report(server: Any) -> Any:
        assert algorithm.report is not None
        metrics = algorithm.report(server)
        _check_metrics("report", algorithm.report, metrics)
        return metrics

    functions = {"init": init, "train": train, "serve": serve, "merge": merge, "report": report}
    given = {name: getattr(algorithm, name) for name in functions}
    return algorithm._replace(
        **{name: functools.wraps(inner)(functions[name]) for name, inner in given.items() if inner}
    )


def name_of(function: Callable[..., Any]) -> str:
    """A function's name, with that of the factory which made it.

    >>> name_of(checked)
    'checked'
    """
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", type(function).__name__).replace(".<locals>", "")


def _is_tuple(result: Any, length: int) -> bool:
    return isinstance(result, (tuple, list)) and len(result) == length


def _check_structure(role: str, function: Any, what: str, like: Any, result: Any) -> None:
    if jax.tree.structure(result) != jax.tree.structure(like):
        raise _error(role, function, f"{what}, {_describe(like)}, as it gets it", result)
    wanted, found = (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (like, result))
    for (path, leaf), (_, other) in zip(wanted, found):
        kinds = [f"{jnp.result_type(value)}{list(np.shape(value))}" for value in (leaf, other)]
        if kinds[0] != kinds[1]:
            name = f"{what}{jax.tree_util.keystr(path)}"
            raise UserError(
                f"{role}={name_of(function)}: must return {name} as {kinds[0]}, and returns {kinds[1]}"
            )


def _check_metrics(role: str, function: Any, metrics: Any) -> None:
    if not isinstance(metrics, Mapping):
        raise _error(role, function, "metrics as a mapping from names to numbers", metrics)
    for name, value in metrics.items():
        if np.shape(value) or not (hasattr(value, "dtype") or isinstance(value, (int, float))):
            raise _error(role, function, f"a number as metric {name!r}", value)


def _error(role: str, function: Any, wanted: str, result: Any) -> UserError:
    return UserError(f"{role}={name_of(function)}: must return {wanted}, and returns {_describe(result)}")


def _describe(result: Any) -> str:
    if hasattr(result, "shape") and hasattr(result, "dtype"):
        return f"an array {list(result.shape)}"
    if result is None or isinstance(result, (bool, int, float, str)):
        return repr(result)
    name = type(result).__name__
    size = f" of {len(result)}" if hasattr(result, "__len__") else ""
    arrays = len(jax.tree.leaves(result))
    inside = f" with {arrays} arrays" if arrays != getattr(result, "__len__", lambda: arrays)() else ""
    return f"a {name}{size}{inside}"
