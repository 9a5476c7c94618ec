"""Checks of the results of an algorithm's functions, with errors of one line that name the function."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_masks.core.algorithm import FederatedAlgorithm, Info, Schedule, State
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.info import RESERVED
from fedjax_masks.core.types import PyTree


def with_checks(algorithm: FederatedAlgorithm, num_clients: int | None = None) -> FederatedAlgorithm:
    """Wraps an algorithm's functions in checks of their results.

    Args:
      algorithm: Any algorithm.
      num_clients: The leading axis of clients' states and profiles; None for any.

    Returns:
      The algorithm, whose functions raise a :class:`UserError` for results of the wrong type, structure or
      shape.

    Raises:
      UserError: The algorithm, its schedule or its ``predict`` is of the wrong type.

    >>> import fedjax_masks as fm, optax
    >>> task = fm.load_task("digits", clients=2)
    >>> fedavg = fm.fedavg(fm.models.mlp(task), optax.sgd(0.1))
    >>> with_checks(fedavg._replace(init=lambda key, task: ()), 2).init(None, task)
    Traceback (most recent call last):
    fedjax_masks.core.errors.UserError: init=<lambda>: must return a State, and returns a tuple of 0
    """
    _check_record(algorithm)

    def init(*args: PyTree) -> State:
        state = algorithm.init(*args)
        if not isinstance(state, State):
            raise _error("init", algorithm.init, "a State", state)
        _check_arrays("init", algorithm.init, state)
        for field in ("clients", "profiles") if num_clients is not None else ():
            _check_clients(algorithm.init, field, getattr(state, field), num_clients)
        return state

    def send(*args: PyTree) -> PyTree:
        message = algorithm.send(*args)
        _check_arrays("send", algorithm.send, message)
        return message

    def train(round: PyTree, message: PyTree, client: PyTree, data: PyTree) -> PyTree:
        result = algorithm.train(round, message, client, data)
        _check_arity("train", algorithm.train, ("the client's state", "an upload", "Info"), result)
        new, upload, info = result
        _check_structure("train", algorithm.train, "the client's state", client, new)
        _check_arrays("train", algorithm.train, upload)
        _check_info("train", algorithm.train, info)
        return new, upload, info

    def receive(round: PyTree, server: PyTree, profile: PyTree, upload: PyTree, weight: PyTree) -> PyTree:
        result = algorithm.receive(round, server, profile, upload, weight)
        _check_arity("receive", algorithm.receive, ("the client's profile", "a contribution"), result)
        new, contribution = result
        _check_structure("receive", algorithm.receive, "the client's profile", profile, new)
        _check_arrays("receive", algorithm.receive, contribution)
        return new, contribution

    def merge(round: PyTree, server: PyTree, total: PyTree) -> PyTree:
        result = algorithm.merge(round, server, total)
        _check_arity("merge", algorithm.merge, ("the server's state", "Info or None"), result)
        new, info = result
        _check_structure("merge", algorithm.merge, "the server's state", server, new)
        if info is not None:
            _check_info("merge", algorithm.merge, info)
        return new, info

    functions = {"init": init, "send": send, "train": train, "receive": receive, "merge": merge}
    wrappers = {name: functools.wraps(getattr(algorithm, name))(f) for name, f in functions.items()}
    models = {name: _predict_with_checks(name, f) for name, f in algorithm.predict.items()}
    return algorithm._replace(**wrappers, predict=models)


def _predict_with_checks(name: str, predict: PyTree) -> PyTree:
    @functools.wraps(predict)
    def predict_with_checks(server: PyTree, client: PyTree, x: PyTree) -> PyTree:
        logits = predict(server, client, x)
        if np.ndim(logits) != 2 or np.shape(logits)[0] != len(x):
            raise _error(f"predict[{name!r}]", predict, f"logits [{len(x)}, classes]", logits)
        return logits

    return predict_with_checks


def name_of(function: Callable[..., Any]) -> str:
    """A function's name, preceded by the name of the factory or of the module that made the function.

    >>> name_of(with_checks)
    'with_checks'
    """
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__name__).replace(".<locals>", "")
    module = getattr(function, "__module__", "__main__").rpartition(".")[2]
    is_private = name.startswith("_") and "." not in name
    return f"{module}.{name.lstrip('_')}" if is_private else name


def _check_record(algorithm: PyTree) -> None:
    if not isinstance(algorithm, FederatedAlgorithm):
        raise UserError(f"algorithm: must be a FederatedAlgorithm, and is {_describe(algorithm)}")
    if not isinstance(algorithm.schedule, Schedule):
        raise UserError(f"schedule: must be a Schedule, and is {_describe(algorithm.schedule)}")
    predict = algorithm.predict
    if not isinstance(predict, Mapping) or not {"global", "personal"} & set(predict):
        raise UserError('predict: must map "global" or "personal", or both, to functions')


def _check_arity(role: str, function: PyTree, parts: tuple[str, ...], result: PyTree) -> None:
    # A named tuple is one value: a state that is returned alone.
    if not isinstance(result, (tuple, list)) or hasattr(result, "_fields") or len(result) != len(parts):
        constraint = f"{len(parts)} values, {', '.join(parts[:-1])} and {parts[-1]}"
        raise _error(role, function, constraint, result)


def _check_arrays(role: str, function: PyTree, result: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(result)[0]:
        if not (hasattr(leaf, "dtype") or isinstance(leaf, (bool, int, float))):
            name = jax.tree_util.keystr(path) or "its result"
            raise _error(role, function, f"arrays alone, {name} included", leaf)


def _check_clients(function: PyTree, field: str, states: PyTree, num_clients: int | None) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(states)[0]:
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] != num_clients:
            name = f"{field}{jax.tree_util.keystr(path)} as [{num_clients}, ...], one entry per client"
            raise _error("init", function, name, leaf)


def _check_structure(role: str, function: PyTree, part: str, argument: PyTree, result: PyTree) -> None:
    if jax.tree.structure(result) != jax.tree.structure(argument):
        raise _error(role, function, f"{part} like its argument, {_describe(argument)}", result)
    leaves, results = (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (argument, result))
    for (path, leaf), (_, other) in zip(leaves, results):
        kinds = [f"{jnp.result_type(value)}{list(np.shape(value))}" for value in (leaf, other)]
        if kinds[0] != kinds[1]:
            name = f"{part}{jax.tree_util.keystr(path)}"
            raise UserError(
                f"{role}={name_of(function)}: must return {name} as {kinds[0]}, and returns {kinds[1]}"
            )


def _check_info(role: str, function: PyTree, info: PyTree) -> None:
    if not isinstance(info, Info):
        raise _error(role, function, "facts as Info", info)
    if not isinstance(info.extra, Mapping):
        raise _error(role, function, "Info.extra as a mapping from names to numbers", info.extra)
    loss = {} if info.loss is None else {"loss": info.loss}
    for name, value in {**loss, **info.extra}.items():
        if np.shape(value) or not (hasattr(value, "dtype") or isinstance(value, (int, float))):
            raise _error(role, function, f"a number as metric {name!r}", value)
    for name in set(info.extra) & set(RESERVED):
        raise UserError(f"{role}={name_of(function)}: must not use the name {name!r} in Info.extra")


def _error(role: str, function: PyTree, constraint: str, result: PyTree) -> UserError:
    return UserError(f"{role}={name_of(function)}: must return {constraint}, and returns {_describe(result)}")


def _describe(result: PyTree) -> str:
    if hasattr(result, "shape") and hasattr(result, "dtype"):
        return f"an array {list(result.shape)}"
    if result is None or isinstance(result, (bool, int, float, str)):
        return repr(result)
    name = type(result).__name__
    size = f" of {len(result)}" if hasattr(result, "__len__") else ""
    arrays = len(jax.tree.leaves(result))
    content = f" with {arrays} arrays" if arrays != getattr(result, "__len__", lambda: arrays)() else ""
    return f"a {name}{size}{content}"
