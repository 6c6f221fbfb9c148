"""Blocks of quantised elements: codes that mean a number by way of scales, and what that number is.

Most formats of such blocks reckon alike: an element is its code, mapped by a table or moved by an offset, times the block's scale (times
a small packed factor of its part of the block), plus or minus a minimum that is made in the same way. A ``Block`` says which numbers of
the record play which part. Where a code means several elements at once by way of a codebook, only the code itself is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitward_formats.records.forms import Number, RecordForm, Value, Worth, make_form
from bitward_formats.records.plain import ELEMENT_TYPES, ElementType, Family, decode

_F32_LARGEST = float.fromhex("0x1.fffffep+127")


@dataclass(frozen=True)
class Block:
    """The parts of a quantised block of ``elements`` elements.

    ``scales`` are floats and ``minima`` too; ``factors`` and ``minimum_factors`` are packed integers. Each of these lists covers the block
    in equal stretches, in order. ``codes`` has one number for each element, if the elements have codes of their own. ``others`` are
    numbers that take no part in what follows. ``words`` are the (byte, length) of what a big-endian machine stores in reverse.

    An element is ``scale * (factor + factor_offset) * meaning(code) + minimum_sign * minimum * minimum_factor``; where ``meaning`` is
    None, codes are only told as they are.
    """

    record_bytes: int
    elements: int
    scales: Sequence[Number]
    codes: Sequence[Number] = ()
    minima: Sequence[Number] = ()
    factors: Sequence[Number] = ()
    minimum_factors: Sequence[Number] = ()
    others: Sequence[Number] = ()
    words: Sequence[tuple[int, int]] = ()
    meaning: Callable[[int], float] | None = None
    factor_offset: int = 0
    minimum_sign: int = 1
    scale_value: Callable[[ElementType, int], float] | None = None

    def form(self, *, big_endian: bool) -> RecordForm:
        """The form of the block's record."""
        parts = (self.scales, self.minima, self.factors, self.minimum_factors, self.codes, self.others)
        numbers = [number for part in parts for number in part]
        worth = None if self.meaning is None else self._worth(self.meaning)
        return make_form(self.record_bytes, self.elements, numbers, _is_critical, self._stored_at() if big_endian else (), worth)

    def _stored_at(self) -> tuple[int, ...]:
        order = list(range(self.record_bytes))
        for at, length in self.words:
            order[at : at + length] = reversed(order[at : at + length])
        return tuple(order)

    def _worth(self, meaning: Callable[[int], float]) -> Worth:
        """The value of an element by single precision, as ggml reckons.

        Every product here is exact in single precision (at most 11 bits of scale, 8 of factor, 8 of code; see the types) but the last,
        and in double precision all are; so one rounding at the end gives what rounding each step does.
        """

        def part(numbers: Sequence[Number], element: int) -> Number:
            return numbers[element * len(numbers) // self.elements]

        def real(numbers: Sequence[Number], element: int, whole: int) -> float:
            number = part(numbers, element)
            bits = bits_of(number, whole)
            return self.scale_value(number.type, bits) if self.scale_value else float(decode(number.type, bits))

        def small(numbers: Sequence[Number], element: int, whole: int) -> int:
            number = part(numbers, element)
            return int(decode(number.type, bits_of(number, whole)))

        def worth(record: bytes, element: int) -> Value:
            whole = int.from_bytes(record, "little")
            value = real(self.scales, element, whole)
            if self.factors:
                value *= small(self.factors, element, whole) + self.factor_offset
            value *= meaning(bits_of(self.codes[element], whole))
            if self.minima:
                minimum = real(self.minima, element, whole) * self.minimum_sign
                value += minimum * small(self.minimum_factors, element, whole) if self.minimum_factors else minimum
            return _single(value)

        return worth


def bits_of(number: Number, whole: int) -> int:
    """The bits of a number of a little-endian record, ``whole`` as one integer."""
    return sum((whole >> lane & 1) << bit for bit, lane in enumerate(number.lanes))


def _is_critical(number: Number, bit: int) -> bool:
    """Scales are as critical as their own type says; a code is bounded by its block's scale, so a flip of it is no matter of magnitude."""
    return number.field == "scale" and number.type.is_critical(bit)


def _single(value: float) -> Value:
    """Rounded to single precision; what is not finite as the reports tell it."""
    if not math.isfinite(value):
        return str(value)
    mantissa, exponent = math.frexp(value)
    # A float of single precision has 24 bits, fewer below its smallest normal.
    bits = 24 if exponent > -126 else 24 - (-125 - exponent)
    rounded = math.ldexp(round(math.ldexp(mantissa, bits)), exponent - bits) if bits >= 0 else 0.0 * value
    return rounded if abs(rounded) <= _F32_LARGEST else str(math.copysign(math.inf, value))


def lanes(at: int, low: int, count: int) -> tuple[int, ...]:
    """``count`` bits from bit ``low`` of byte ``at`` on."""
    return tuple(range(8 * at + low, 8 * at + low + count))


def real_scale(at: int, dtype: str = "F16", element: int = 0) -> Number:
    """A scale or minimum of a plain float type."""
    type_ = ELEMENT_TYPES[dtype]
    return Number(element, lanes(at, 0, type_.bits), type_, "scale")


def packed_scale(where: tuple[int, ...], element: int, *, signed: bool = False) -> Number:
    """A scale or minimum packed into a few bits."""
    return Number(element, where, ElementType(Family.SIGNED if signed else Family.UNSIGNED, len(where)), "scale")


def code(where: tuple[int, ...], element: int) -> Number:
    """A code of an element, or of several from that one on."""
    return Number(element, where, ElementType(Family.UNSIGNED, len(where)), "raw", is_code=True)
