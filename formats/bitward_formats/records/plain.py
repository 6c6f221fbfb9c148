"""The plain element types: how many bits, which of them are critical, what field a bit belongs to, which value the bits mean.

The table of SPEC section 2.2 as code. The masks are not typed in; they follow from the formats' field widths. Reads single elements for
reports; it is no array conversion.

Sources of the small floats: E4M3 and E5M2, Micikevicius et al., "FP8 Formats for Deep Learning" (2022); the FNUZ variants, Noune et al.,
"8-bit Numerical Formats for Deep Neural Networks" (2022); E8M0, F6 and F4, the OCP Microscaling (MX) specification 1.0.
"""

from __future__ import annotations

import math
from enum import Enum, auto

from bitward_formats.frozen import dataclass


class Family(Enum):
    """How the bits of an element are to be read."""

    FLOAT = auto()
    COMPLEX = auto()
    SCALE = auto()
    SIGNED = auto()
    UNSIGNED = auto()
    RAW = auto()


class Specials(Enum):
    """Which bit patterns of a float are not numbers."""

    IEEE = auto()
    """The highest exponent: infinity with a zero mantissa, else NaN."""
    ONE_NAN = auto()
    """NaN where exponent and mantissa are all ones (either sign), no infinity: the FN formats."""
    UNSIGNED_ZERO = auto()
    """NaN where minus zero would be, no infinity: the FNUZ formats."""
    NONE = auto()
    """Every pattern is a finite number: the MX element formats below 8 bits."""


@dataclass(frozen=True, slots=True)
class ElementType:
    """One element type. Float elements are sign, exponent, mantissa from the most significant bit down.

    ``bits`` is the width of an element; ``exponent_bits``, ``mantissa_bits``, ``bias`` and ``specials`` say something of floats
    only (of the two halves, for complex elements).
    """

    family: Family
    bits: int
    exponent_bits: int = 0
    mantissa_bits: int = 0
    bias: int = 0
    specials: Specials = Specials.IEEE

    @property
    def elements_per_record(self) -> int:
        """The fewest elements that fill whole bytes: a record has to be made of bytes."""
        return math.lcm(self.bits, 8) // self.bits

    @property
    def part_bits(self) -> int:
        """Width of one number: half of a complex element, else the element."""
        return self.bits // 2 if self.family is Family.COMPLEX else self.bits

    @property
    def top_exponent_bit(self) -> int | None:
        """The bit whose flip turns a weight into a number beyond all others; none in floats of so small a range that there is no such."""
        return self.bits - 2 if self.family is Family.FLOAT and self.exponent_bits >= 4 else None

    def is_critical(self, bit: int) -> bool:
        """Whether a flip of this bit changes the value by orders of magnitude (for integers: the upper half)."""
        if self.family in (Family.FLOAT, Family.COMPLEX):
            return bit % self.part_bits >= self.mantissa_bits
        if self.family in (Family.SIGNED, Family.UNSIGNED):
            return bit >= self.bits // 2
        return True


def _float(exponent_bits: int, mantissa_bits: int, bias: int | None = None, specials: Specials = Specials.IEEE) -> ElementType:
    ieee_bias = (1 << (exponent_bits - 1)) - 1
    width = 1 + exponent_bits + mantissa_bits
    return ElementType(Family.FLOAT, width, exponent_bits, mantissa_bits, ieee_bias if bias is None else bias, specials)


def _complex(exponent_bits: int, mantissa_bits: int) -> ElementType:
    half = _float(exponent_bits, mantissa_bits)
    return ElementType(Family.COMPLEX, 2 * half.bits, exponent_bits, mantissa_bits, half.bias)


ELEMENT_TYPES: dict[str, ElementType] = {
    "": ElementType(Family.RAW, 8),
    "F64": _float(11, 52),
    "F32": _float(8, 23),
    "F16": _float(5, 10),
    "BF16": _float(8, 7),
    "F8_E4M3": _float(4, 3, specials=Specials.ONE_NAN),
    "F8_E5M2": _float(5, 2),
    "F8_E4M3FNUZ": _float(4, 3, bias=8, specials=Specials.UNSIGNED_ZERO),
    "F8_E5M2FNUZ": _float(5, 2, bias=16, specials=Specials.UNSIGNED_ZERO),
    "F8_E8M0": ElementType(Family.SCALE, 8, exponent_bits=8, bias=127),
    "F6_E2M3": _float(2, 3, specials=Specials.NONE),
    "F6_E3M2": _float(3, 2, specials=Specials.NONE),
    "F4": _float(2, 1, specials=Specials.NONE),
    "C32": _complex(5, 10),
    "C64": _complex(8, 23),
    "C128": _complex(11, 52),
    "I64": ElementType(Family.SIGNED, 64),
    "U64": ElementType(Family.UNSIGNED, 64),
    "I32": ElementType(Family.SIGNED, 32),
    "U32": ElementType(Family.UNSIGNED, 32),
    "I16": ElementType(Family.SIGNED, 16),
    "U16": ElementType(Family.UNSIGNED, 16),
    "I8": ElementType(Family.SIGNED, 8),
    "U8": ElementType(Family.UNSIGNED, 8),
    "I4": ElementType(Family.SIGNED, 4),
    "U4": ElementType(Family.UNSIGNED, 4),
    "I2": ElementType(Family.SIGNED, 2),
    "U2": ElementType(Family.UNSIGNED, 2),
    "BOOL": ElementType(Family.RAW, 8),
}


PLAIN_DTYPES: tuple[str, ...] = tuple(dtype for dtype in ELEMENT_TYPES if dtype)
"""The names of all plain element types, in the order of SPEC section 2.2."""


def field_of_bit(element: ElementType, bit: int) -> str:
    """What a bit of an element is: sign, exponent, mantissa, scale or raw (integers, booleans and opaque bytes)."""
    if element.family is Family.SCALE:
        return "scale"
    if element.family not in (Family.FLOAT, Family.COMPLEX):
        return "raw"
    bit %= element.part_bits
    if bit < element.mantissa_bits:
        return "mantissa"
    return "sign" if bit == element.part_bits - 1 else "exponent"


def decode(element: ElementType, bits: int) -> float | int | str:
    """The value of an element, ``bits`` as an unsigned number of its width.

    Floats are exact as a Python float, or one of "nan", "inf", "-inf"; complex elements are a string such as "1.5+2j"; integers,
    booleans (0 and 1, and what damage makes of them) and opaque bytes are an int.
    """
    match element.family:
        case Family.FLOAT:
            return _json_number(_decode_float(element, bits))
        case Family.COMPLEX:
            part = element.part_bits
            real, imaginary = _decode_float(element, bits & ((1 << part) - 1)), _decode_float(element, bits >> part)
            # Nine digits tell any two binary32 numbers apart, seventeen any two of binary64.
            digits = 17 if part == 64 else 9
            return f"{real:.{digits}g}{imaginary:+.{digits}g}j"
        case Family.SCALE:
            return "nan" if bits == 0xFF else math.ldexp(1.0, bits - element.bias)
        case Family.SIGNED:
            return bits - (1 << element.bits) if bits >> (element.bits - 1) else bits
        case Family.UNSIGNED | Family.RAW:
            return bits


def _decode_float(element: ElementType, bits: int) -> float:
    mantissa = bits & ((1 << element.mantissa_bits) - 1)
    exponent_ones = (1 << element.exponent_bits) - 1
    exponent = bits >> element.mantissa_bits & exponent_ones
    sign = -1.0 if bits >> (element.part_bits - 1) & 1 else 1.0
    match element.specials:
        case Specials.IEEE if exponent == exponent_ones:
            return math.nan if mantissa else sign * math.inf
        case Specials.ONE_NAN if exponent == exponent_ones and mantissa == (1 << element.mantissa_bits) - 1:
            return math.nan
        case Specials.UNSIGNED_ZERO if sign < 0 and not exponent and not mantissa:
            return math.nan
        case _:
            pass
    if exponent:
        mantissa |= 1 << element.mantissa_bits
    # Subnormals have the exponent of the smallest normals.
    return sign * math.ldexp(mantissa, max(exponent, 1) - element.bias - element.mantissa_bits)


def _json_number(value: float) -> float | str:
    """JSON has no words for what is not a number, so these travel as strings."""
    return value if math.isfinite(value) else str(value)
