"""Costs of a compiled program on a chip that is not there: kernels, bytes, FLOPs, and a bound on seconds."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from fedjax_masks.aot.chips import Chip
from fedjax_masks.aot.hlo import Computation, Instruction, Module, turns
from fedjax_masks.aot.products import Product, products
from fedjax_masks.aot.traffic import num_bytes

_NO_KERNEL = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier"),
    *("partition-id", "replica-id", "add-dependency", "copy-done", "async-done", "async-update"),
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


class Estimate(NamedTuple):
    """Costs of a program, and its products.

    Attributes:
      costs: The costs.
      products: The number of calls of each matrix product and convolution.
      host_loops: The number of loops whose end the host decides.
    """

    costs: Costs
    products: Counter[Product]
    host_loops: int


def estimate(module: Module, chip: Chip, *, trips: float, branch: Callable[..., Costs] = max) -> Estimate:
    """Estimates the costs of a program.

    A kernel takes as long as the longest of three: its launch, its bytes at the chip's bandwidth, and its
    FLOPs at the chip's rate for their precision. Real kernels reach neither rate, so that real seconds are
    more.

    Args:
      module: The program.
      chip: The chip.
      trips: The number of turns of loops without a constant one.
      branch: The choice among the alternatives of a branch by their seconds: ``max``, or ``min``.
    """
    counts: Counter[Product] = Counter()
    loops: set[str] = set()

    @cache
    def of_computation(name: str) -> tuple[Costs, tuple[tuple[Product, float], ...]]:
        total, called = Costs(), Counter[Product]()
        computation = module.computations[name]
        for instruction in computation.instructions.values():
            costs, inner = of_instruction(computation, instruction)
            total = total.plus(costs)
            called.update(inner)
        return total, tuple(called.items())

    def of_instruction(
        computation: Computation, instruction: Instruction
    ) -> tuple[Costs, dict[Product, float]]:
        if instruction.opcode == "while":
            return of_loop(instruction)
        if instruction.opcode == "conditional":
            keys = ("branch_computations", "true_computation", "false_computation")
            sides = [of_computation(name) for key in keys for name in instruction.computations(key)]
            costs, inner = branch(sides, key=lambda side: side[0].seconds)
            return costs, dict(inner)
        if instruction.opcode in ("call", "async-start"):
            key = "to_apply" if instruction.opcode == "call" else "calls"
            (name,) = instruction.computations(key) or (None,)
            costs, inner = of_computation(name) if name else (Costs(), ())
            return costs, dict(inner)
        if instruction.opcode in _NO_KERNEL or instruction.opcode.endswith("-done"):
            return Costs(), {}
        return _kernel(module, computation, instruction, chip)

    def of_loop(instruction: Instruction) -> tuple[Costs, dict[Product, float]]:
        known = turns(module, instruction)
        number = trips if known is None else known
        total, called = Costs(), Counter[Product]()
        # Nothing computes the condition of a loop with a constant number of turns.
        for key in ("body",) if known is not None else ("condition", "body"):
            for name in instruction.computations(key):
                costs, inner = of_computation(name)
                total = total.plus(costs)
                called.update(dict(inner))
        if known is None:
            loops.add(instruction.name)
            total = total.plus(Costs(turns=1, launch_s=chip.turn))
        return total.times(number), {product: number * count for product, count in called.items()}

    costs, inner = of_computation(module.entry.name)
    counts.update(dict(inner))
    return Estimate(costs, counts, len(loops))


def _kernel(
    module: Module, computation: Computation, instruction: Instruction, chip: Chip
) -> tuple[Costs, dict[Product, float]]:
    calls = Counter(products(module, computation, instruction))
    moved = num_bytes(module, computation, instruction)
    compute = sum(n * p.flops / chip.flops[p.precision] for p, n in calls.items())
    traffic = moved / chip.bandwidth
    seconds = {"launch_s": chip.launch, "traffic_s": traffic, "compute_s": compute}
    bound = max(seconds, key=seconds.__getitem__)
    flops = sum(n * p.flops for p, n in calls.items())
    return Costs(kernels=1, bytes=moved, flops=flops)._replace(**{bound: seconds[bound]}), dict(calls)
