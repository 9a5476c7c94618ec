"""Matrix products and convolutions of compiled programs."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from fedjax_masks.aot.hlo import Array, Computation, Instruction, Module


class Product(NamedTuple):
    """A matrix product, or a convolution.

    Attributes:
      kind: ``"product"`` or ``"convolution"``.
      batch: The number of products of one call; for a convolution, of its groups.
      rows: Rows of the result, or places of the output of a convolution, over all images.
      columns: Columns of the result, or output channels of a group.
      terms: Terms of each sum.
      precision: ``"default"``, which a chip may round its operands for, or ``"highest"``.
    """

    kind: str
    batch: int
    rows: int
    columns: int
    terms: int
    precision: str

    @property
    def flops(self) -> float:
        """Two for each term."""
        return 2.0 * self.batch * self.rows * self.columns * self.terms


def products(module: Module, computation: Computation, instruction: Instruction) -> Iterator[Product]:
    """The products of a kernel, those within fusions too."""
    if instruction.opcode == "dot":
        yield _dot(computation, instruction)
    elif instruction.opcode == "convolution":
        yield _convolution(computation, instruction)
    elif instruction.opcode == "custom-call":
        target = instruction.attribute("custom_call_target") or ""
        if "cublas" in target:
            yield _library_product(computation, instruction)
        elif "conv" in target and "cudnn" in target:
            yield _convolution(computation, instruction)
    elif instruction.opcode == "fusion":
        for name in instruction.computations("calls"):
            inner = module.computations[name]
            for part in inner.instructions.values():
                yield from products(module, inner, part)


def _dot(computation: Computation, instruction: Instruction) -> Product:
    left, right = (operand.arrays[0] for operand in computation.operands(instruction))
    return _product(
        *(left, right),
        batch=instruction.dimensions("lhs_batch_dims"),
        contracted=instruction.dimensions("lhs_contracting_dims"),
        precision=instruction.attribute("operand_precision") or "",
        result=instruction.arrays[0],
    )


def _library_product(computation: Computation, instruction: Instruction) -> Product:
    left, right = (operand.arrays[0] for operand in computation.operands(instruction)[:2])
    config = instruction.backend.get("gemm_backend_config", instruction.backend)
    numbers = config.get("dot_dimension_numbers", {})
    read = lambda key: tuple(int(n) for n in numbers.get(key, ()))  # noqa: E731
    return _product(
        *(left, right),
        batch=read("lhs_batch_dimensions"),
        contracted=read("lhs_contracting_dimensions"),
        precision=str(config.get("precision_config", "")).lower(),
        result=instruction.arrays[0],
    )


def _product(
    left: Array,
    right: Array,
    *,
    batch: tuple[int, ...],
    contracted: tuple[int, ...],
    precision: str,
    result: Array,
) -> Product:
    number = math.prod(left.dims[axis] for axis in batch)
    terms = math.prod(left.dims[axis] for axis in contracted)
    rows = max(1, left.size // max(1, number * terms))
    columns = max(1, right.size // max(1, number * terms))
    return Product("product", number, rows, columns, terms, _precision(precision))


def _convolution(computation: Computation, instruction: Instruction) -> Product:
    kernel = computation.operands(instruction)[1].arrays[0]
    labels = instruction.attribute("dim_labels") or ""
    groups = max(int(instruction.attribute(f"{kind}_group_count") or 1) for kind in ("feature", "batch"))
    result = instruction.arrays[0]
    _, kernel_labels, output_labels = labels.replace("->", "_").split("_")
    outputs = kernel.dims[kernel_labels.index("o")]
    places = result.size // max(1, result.dims[output_labels.index("f")])
    precision = _precision(instruction.attribute("operand_precision") or "")
    return Product(
        "convolution", groups, places, outputs // groups, kernel.size // max(1, outputs), precision
    )


def _precision(text: str) -> str:
    return "highest" if "highest" in text or "high" in text else "default"
