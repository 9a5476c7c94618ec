"""Work that a client's training does, collected from its program, however often and wherever it trains.

Training marks its work in the program by a call that changes nothing (:func:`counted_work`). The engine
evaluates the program and adds up what was marked: in a loop each iteration, of a branch the one taken.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from fedjax_masks.core import trees
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.flops import equations, is_call, subjaxprs


class Work(NamedTuple):
    """Work of one client.

    Attributes:
      steps: ``float32[]``: optimiser steps taken.
      examples: ``float32[]``: examples seen, over all epochs.
      slots: ``float32[]``: places for examples in the batches that were computed; the excess over
        ``examples`` was padding.
      flops: ``float32[]``: FLOPs; see :mod:`fedjax_masks.core.flops`.
      traffic: ``float32[]``: bytes through memory.
    """

    steps: jax.Array
    examples: jax.Array
    slots: jax.Array
    flops: jax.Array
    traffic: jax.Array


@jax.jit  # its name in a program is the mark
def counted_work(loss: jax.Array, work: Work) -> tuple[jax.Array, Work]:
    """Marks work in the program that is being traced.

    Args:
      loss: A result of the work. Where a ``vmap`` does the work many times, this shows how often.
      work: The work of one time.

    Returns:
      The arguments.
    """
    return loss, work


class Counted(NamedTuple):
    """A client's training function, traced, whose metrics hold all of its work.

    Attributes:
      program: What ``train`` does.
      call: ``(*args) -> (client, upload, metrics)``.
      out: The shapes of its result, as ``jax.ShapeDtypeStruct``.
    """

    program: core.Jaxpr
    call: Callable[..., Any]
    out: Any


def count(train: Callable[..., Any], *args: Any) -> Counted:
    """Traces a client's training function and adds its work to its metrics.

    Args:
      train: ``(*args) -> (client, upload, metrics)``.
      *args: Its arguments, or their shapes as ``jax.ShapeDtypeStruct``.

    Returns:
      The function. Where ``train`` marks work, the sum of all of it stands in the metrics in place of
      what ``train`` itself reports under the names of :class:`Work`.

    >>> def train(x):
    ...     halves = [counted_work(x, Work(*[jnp.float32(n)] * 5)) for n in (1, 2)]
    ...     return (), x, {"steps": halves[0][1].steps}
    >>> float(count(train, jnp.ones(())).call(jnp.ones(()))[2]["steps"])
    3.0
    """
    program, out = jax.make_jaxpr(train, return_shape=True)(*args)
    structure, marked = jax.tree.structure(out), _has_marks(program.jaxpr)

    def call(*args: Any) -> Any:
        if not marked:
            return structure.unflatten(core.jaxpr_as_fun(program)(*jax.tree.leaves(args)))
        leaves, work = _evaluate(program.jaxpr, program.consts, *jax.tree.leaves(args))
        return _reported(structure.unflatten(leaves), work)

    return Counted(program.jaxpr, call, _reported(out, jax.eval_shape(_nothing)) if marked else out)


def _reported(result: Any, work: Work) -> Any:
    client, upload, metrics = result
    return client, upload, {**metrics, **work._asdict()}


def _has_marks(jaxpr: core.Jaxpr) -> bool:
    return any(is_call(equation, counted_work) for equation in equations(jaxpr))


def _marked(loss: Any, *work: Any) -> Work:
    """The work of a mark. Under a ``vmap`` that the counts do not depend on, they have no axis for it."""
    times = [np.size(loss) // max(np.size(count), 1) for count in work]
    return Work(*(jnp.sum(count, dtype=jnp.float32) * number for count, number in zip(work, times)))


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], *args: Any) -> tuple[list[Any], Work]:
    """Evaluates a program: its results, and the sum of the work that it marks."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    total = _nothing()

    def read(atom: Any) -> Any:
        # With its dtype, so that a loop's carry does not start weakly typed.
        return values[atom] if isinstance(atom, core.Var) else np.asarray(atom.val, atom.aval.dtype)

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        if is_call(equation, counted_work):
            outs, spent = inputs, _marked(*inputs)
        elif any(map(_has_marks, subjaxprs(equation))):
            outs, spent = _rule(equation)(equation.params, *inputs)
        else:
            outs, spent = _alone(jaxpr, equation, inputs), None
        values.update(zip(equation.outvars, outs, strict=True))
        total = total if spent is None else trees.add(total, spent)
    return [read(atom) for atom in jaxpr.outvars], total


def _alone(jaxpr: core.Jaxpr, equation: core.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """Evaluates one equation of a program."""
    given = {atom: value for atom, value in zip(equation.invars, inputs) if isinstance(atom, core.Var)}
    program = jaxpr.replace(
        constvars=[], invars=[*given], outvars=equation.outvars, eqns=[equation], effects=equation.effects
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(program, ()))(*given.values())


def _nothing() -> Work:
    return Work(*[jnp.zeros((), jnp.float32)] * len(Work._fields))


Rule = Callable[..., tuple[list[Any], Work]]
"""``(params, *inputs) -> (results, work)`` of an equation with programs inside."""


def _call(params: dict[str, Any], *inputs: Any) -> tuple[list[Any], Work]:
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    return _closed(inner)(*inputs)


def _closed(program: Any) -> Callable[..., tuple[list[Any], Work]]:
    if isinstance(program, core.ClosedJaxpr):
        return partial(_evaluate, program.jaxpr, program.consts)
    return partial(_evaluate, program, ())


def _cond(params: dict[str, Any], index: Any, *inputs: Any) -> tuple[list[Any], Work]:
    return jax.lax.switch(index, [_closed(branch) for branch in params["branches"]], *inputs)


def _scan(params: dict[str, Any], *inputs: Any) -> tuple[list[Any], Work]:
    first, number = params["num_consts"], params["num_carry"]
    consts, init, xs = inputs[:first], inputs[first : first + number], inputs[first + number :]
    one = _closed(params["jaxpr"])

    def body(carry: Any, x: Any) -> Any:
        state, total = carry
        outs, spent = one(*consts, *state, *x)
        return (outs[:number], trees.add(total, spent)), outs[number:]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    (state, total), ys = jax.lax.scan(body, (list(init), _nothing()), list(xs), **options)
    return [*state, *ys], total


def _while(params: dict[str, Any], *inputs: Any) -> tuple[list[Any], Work]:
    first = params["cond_nconsts"]
    second = first + params["body_nconsts"]
    goes_on, one = core.jaxpr_as_fun(params["cond_jaxpr"]), _closed(params["body_jaxpr"])

    def body(carry: Any) -> Any:
        state, total = carry
        outs, spent = one(*inputs[first:second], *state)
        return outs, trees.add(total, spent)

    return jax.lax.while_loop(
        lambda carry: goes_on(*inputs[:first], *carry[0])[0], body, (list(inputs[second:]), _nothing())
    )


_RULES: dict[str, Rule] = {
    "cond": _cond,
    "scan": _scan,
    "while": _while,
    **dict.fromkeys(
        ("jit", "closed_call", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call"), _call
    ),
}


def _rule(equation: core.JaxprEqn) -> Rule:
    if equation.primitive.name not in _RULES:
        raise UserError(
            f"train: training inside {equation.primitive.name} must be countable; accepted are cond, "
            "switch, scan, fori_loop, while_loop, vmap, jit and checkpoint"
        )
    return _RULES[equation.primitive.name]
