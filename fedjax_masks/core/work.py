"""The work of a function's training loops, collected from the function's program.

A loop marks its work in the program by a call that changes nothing (:func:`mark_work`). The engine evaluates
the program and adds up the marks: each iteration of an outer loop adds its marks, and only the branch that is
taken adds its marks.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from fedjax_masks.core import branches, trees
from fedjax_masks.core.algorithm import Work
from fedjax_masks.core.errors import UserError
from fedjax_masks.core.flops import equations, is_call, subjaxprs
from fedjax_masks.core.types import PyTree


@jax.jit  # the name of the call in a program is the mark
def mark_work(loss: jax.Array, work: Work) -> tuple[jax.Array, Work]:
    """Marks work in the program that is being traced.

    Args:
      loss: A result of the work. Under a ``vmap``, its size shows the number of repetitions.
      work: The work of one repetition.

    Returns:
      The arguments.
    """
    return loss, work


class WorkCount(NamedTuple):
    """A traced function, with the sum of all work that it marks.

    Attributes:
      program: The function's program.
      call: ``(*args) -> (result, Work)``; the work is zero where the function marks none.
      result: The shapes of the result, as ``jax.ShapeDtypeStruct``.
      has_work: Whether the function marks any work.
    """

    program: core.Jaxpr
    call: Callable[..., tuple[Any, Work]]
    result: PyTree
    has_work: bool


def count(function: Callable[..., Any], *args: PyTree) -> WorkCount:
    """Traces a function and adds up the work that it marks.

    Args:
      function: Any traceable function.
      *args: Its arguments, or their shapes as ``jax.ShapeDtypeStruct``.

    >>> def train(x):
    ...     for n in (1, 2):
    ...         mark_work(x, Work(*[jnp.float32(n)] * 5))
    ...     return x
    >>> float(count(train, jnp.ones(())).call(jnp.ones(()))[1].steps)
    3.0
    """
    program, result = jax.make_jaxpr(function, return_shape=True)(*args)
    structure, has_work = jax.tree.structure(result), _has_marks(program.jaxpr)

    def call(*args: PyTree) -> tuple[Any, Work]:
        leaves = jax.tree.leaves(args)
        if not has_work:
            return structure.unflatten(core.jaxpr_as_fun(program)(*leaves)), no_work()
        results, work = _evaluate(program.jaxpr, program.consts, *leaves)
        return structure.unflatten(results), work

    return WorkCount(program.jaxpr, call, result, has_work)


def no_work() -> Work:
    """The work of no training at all: zeros."""
    return Work(*[jnp.zeros((), jnp.float32)] * len(Work._fields))


def _has_marks(jaxpr: core.Jaxpr) -> bool:
    return any(is_call(equation, mark_work) for equation in equations(jaxpr))


def _mark_value(loss: PyTree, *work: PyTree) -> Work:
    """The work of a mark, over all repetitions.

    A ``vmap`` gives its axis to the loss, and to a count only if the count depends on the mapped values.
    """
    repeats = [np.size(loss) // max(np.size(count), 1) for count in work]
    return Work(*(jnp.sum(count, dtype=jnp.float32) * number for count, number in zip(work, repeats)))


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], *args: PyTree) -> tuple[list[Any], Work]:
    """Evaluates a program: its results, and the sum of the work that it marks."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    total = no_work()

    def value_of(atom: PyTree) -> PyTree:
        # With its dtype, so that a loop's carry does not start weakly typed.
        return values[atom] if isinstance(atom, core.Var) else np.asarray(atom.val, atom.aval.dtype)

    for equation in jaxpr.eqns:
        inputs = [value_of(atom) for atom in equation.invars]
        if is_call(equation, mark_work):
            outputs, work = inputs, _mark_value(*inputs)
        elif any(map(_has_marks, subjaxprs(equation))):
            outputs, work = _rule(equation)(equation.params, *inputs)
        else:
            outputs, work = _evaluate_equation(jaxpr, equation, inputs), None
        values.update(zip(equation.outvars, outputs, strict=True))
        total = total if work is None else trees.add(total, work)
    return [value_of(atom) for atom in jaxpr.outvars], total


def _evaluate_equation(jaxpr: core.Jaxpr, equation: core.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """Evaluates one equation of a program."""
    variables = {atom: value for atom, value in zip(equation.invars, inputs) if isinstance(atom, core.Var)}
    program = jaxpr.replace(
        constvars=[], invars=[*variables], outvars=equation.outvars, eqns=[equation], effects=equation.effects
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(program, ()))(*variables.values())


Rule = Callable[..., tuple[list[Any], Work]]
"""``(params, *inputs) -> (results, work)`` of an equation that contains programs."""


def _call(params: dict[str, Any], *inputs: PyTree) -> tuple[list[Any], Work]:
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    return _closed(inner)(*inputs)


def _closed(program: PyTree) -> Callable[..., tuple[list[Any], Work]]:
    if isinstance(program, core.ClosedJaxpr):
        return partial(_evaluate, program.jaxpr, program.consts)
    return partial(_evaluate, program, ())


def _cond(params: dict[str, Any], index: PyTree, *inputs: PyTree) -> tuple[list[Any], Work]:
    return branches.switch(index, [_closed(branch) for branch in params["branches"]], *inputs)


def _scan(params: dict[str, Any], *inputs: PyTree) -> tuple[list[Any], Work]:
    first, number = params["num_consts"], params["num_carry"]
    consts, init, xs = inputs[:first], inputs[first : first + number], inputs[first + number :]
    step = _closed(params["jaxpr"])

    def body(carry: PyTree, x: PyTree) -> PyTree:
        state, total = carry
        outputs, work = step(*consts, *state, *x)
        return (outputs[:number], trees.add(total, work)), outputs[number:]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    (state, total), ys = jax.lax.scan(body, (list(init), no_work()), list(xs), **options)
    return [*state, *ys], total


def _while(params: dict[str, Any], *inputs: PyTree) -> tuple[list[Any], Work]:
    first = params["cond_nconsts"]
    second = first + params["body_nconsts"]
    condition, step = core.jaxpr_as_fun(params["cond_jaxpr"]), _closed(params["body_jaxpr"])

    def body(carry: PyTree) -> PyTree:
        state, total = carry
        outputs, work = step(*inputs[first:second], *state)
        return outputs, trees.add(total, work)

    return jax.lax.while_loop(
        lambda carry: condition(*inputs[:first], *carry[0])[0], body, (list(inputs[second:]), no_work())
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
            f"train: must not train inside {equation.primitive.name}, where work cannot be counted; "
            "use cond, switch, scan, fori_loop, while_loop, vmap, jit or checkpoint"
        )
    return _RULES[equation.primitive.name]
