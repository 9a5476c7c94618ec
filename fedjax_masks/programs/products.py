"""Matrix products and convolutions of compiled programs."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from fedjax_masks.programs.hlo import Array, Computation, Instruction, Module


class Product(NamedTuple):
    """A matrix product, or a convolution.

    Attributes:
      kind: ``"product"`` or ``"convolution"``.
      batch: The number of products of one call; for a convolution, of its groups.
      rows: Rows of the result, or places of the output of a convolution, over all images.
      columns: Columns of the result, or output channels of a group.
      terms: Terms of each sum; the mean over the places of a convolution.
      precision: ``"default"``, which a chip may round its operands for, or ``"highest"``.
    """

    kind: str
    batch: int
    rows: int
    columns: int
    terms: float
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
    image, kernel = (operand.arrays[0] for operand in computation.operands(instruction)[:2])
    labels = (instruction.attribute("dim_labels") or "").replace("->", "_").split("_")
    image_labels, kernel_labels, output_labels = labels
    groups = max(int(instruction.attribute(f"{kind}_group_count") or 1) for kind in ("feature", "batch"))
    result = instruction.arrays[0]
    channels = kernel.dims[kernel_labels.index("i")]
    outputs = kernel.dims[kernel_labels.index("o")]
    pairs, places = 1, 1
    for axis, window in _windows(instruction).items():
        size, count = (
            a.dims[names.index(axis)] for a, names in ((image, image_labels), (result, output_labels))
        )
        pairs *= _pairs(size, count, window)
        places *= count
    images = result.dims[output_labels.index("b")]
    return Product(
        "convolution",
        groups,
        images * places,
        outputs // groups,
        channels * pairs / places,
        _precision(instruction.attribute("operand_precision") or ""),
    )


class _Window(NamedTuple):
    """A convolution along one axis; a dilation spreads the image, or the taps of the kernel."""

    size: int = 1
    stride: int = 1
    pad: str = "0_0"
    lhs_dilate: int = 1
    rhs_dilate: int = 1


def _windows(instruction: Instruction) -> dict[str, _Window]:
    """The windows of a convolution by the digit of their axis."""
    text = (instruction.attribute("window") or "{}").strip("{}")
    fields = {key: values.split("x") for key, values in (part.split("=") for part in text.split())}
    axes: dict[str, _Window] = {}
    for axis in range(len(fields.get("size", ()))):
        values = {key: column[axis] for key, column in fields.items() if key in _Window._fields}
        pad = values.pop("pad", "0_0")
        axes[str(axis)] = _Window(pad=pad, **{key: int(value) for key, value in values.items()})
    return axes


def _pairs(size: int, count: int, window: _Window) -> int:
    """The pairs of a place of the output and a tap that meet a value of the image.

    A compiler for TPUs writes batches of products as convolutions, of whose taps most meet none.
    """
    low = int(window.pad.split("_")[0])
    span = (size - 1) * window.lhs_dilate + 1
    pairs = 0
    for tap in range(window.size):
        places = (tap * window.rhs_dilate - low + o * window.stride for o in range(count))
        pairs += sum(0 <= place < span and place % window.lhs_dilate == 0 for place in places)
    return pairs


def _precision(text: str) -> str:
    return "highest" if "highest" in text else "default"
