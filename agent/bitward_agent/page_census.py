"""The largest exponents in a tensor of floating-point numbers, cell by cell of 2 KiB, taken from bytes that are in the cache anyway.

The OR of a cell costs as much as reading it. It is zero where the cell is, and its top exponent bit is set only if some magnitude is 2 or
more, as NaN, infinities and flipped top bits are, and few weights. For those cells the largest magnitude is taken: the bits of a
float, read as an unsigned integer, order negative numbers by magnitude; read as a signed one, the positive ones.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import cast

import numpy as np
import numpy.typing as npt

from bitward_agent.io import OpenFile
from bitward_formats import native
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Layout, Role, Span

CELL_BYTES = 2048
"""Half a page: a page that is zero covers one cell at least, wherever the tensor begins."""
SUSPECT_CELLS_LIMIT = 8192
"""Most cells of a tensor that are read again."""

Bytes = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.unsignedinteger[npt.NBitBase]]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Form:
    """How an element type lies in its bits. ``gap`` and ``least`` (exponents of two): how far up and how large a lonely value must be."""

    item_bytes: int
    mantissa_bits: int
    exponent_bits: int
    gap: int
    least: int

    @property
    def unsigned(self) -> np.dtype[np.unsignedinteger[npt.NBitBase]]:
        return np.dtype(f"<u{self.item_bytes}")

    @property
    def special(self) -> int:
        """The exponent field of NaN and infinities."""
        return (1 << self.exponent_bits) - 1

    @property
    def bias(self) -> int:
        return self.special >> 1


FORMS = {
    "F16": Form(2, 10, 5, 6, 4),
    "BF16": Form(2, 7, 8, 16, 10),
    "F32": Form(4, 23, 8, 16, 10),
    "F64": Form(8, 52, 11, 32, 10),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A span and what is known of its cells.

    ``tops`` has one number for each cell: 0 where every byte is zero, else 1 and the largest exponent field; where no magnitude is 2 or
    more, a bound of it below that of 2.
    """

    span: Span
    form: Form
    big_endian: bool
    tops: npt.NDArray[np.uint16]

    @property
    def count(self) -> int:
        return self.span.length // self.form.item_bytes

    def cell_offset(self, number: int) -> int:
        """Where a cell begins in the file; for the number after the last one, where the tensor ends."""
        return min(self.span.offset + number * CELL_BYTES, self.span.end)

    def read(self, file: OpenFile, numbers: Numbers) -> Iterator[tuple[int, Bits]]:
        """(offset in the file, values as bits) of some cells. Unreadable bytes are zero."""
        for number in numbers[:SUSPECT_CELLS_LIMIT]:
            low, high = self.cell_offset(int(number)), self.cell_offset(int(number) + 1)
            values: Bits = np.frombuffer(file.read(low, high - low), self.form.unsigned)
            yield low, values.byteswap() if self.big_endian else values


class Census:
    """Collects the tops of a layout's tensors. Threads may hand in different ranges at the same time."""

    def __init__(self, layout: Layout) -> None:
        self.tensors: list[Tensor] = []
        for span in layout.spans:
            element, _, order = span.dtype.partition("@")[0].partition(".")
            form = FORMS.get(element)
            if span.role is Role.TENSOR and form is not None and span.length and span.length % form.item_bytes == 0:
                self.tensors.append(Tensor(span, form, order == "BE", np.zeros(-(-span.length // CELL_BYTES), np.uint16)))
        self._starts = [tensor.span.offset for tensor in self.tensors]

    def add(self, offset: int, data: Bytes) -> None:
        """Take ``data`` (contiguous), which lies at ``offset`` of the file, within one span, on an edge of its cells."""
        index = bisect_right(self._starts, offset) - 1
        if index < 0 or offset >= self.tensors[index].span.end:
            return
        tensor = self.tensors[index]
        first = (offset - tensor.span.offset) // CELL_BYTES
        full = data.size // CELL_BYTES
        if full:
            tensor.tops[first : first + full] = _tops(data[: full * CELL_BYTES].reshape(full, CELL_BYTES), tensor)
        if full * CELL_BYTES < data.size:
            tensor.tops[first + full] = _tops(data[None, full * CELL_BYTES :], tensor)[0]


def _tops(cells: Bytes, tensor: Tensor) -> npt.NDArray[np.uint16]:
    form = tensor.form
    kernel = native.KERNEL
    if kernel is not None and cells.shape[1] % native.GATHER_BYTES == 0:
        folded = cast(Bits, kernel.gather_cells(np.ascontiguousarray(cells), form.item_bytes).astype(form.unsigned))
    else:
        folded = _gathered(cells, form)
    if tensor.big_endian:
        folded = folded.byteswap()
    large = np.flatnonzero(folded >> (8 * form.item_bytes - 2) & 1)
    if large.size:
        values = cells[large].view(form.unsigned)
        folded[large] = _largest(values.byteswap() if tensor.big_endian else values, form)
    tops = ((folded >> form.mantissa_bits) & form.special).astype(np.uint16)
    tops += folded << 1 != 0
    return tops


def _gathered(cells: Bytes, form: Form) -> Bits:
    """The OR of each row's items, by NumPy: of wide words first, as that is faster."""
    word_bytes = 8 if cells.shape[1] % 8 == 0 else form.item_bytes
    folded: Bits = np.bitwise_or.reduce(cells.view(f"<u{word_bytes}"), axis=1)
    for _ in range((word_bytes // form.item_bytes).bit_length() - 1):
        half = 4 * folded.itemsize
        folded = (folded | (folded >> half)).astype(f"<u{folded.itemsize // 2}")
    return folded


def _largest(values: Bits, form: Form) -> Bits:
    """The largest magnitude of each row: of its negative numbers by the unsigned maximum, of its positive ones by the signed one."""
    sign = 1 << (8 * form.item_bytes - 1)
    unsigned = values.max(axis=1)
    signed = values.view(f"<i{form.item_bytes}").max(axis=1)
    negative = np.where(unsigned >= sign, unsigned & (sign - 1), 0).astype(form.unsigned)
    largest: Bits = np.maximum(negative, np.maximum(signed, 0).astype(form.unsigned))
    return largest


def exponents_of(values: Bits, form: Form) -> npt.NDArray[np.int64]:
    """The exponent fields of values as bits."""
    return ((values >> form.mantissa_bits) & form.special).astype(np.int64)


def value_of(bits: np.unsignedinteger[npt.NBitBase], form: Form) -> float:
    """The number that some bits are."""
    if form.item_bytes == 2 and form.exponent_bits == 8:
        return float(np.array(int(bits) << 16, np.uint32).view(np.float32))
    return float(np.array(bits).view(f"<f{form.item_bytes}"))
