"""The largest exponents in a tensor of floating-point numbers, cell by cell of 2 KiB, taken from bytes that are in the cache anyway.

The OR of a cell costs as much as reading it. It is zero where the cell is, and its top exponent bit is set only if some magnitude is 2 or
more, as NaN, infinities and flipped top bits are, and few weights. For those cells the largest magnitude is taken: the bits of a
float without its sign, read as an unsigned integer, are in the order of its magnitude. The native kernel does it, or NumPy
(``census_numbers``), which is loaded only then.
"""

from __future__ import annotations

import threading
from bisect import bisect_right

from bitward_formats import native
from bitward_formats.frozen import dataclass
from bitward_formats.spans import Layout, Role, Span

CELL_BYTES = 2048
"""Half a page: a page that is zero covers one cell at least, wherever the tensor begins."""


@dataclass(frozen=True, slots=True)
class Form:
    """How an element type lies in its bits. ``gap`` and ``least`` (exponents of two): how far up and how large a lonely value must be."""

    item_bytes: int
    mantissa_bits: int
    exponent_bits: int
    gap: int
    least: int

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

    ``tops`` has one u16 for each cell: 0 where every byte is zero (or minus zero), else 1 and the largest exponent field; where no
    magnitude is 2 or more, a bound of it below that of 2.
    """

    span: Span
    form: Form
    big_endian: bool
    tops: memoryview

    @property
    def count(self) -> int:
        return self.span.length // self.form.item_bytes

    def cell_offset(self, number: int) -> int:
        """Where a cell begins in the file; for the number after the last one, where the tensor ends."""
        return min(self.span.offset + number * CELL_BYTES, self.span.end)


class Census:
    """Collects the tops of a layout's tensors. Threads may hand in different ranges at the same time."""

    def __init__(self, layout: Layout) -> None:
        self.tensors: list[Tensor] = []
        for span in layout.spans:
            element, _, order = span.dtype.partition("@")[0].partition(".")
            form = FORMS.get(element)
            if span.role is Role.TENSOR and form is not None and span.length and span.length % form.item_bytes == 0:
                tops = memoryview(bytearray(2 * -(-span.length // CELL_BYTES))).cast("H")
                self.tensors.append(Tensor(span, form, order == "BE", tops))
        self._starts = [tensor.span.offset for tensor in self.tensors]
        self._peaks = [0] * len(self.tensors)
        self._zeros = [0] * len(self.tensors)
        self._lock = threading.Lock()

    def add(self, offset: int, data: memoryview) -> None:
        """Take ``data``, which lies at ``offset`` of the file, within one span, on an edge of its cells."""
        index = bisect_right(self._starts, offset) - 1
        if index < 0 or offset >= self.tensors[index].span.end:
            return
        tensor = self.tensors[index]
        first = (offset - tensor.span.offset) // CELL_BYTES
        tops = tensor.tops[first : first + -(-len(data) // CELL_BYTES)]
        if native.KERNEL is not None:
            form = tensor.form
            zeros, peak = native.KERNEL.census(
                data, CELL_BYTES, form.item_bytes, form.mantissa_bits, tops, big_endian=tensor.big_endian
            )
        else:
            from bitward_agent.census_numbers import put_tops

            zeros, peak = put_tops(data, tensor, tops)
        with self._lock:
            self._zeros[index] += zeros
            self._peaks[index] = max(self._peaks[index], peak)

    def stands_out(self) -> bool:
        """Whether any tensor has a zero cell, or a magnitude that is worth a look: most files have neither."""
        marks = zip(self.tensors, self._zeros, self._peaks, strict=True)
        return any(zeros or peak > tensor.form.bias + tensor.form.least for tensor, zeros, peak in marks)
