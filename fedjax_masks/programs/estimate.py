"""Costs of a compiled program on a chip that is not there: kernels, bytes, FLOPs, and a bound on seconds."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from fedjax_masks.programs.chips import Chip
from fedjax_masks.programs.hlo import Computation, Instruction, Module, turns
from fedjax_masks.programs.products import Product, products
from fedjax_masks.programs.traffic import num_bytes

_NO_KERNEL = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier"),
    *("partition-id", "replica-id", "add-dependency", "async-update"),
}


class Costs(NamedTuple):
    """Costs of a part of a program.

    Attributes:
      kernels: Kernels that are launched.
      bytes: Bytes through the chip's memory.
      flops: FLOPs of products and convolutions.
      turns: Turns of loops whose end the host decides.
      launch_s: Seconds of the kernels that are shorter than their launch, and of the turns.
      traffic_s: Seconds of the kernels that memory bounds.
      compute_s: Seconds of the kernels that products bound.
    """

    kernels: float = 0.0
    bytes: float = 0.0
    flops: float = 0.0
    turns: float = 0.0
    launch_s: float = 0.0
    traffic_s: float = 0.0
    compute_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of all kernels and turns."""
        return self.launch_s + self.traffic_s + self.compute_s

    @property
    def bound(self) -> str:
        """The largest part of the seconds: launches, memory or products."""
        parts = {"launches": self.launch_s, "memory": self.traffic_s, "products": self.compute_s}
        return max(parts, key=parts.__getitem__)

    def plus(self, other: "Costs") -> "Costs":
        """The costs of two parts."""
        return Costs(*(a + b for a, b in zip(self, other)))

    def times(self, number: float) -> "Costs":
        """The costs of several turns."""
        return Costs(*(number * value for value in self))


class _Part(NamedTuple):
    """The costs of a part of a program, the calls of its products, and the seconds of its branches."""

    costs: Costs = Costs()
    products: Mapping[Product, float] = MappingProxyType({})
    branches: Mapping[str, float] = MappingProxyType({})

    def times(self, number: float) -> "_Part":
        calls = {product: number * count for product, count in self.products.items()}
        branches = {name: number * seconds for name, seconds in self.branches.items()}
        return _Part(self.costs.times(number), calls, branches)


def _total(parts: Iterable[_Part]) -> _Part:
    """The costs of several parts."""
    costs, calls, branches = Costs(), defaultdict[Product, float](float), defaultdict[str, float](float)
    for part in parts:
        costs = costs.plus(part.costs)
        for product, count in part.products.items():
            calls[product] += count
        for name, seconds in part.branches.items():
            branches[name] += seconds
    return _Part(costs, calls, branches)


class Estimate(NamedTuple):
    """Costs of a program, and its products.

    Attributes:
      costs: The costs.
      products: The number of calls of each matrix product and convolution, a mean over turns of loops.
      branches: Seconds that each branch adds where it takes its longest way instead of its shortest.
      host_loops: The number of loops whose end the host decides.
    """

    costs: Costs
    products: Mapping[Product, float]
    branches: Mapping[str, float]
    host_loops: int


def estimate(
    module: Module,
    chip: Chip,
    *,
    trips: float,
    outer_trips: float | None = None,
    branch: Callable[..., _Part] = max,
    share: float = 1.0,
) -> Estimate:
    """Estimates the costs of a program.

    A kernel takes as long as the longest of three: its launch, its bytes at the chip's bandwidth, and its
    FLOPs at the chip's rate for their precision. Real kernels reach neither rate, so that real seconds are
    more.

    Args:
      module: The program.
      chip: The chip.
      trips: The number of turns of loops without a constant one.
      outer_trips: The number of turns of such loops that no other loop contains; None for ``trips``.
      branch: The choice among the alternatives of a branch by their seconds: ``max``, or ``min``.
      share: The share of its bytes and FLOPs that a kernel has, as with fewer clients at once.
    """
    outer = trips if outer_trips is None else outer_trips
    walk = _Walk(module, chip, trips, outer, branch, share)
    part = walk.computation(module.entry.name)
    return Estimate(part.costs, part.products, part.branches, len(walk.host_loops))


class _Walk:
    """A walk through a program, which visits every computation once."""

    def __init__(
        self,
        module: Module,
        chip: Chip,
        trips: float,
        outer_trips: float,
        branch: Callable[..., _Part],
        share: float,
    ) -> None:
        self._module, self._chip, self._branch, self._share = module, chip, branch, share
        self._trips, self._outer_trips = trips, outer_trips
        self._visited: dict[str, _Part] = {}
        self.host_loops: set[str] = set()

    def computation(self, name: str) -> _Part:
        """The costs of a computation."""
        if name not in self._visited:
            computation = self._module.computations[name]
            parts = [self._instruction(computation, i) for i in computation.instructions.values()]
            self._visited[name] = _total(parts)
        return self._visited[name]

    def _instruction(self, computation: Computation, instruction: Instruction) -> _Part:
        opcode = instruction.opcode
        if opcode == "while":
            is_outer = computation is self._module.entry
            return self._loop(instruction, self._outer_trips if is_outer else self._trips)
        if opcode == "conditional":
            keys = ("branch_computations", "true_computation", "false_computation")
            sides = [self.computation(name) for key in keys for name in instruction.computations(key)]
            times = [side.costs.seconds for side in sides]
            side = self._branch(sides, key=lambda side: side.costs.seconds)
            return _total([side, _Part(branches={instruction.name: max(times) - min(times)})])
        if opcode in ("call", "async-start"):
            names = instruction.computations("to_apply" if opcode == "call" else "calls")
            return _total([self.computation(name) for name in names])
        if opcode in _NO_KERNEL or opcode.endswith("-done"):
            return _Part()
        return _kernel(self._module, computation, instruction, self._chip, self._share)

    def _loop(self, instruction: Instruction, trips: float) -> _Part:
        known = turns(self._module, instruction)
        (body,) = instruction.computations("body")
        if known is not None:  # nothing computes the condition of such a loop
            return self.computation(body).times(known)
        self.host_loops.add(instruction.name)
        (condition,) = instruction.computations("condition")
        turn = _Part(Costs(turns=1, launch_s=self._chip.turn))
        return _total([self.computation(body), self.computation(condition), turn]).times(trips)


def _kernel(
    module: Module, computation: Computation, instruction: Instruction, chip: Chip, share: float
) -> _Part:
    calls = Counter(products(module, computation, instruction))
    moved = share * num_bytes(module, computation, instruction)
    seconds = {
        "launch_s": chip.launch,
        "traffic_s": moved / chip.bandwidth,
        "compute_s": share * sum(n * p.flops / chip.flops[p.precision] for p, n in calls.items()),
    }
    bound = max(seconds, key=seconds.__getitem__)
    flops = share * sum(n * p.flops for p, n in calls.items())
    return _Part(Costs(kernels=1, bytes=moved, flops=flops)._replace(**{bound: seconds[bound]}), calls)
