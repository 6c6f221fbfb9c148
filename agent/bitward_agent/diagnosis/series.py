"""Series: the floating-point numbers of a tensor, or those of one scale of its quantised records, seen as rows.

What triage counts is numbers at equal distances in a file: the elements of a plain tensor, either part of complex ones, the scales and
minima of quantised blocks. A row is what lies together in memory: the last axis, or as many of the last as make ``ROW_LEAST`` numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bitward_formats import records
from bitward_formats.frozen import dataclass
from bitward_formats.records.plain import ELEMENT_TYPES, ElementType, Family, decode
from bitward_formats.spans import Layout, Role, Span

ROW_LEAST = 64
"""Fewer numbers have no scale of their own: axes are taken together until a row has so many."""
ROW_LIMIT_BYTES = 1 << 20
"""Rows that are longer (tensors of one axis) are cut into pieces of ``PIECE`` numbers."""
PIECE = 4096

Bits = npt.NDArray[np.unsignedinteger[npt.NBitBase]]


@dataclass(frozen=True, slots=True)
class FloatForm:
    """How a number lies in its bits: ``exponent_bits`` above ``mantissa_bits``, and a sign above both if it is ``signed``."""

    item_bytes: int
    mantissa_bits: int
    exponent_bits: int
    signed: bool
    type: ElementType

    @property
    def special(self) -> int:
        """The exponent field of NaN and infinities; one more than any where the type has no such field."""
        ones = (1 << self.exponent_bits) - 1
        return ones if self.type.specials.name == "IEEE" and self.type.family is Family.FLOAT else ones + 1

    @property
    def bias(self) -> int:
        return self.type.bias

    @property
    def magnitude_mask(self) -> int:
        return (1 << (self.mantissa_bits + self.exponent_bits)) - 1

    def octaves(self, magnitudes: Bits | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """About log2 of magnitudes given as bits: exact at powers of two, straight lines between."""
        return np.asarray(magnitudes, np.float64) / float(1 << self.mantissa_bits) - self.bias

    def value(self, bits: int) -> float | int | str:
        """The number that some bits mean, or "nan", "inf", "-inf"."""
        return decode(self.type, bits)


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers ``at`` bytes into each of ``count`` places that are ``stride`` bytes apart, from the start of ``span`` on.

    ``step`` elements of the tensor's memory lie between neighbours, and the first number is that of ``element``. ``first_bit`` is added
    to bits of a number to make bits of the element (of complex ones alone it is not 0). ``is_scale``: scales of quantised records.
    """

    span: Span
    form: FloatForm
    at: int
    stride: int
    count: int
    row_length: int
    step: int
    element: int
    first_bit: int
    big_endian: bool
    is_scale: bool

    @property
    def row_count(self) -> int:
        return -(-self.count // self.row_length)

    def row_size(self, row: int) -> int:
        """Numbers in a row: the last one may be short."""
        return min(self.row_length, self.count - row * self.row_length)

    def values(self, data: memoryview | bytes | bytearray, first: int, count: int, start: int) -> Bits:
        """Numbers ``first .. first + count`` as bits, from ``data``, which lies ``start`` bytes into the span."""
        at = first * self.stride + self.at - start
        dtype = np.dtype(f"{'>' if self.big_endian else '<'}u{self.form.item_bytes}")
        found: Bits = np.ndarray((count,), dtype, data, at, (self.stride,))
        # Numbers that lie apart are gathered; neighbours are seen where they are, if the machine reads them so.
        return found.astype(dtype.newbyteorder("="), copy=self.stride != self.form.item_bytes)

    def index(self, number: int) -> tuple[int, ...]:
        """The index in its tensor of the element that a number is, or the first one that a scale belongs to."""
        form = records.form_of_span(self.span)
        return records.locator(self.span, form)(number * self.step + self.element)

    def offset(self, number: int, bit: int = 0) -> int:
        """The byte of the file that holds a bit of a number."""
        byte = bit // 8
        return self.span.offset + number * self.stride + self.at + (self.form.item_bytes - 1 - byte if self.big_endian else byte)

    def field(self, bit: int) -> str:
        """What a bit of a number is, as reports call it."""
        if self.is_scale:
            return "scale"
        if self.form.signed and bit == self.form.mantissa_bits + self.form.exponent_bits:
            return "sign"
        return "exponent" if bit >= self.form.mantissa_bits else "mantissa"


def _float_form(type_: ElementType) -> FloatForm | None:
    if type_.family not in (Family.FLOAT, Family.COMPLEX, Family.SCALE) or type_.part_bits % 8:
        return None
    if type_.family is Family.COMPLEX:
        type_ = ELEMENT_TYPES[{32: "F16", 64: "F32", 128: "F64"}[type_.bits]]
    signed = type_.family is Family.FLOAT
    return FloatForm(type_.bits // 8, type_.mantissa_bits, type_.exponent_bits, signed, type_)


def _memory_dims(span: Span) -> tuple[int, ...]:
    axes = records.parse_label(span.dtype).axes
    if len(axes) != len(span.dims):
        return span.dims
    return tuple(span.dims[axis] for axis in axes)


def _row_length(dims: tuple[int, ...], step: int, count: int, stride: int) -> int:
    """Numbers in a row of a tensor whose memory has these axes, ``step`` elements and ``stride`` bytes to a number."""
    if math.prod(dims) != count * step:
        return PIECE
    length = 1
    for dim in reversed(dims):
        if step > 1 and length >= step:
            # Rows of quantised records are short and many: some of them together, not all.
            length *= min(dim, -(-ROW_LEAST * step // length))
            break
        length *= dim
        if length >= ROW_LEAST * step:
            break
    if length % step or length // step * stride > ROW_LIMIT_BYTES:
        return PIECE
    return max(1, length // step)


def _of_span(span: Span) -> Iterator[Series]:
    form = records.form_of_span(span)
    record_bytes = form.kind.record_bytes
    if form is records.OPAQUE_FORM or span.length % record_bytes:
        return
    dims, count = _memory_dims(span), span.length // record_bytes
    is_scale = any(number.is_code for number in form.numbers)
    for number in form.numbers:
        bits = _float_form(number.type)
        first = number.lanes[0]
        if bits is None or number.is_code or first % 8 or number.lanes != tuple(range(first, first + len(number.lanes))):
            continue
        parts = number.type.bits // (8 * bits.item_bytes)
        for part in range(parts):
            low = first // 8 + part * bits.item_bytes
            stored = form.stored_at[low : low + bits.item_bytes] or tuple(range(low, low + bits.item_bytes))
            row_length = _row_length(dims, form.elements, count, record_bytes)
            yield Series(
                *(span, bits, min(stored), record_bytes, count, row_length, form.elements, number.element),
                first_bit=8 * bits.item_bytes * part,
                big_endian=bits.item_bytes > 1 and stored[0] > stored[-1],
                is_scale=is_scale,
            )


def series_of(layout: Layout) -> list[Series]:
    """All series of a layout's tensors, in the order of the file."""
    return [series for span in layout.spans if span.role is Role.TENSOR and span.length for series in _of_span(span)]
