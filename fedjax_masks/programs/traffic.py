"""Bytes that the kernels of a compiled program read and write."""

from fedjax_masks.programs.hlo import Computation, Instruction, Module

_VIEWS = ("bitcast", "reshape", "get-tuple-element", "tuple")
_SLICES = ("dynamic-slice", "slice", "gather")


def num_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes that a kernel moves, each operand read once and each result written once.

    Of an operand that the kernel slices, only the slices count. A result that updates an operand in place
    counts with the update alone.

    Args:
      module: The program.
      computation: The computation of the instruction.
      instruction: The kernel.
    """
    if instruction.opcode in _SLICES:
        return 2 * instruction.num_bytes + sum(o.num_bytes for o in computation.operands(instruction)[1:])
    if instruction.opcode in ("dynamic-update-slice", "scatter"):
        return 2 * _update_bytes(computation, instruction)
    operands = computation.operands(instruction)
    if instruction.opcode != "fusion":
        return instruction.num_bytes + sum(operand.num_bytes for operand in operands)
    (inner,) = (module.computations[name] for name in instruction.computations("calls"))
    reads = sum(_read(module, inner, number, operand) for number, operand in enumerate(operands))
    return reads + _written(module, inner, inner.root)


def _read(module: Module, inner: Computation, number: int, operand: Instruction) -> float:
    """Bytes that a fusion reads of an operand."""
    parameter = inner.parameter(number)
    return operand.num_bytes if parameter is None else min(operand.num_bytes, _used(module, inner, parameter))


def _used(module: Module, inner: Computation, value: Instruction) -> float:
    """Bytes of a value that the instructions of a fusion use; more than the value's if several use it."""
    total = 0.0
    for user in inner.users(value.name):
        place = user.operands.index(value.name)
        if user.opcode in _VIEWS:
            total += _used(module, inner, user)
        elif user.opcode in _SLICES and place == 0:
            total += user.num_bytes
        elif user.opcode in ("dynamic-update-slice", "scatter") and place == 0:
            continue  # in place
        elif user.opcode == "fusion":
            (nested,) = (module.computations[name] for name in user.computations("calls"))
            total += _read(module, nested, place, value)
        else:
            return value.num_bytes
    return total


def _written(module: Module, inner: Computation, root: Instruction) -> float:
    """Bytes that a fusion writes."""
    if root.opcode in _VIEWS and root.operands:
        return sum(_written(module, inner, inner.instructions[name]) for name in root.operands)
    if root.opcode in ("dynamic-update-slice", "scatter"):
        return _update_bytes(inner, root)
    if root.opcode == "fusion":
        (nested,) = (module.computations[name] for name in root.computations("calls"))
        return _written(module, nested, nested.root)
    return 0.0 if root.opcode == "parameter" else root.num_bytes


def _update_bytes(computation: Computation, instruction: Instruction) -> float:
    """Bytes of the updates of an instruction that changes its first operand in place."""
    place = 1 if instruction.opcode == "dynamic-update-slice" else -1
    operands = computation.operands(instruction)
    return operands[place].num_bytes if len(operands) > 1 else instruction.num_bytes
