"""Compiled programs as text: the computations and instructions of XLA's HLO."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_ARRAY = re.compile(r"(?P<dtype>[a-z][a-z0-9]*)\[(?P<dims>[\d,<=\s]*)\]")
_HEADER = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_OPENING, _CLOSING = "([{", ")]}"


class Array(NamedTuple):
    """The type of one array.

    Attributes:
      dtype: Such as ``"f32"``.
      dims: Its dimensions.
    """

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> float:
        """Bytes in memory."""
        width = re.search(r"\d+", self.dtype)
        bits = int(width[0]) if width else {"pred": 8}.get(self.dtype, 0)
        return self.size * bits / 8


class Instruction(NamedTuple):
    """An instruction.

    Attributes:
      name: Its name, unique within the program.
      opcode: Such as ``"fusion"``.
      arrays: The arrays of its result; several for a tuple.
      operands: The names of its operands.
      attributes: The text after its operands.
      is_root: Whether its result is that of its computation.
      literal: The text in its parentheses: a constant's value, a parameter's number.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool
    literal: str

    @property
    def num_bytes(self) -> float:
        """Bytes of the result."""
        return sum(array.num_bytes for array in self.arrays)

    def attribute(self, key: str) -> str | None:
        """The text of an attribute ``key=value``; None without it."""
        match = re.search(rf"(?:^|, ){key}=", self.attributes)
        if match is None:
            return None
        rest = self.attributes[match.end() :]
        return rest[: _end(rest, stop=",")]

    def dimensions(self, key: str) -> tuple[int, ...]:
        """The numbers of an attribute ``key={1,2}``; none without it."""
        return tuple(map(int, re.findall(r"\d+", self.attribute(key) or "")))

    def computations(self, key: str) -> list[str]:
        """The names of the computations of an attribute."""
        return _NAME.findall(self.attribute(key) or "")

    @property
    def backend(self) -> dict[str, Any]:
        """The configuration that XLA's backend has added."""
        text = self.attribute("backend_config") or ""
        try:
            content = json.loads(text)
        except json.JSONDecodeError:
            return {}
        return content if isinstance(content, dict) else {}


class Computation(NamedTuple):
    """A computation.

    Attributes:
      name: Its name.
      instructions: Its instructions by name, in their order.
    """

    name: str
    instructions: Mapping[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose result is that of the computation."""
        return next(i for i in self.instructions.values() if i.is_root)

    def users(self, name: str) -> list[Instruction]:
        """The instructions that have an operand."""
        return [i for i in self.instructions.values() if name in i.operands]

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions of an instruction's operands."""
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]

    def parameter(self, number: int) -> Instruction | None:
        """A parameter by its number."""
        text = str(number)
        return next(
            (i for i in self.instructions.values() if i.opcode == "parameter" and i.literal == text), None
        )


class Module(NamedTuple):
    """A compiled program.

    Attributes:
      computations: Its computations by name.
      entry: The computation that runs first.
    """

    computations: Mapping[str, Computation]
    entry: Computation


def turns(module: Module, loop: Instruction) -> int | None:
    """The number of turns of a ``while``; None where the data decide it."""
    count = loop.backend.get("known_trip_count", {}).get("n")
    if count is not None:
        return int(count)
    # The compiler for TPUs writes the bound into the condition alone; loops of jax start from 0.
    (name,) = loop.computations("condition")
    condition = module.computations[name]
    bounds = [
        operand.literal for operand in condition.operands(condition.root) if operand.opcode == "constant"
    ]
    is_counted = condition.root.opcode == "compare" and condition.root.attribute("direction") == "LT"
    return int(bounds[0]) if is_counted and len(bounds) == 1 and bounds[0].isdigit() else None


def parse(text: str) -> Module:
    """Reads a compiled program.

    >>> module = parse('''ENTRY %main (a: f32[2]) -> f32[2] {
    ...   %a = f32[2]{0} parameter(0)
    ...   ROOT %b = f32[2]{0} negate(%a)
    ... }''')
    >>> module.entry.root.opcode, module.entry.root.num_bytes
    ('negate', 8.0)
    """
    computations: dict[str, Computation] = {}
    entry = None
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            instructions = {}
            computations[header["name"]] = Computation(header["name"], instructions)
            entry = header["name"] if header["entry"] else entry
        elif match := _INSTRUCTION.match(line):
            instruction = _instruction(match)
            instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError("the text has no ENTRY computation")
    return Module(computations, computations[entry])


def _instruction(match: re.Match[str]) -> Instruction:
    rest = match["rest"]
    end = _end(rest, stop=" ")
    arrays, rest = tuple(_arrays(rest[:end])), rest[end + 1 :]
    opcode, _, rest = rest.partition("(")
    end = _end(rest, stop=")")
    literal, attributes = rest[:end], rest[end + 1 :].removeprefix(", ")
    operands = () if opcode in ("constant", "parameter") else tuple(_NAME.findall(literal))
    return Instruction(match["name"], opcode, arrays, operands, attributes, bool(match["root"]), literal)


def _arrays(text: str) -> Iterator[Array]:
    """The arrays of a type, which may be a tuple."""
    for match in _ARRAY.finditer(text):
        dims = [int(n) for n in re.findall(r"\d+", match["dims"])]
        yield Array(match["dtype"], tuple(dims))


def _end(text: str, *, stop: str) -> int:
    """The position of the first stop outside brackets and quotes; the end of the text without one."""
    depth, quoted, escaped = 0, False, False
    for place, character in enumerate(text):
        if quoted:
            quoted, escaped = escaped or character != '"', character == "\\" and not escaped
        elif character == stop and depth == 0:
            return place
        elif character == '"':
            quoted = True
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
    return len(text)
