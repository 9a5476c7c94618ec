"""Counting the FLOPs of a program from its jaxpr.

Counted are matrix products and convolutions on which a result depends, a multiply-add as two
FLOPs; what goes by element is left out, as in the literature. Their traffic is counted beside them: what
they write, once written and once read, which for the layers of a network is its activations, their
gradients, and those of the parameters.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of one call; bodies of loops with a traced trip count are counted once.

    Args:
      function: Any traceable function.
      *args: Its arguments, or their shapes as ``jax.ShapeDtypeStruct``.

    >>> x = jax.ShapeDtypeStruct((2, 3), "float32")
    >>> count_flops(lambda a: a @ a.T, x)
    24.0
    """
    return trace(function, *args).flops


class Traced(NamedTuple):
    """A function that is not traced again.

    Attributes:
      call: The function, from what its trace has recorded.
      out: The shapes of its result, as ``jax.ShapeDtypeStruct``.
      flops: FLOPs of one call, as :func:`count_flops` counts.
      traffic: Bytes that go through memory.
    """

    call: Callable[..., Any]
    out: Any
    flops: float
    traffic: float


def trace(function: Callable[..., Any], *args: Any) -> Traced:
    """Traces a function for arguments of these shapes, once, and counts its FLOPs.

    >>> import jax.numpy as jnp
    >>> squares = trace(lambda a: a @ a, jnp.ones((2, 2)))
    >>> squares.flops, squares.call(jnp.ones((2, 2))).tolist()
    (16.0, [[2.0, 2.0], [2.0, 2.0]])
    """
    program, out = jax.make_jaxpr(function, return_shape=True)(*args)

    def call(*args: Any) -> Any:
        leaves = core.jaxpr_as_fun(program)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out), leaves)

    return Traced(call, out, *map(float, _jaxpr_cost(program.jaxpr)))


def _jaxpr_cost(jaxpr: core.Jaxpr) -> np.ndarray:
    """``[2]``: FLOPs and traffic."""
    return sum((_equation_cost(equation) for equation in _live(jaxpr)), start=np.zeros(2))


def _live(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """The equations that results depend on, last first."""
    needed = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(variable) in needed for variable in equation.outvars):
            needed |= {id(variable) for variable in equation.invars}
            yield equation


def _equation_cost(equation: core.JaxprEqn) -> np.ndarray:
    name = equation.primitive.name
    if name == "jit" and equation.params["name"] in _CONVOLUTIONS:
        output, kernel = _CONVOLUTIONS[equation.params["name"]](equation)
        return _product(equation, 2.0 * math.prod(shape_of(output)) * math.prod(shape_of(kernel)[-4:-1]))
    if name == "dot_general":
        return _product(equation, _dot_flops(equation))
    if name == "conv_general_dilated":
        return _product(equation, _conv_flops(equation))
    inner = [_jaxpr_cost(jaxpr) for jaxpr in subjaxprs(equation)]
    if name == "cond":
        return np.max(inner, axis=0)
    return sum(inner, start=np.zeros(2)) * (equation.params["length"] if name == "scan" else 1)


def _product(equation: core.JaxprEqn, flops: float) -> np.ndarray:
    output: Any = equation.outvars[0].aval
    return np.array([flops, 2.0 * math.prod(output.shape) * output.dtype.itemsize])


# Convolutions of ``ops.conv``: output and kernel. Their FLOPs are those of the definition.
_CONVOLUTIONS: Mapping[str, Callable[[core.JaxprEqn], tuple[Any, Any]]] = {
    "conv2d_forward": lambda equation: (equation.outvars[0], equation.invars[1]),
    "conv2d_input_gradient": lambda equation: (equation.invars[0], equation.invars[1]),
    "conv2d_kernel_gradient": lambda equation: (equation.invars[0], equation.invars[1]),
}


def shape_of(variable: Any) -> tuple[int, ...]:
    """The shape of a variable of a program."""
    return variable.aval.shape


def _dot_flops(equation: core.JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    depth = math.prod(shape_of(equation.invars[0])[axis] for axis in contracted)
    return 2.0 * depth * math.prod(shape_of(equation.outvars[0]))


def _conv_flops(equation: core.JaxprEqn) -> float:
    kernel = shape_of(equation.invars[1])
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(shape_of(equation.outvars[0])) * math.prod(kernel) / out_features


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """All equations of a program, those of the programs inside it included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in subjaxprs(equation):
            yield from equations(inner)


def is_call(equation: core.JaxprEqn, function: Callable[..., Any]) -> bool:
    """Whether an equation calls a function that ``jax.jit`` has wrapped, which its name shows."""
    return equation.primitive.name == "jit" and equation.params["name"] == function.__name__


def subjaxprs(equation: core.JaxprEqn) -> list[core.Jaxpr]:
    """The programs right inside an equation."""
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
