"""Counting the FLOPs of a program from its jaxpr.

The count includes the matrix products and convolutions on which a result depends, a multiply-add as two
FLOPs. As in the literature, it leaves out element-wise operations. Traffic is the size of the outputs of the
same operations, once written and once read: for the layers of a network, the activations, the gradients of
the activations, and the gradients of the parameters.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from fedjax_masks.core.types import PyTree


def count_flops(function: Callable[..., Any], *args: PyTree) -> float:
    """The FLOPs of one call; the body of a loop with a traced trip count counts once.

    Args:
      function: Any traceable function.
      *args: Its arguments, or their shapes as ``jax.ShapeDtypeStruct``.

    >>> x = jax.ShapeDtypeStruct((2, 3), "float32")
    >>> count_flops(lambda a: a @ a.T, x)
    24.0
    """
    return trace(function, *args).flops


class Trace(NamedTuple):
    """A traced function with its costs.

    Attributes:
      call: The function, evaluated from its trace.
      result: The shapes of the result, as ``jax.ShapeDtypeStruct``.
      flops: FLOPs of one call, as :func:`count_flops` counts them.
      traffic: Bytes that one call writes to memory and reads from memory.
    """

    call: Callable[..., Any]
    result: PyTree
    flops: float
    traffic: float


def trace(function: Callable[..., Any], *args: PyTree) -> Trace:
    """Traces a function once, for arguments of the given shapes, and counts its FLOPs.

    >>> import jax.numpy as jnp
    >>> squares = trace(lambda a: a @ a, jnp.ones((2, 2)))
    >>> squares.flops, squares.call(jnp.ones((2, 2))).tolist()
    (16.0, [[2.0, 2.0], [2.0, 2.0]])
    """
    program, result = jax.make_jaxpr(function, return_shape=True)(*args)

    def call(*args: PyTree) -> PyTree:
        leaves = core.jaxpr_as_fun(program)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(result), leaves)

    return Trace(call, result, *map(float, _jaxpr_cost(program.jaxpr)))


def _jaxpr_cost(jaxpr: core.Jaxpr) -> np.ndarray:
    """The FLOPs and the traffic of a program, ``float64[2]``."""
    return sum((_equation_cost(equation) for equation in _live_equations(jaxpr)), start=np.zeros(2))


def _live_equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """The equations that results depend on, in reverse order."""
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
    output: PyTree = equation.outvars[0].aval
    return np.array([flops, 2.0 * math.prod(output.shape) * output.dtype.itemsize])


# The operands that give the size of the output and of the kernel. Convolutions of ``ops.conv`` count with the
# FLOPs of their definition, however they are computed.
_CONVOLUTIONS: Mapping[str, Callable[[core.JaxprEqn], tuple[Any, Any]]] = {
    "conv2d_forward": lambda equation: (equation.outvars[0], equation.invars[1]),
    "conv2d_input_gradient": lambda equation: (equation.invars[0], equation.invars[1]),
    "conv2d_kernel_gradient": lambda equation: (equation.invars[0], equation.invars[1]),
}


def shape_of(variable: PyTree) -> tuple[int, ...]:
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
    """All equations of a program, including those of inner programs."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in subjaxprs(equation):
            yield from equations(inner)


def is_call(equation: core.JaxprEqn, function: Callable[..., Any]) -> bool:
    """Whether an equation calls a function wrapped by ``jax.jit``, judged by the function's name."""
    return equation.primitive.name == "jit" and equation.params["name"] == function.__name__


def subjaxprs(equation: core.JaxprEqn) -> list[core.Jaxpr]:
    """The programs directly inside an equation."""
    programs = []
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                programs.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                programs.append(item)
    return programs
