"""Element types of HDF5, as far as they are plain numbers.

A datatype message describes integers and floats by the place and width of their parts. Those that are laid out as a known element type
get its label; booleans and complex numbers as h5py writes them (an enumeration FALSE, TRUE; a pair r, i) and fixed arrays of numbers are
known too. All others are opaque: strings, references, records, unusual floats.

Sources: HDF5 File Format Specification 3.0, section IV.A.2.d (datatype message); h5py's FAQ, "What datatypes are supported?".
"""

from __future__ import annotations

from bitward_formats.errors import FormatVersionError, HeaderSyntaxError
from bitward_formats.frozen import dataclass
from bitward_formats.readers.hdf5_metadata import number
from bitward_formats.readers.hdf5_objects import RANK_LIMIT

_HEAD_BYTES = 8
_FIXED, _FLOAT, _COMPOUND, _ENUM, _ARRAY = 0, 1, 6, 8, 10
_BIG_ENDIAN = 1
_SIGNED = 1 << 3
_IMPLIED_LEADING_BIT = 2

_INTEGERS = {(size, signed): f"{'I' if signed else 'U'}{8 * size}" for size in (1, 2, 4, 8) for signed in (False, True)}
# Bytes, sign's bit, exponent's bit and width, mantissa's bit and width, bias.
_FLOATS = {
    (8, 63, 52, 11, 0, 52, 1023): "F64",
    (4, 31, 23, 8, 0, 23, 127): "F32",
    (2, 15, 10, 5, 0, 10, 15): "F16",
    (2, 15, 7, 8, 0, 7, 127): "BF16",
    (1, 7, 3, 4, 0, 3, 7): "F8_E4M3",
    (1, 7, 2, 5, 0, 2, 15): "F8_E5M2",
}
_COMPLEX = {"F32": "C64", "F64": "C128", "F32.BE": "C64.BE", "F64.BE": "C128.BE"}


@dataclass(frozen=True, slots=True)
class Element:
    """An element type: its label, empty if it is opaque, its size, and the dimensions that an array of such adds to the data set's."""

    dtype: str
    size: int
    dims: tuple[int, ...] = ()


def read_element(data: bytes) -> Element:
    """The element type of a datatype message. Raises HeaderTooShortError or FormatVersionError."""
    version, kind, size = number(data, 0, 1) >> 4, data[0] & 15, number(data, 4, 4)
    if not 1 <= version <= 5:
        raise FormatVersionError(f"datatype version {version} is not known")
    if not size:
        raise HeaderSyntaxError("an element type of no bytes")
    if kind == _ARRAY and version >= 2:
        return _array(data, version, size)
    if kind == _ENUM:
        return Element(_enumeration(data, version, size), size)
    if kind == _COMPOUND:
        return Element(_complex(data, version, size), size)
    return Element(_number_label(data), size)


def _number_label(data: bytes) -> str:
    """The label of an integer or float at the beginning of some datatype; empty if it is another."""
    kind, flags, size = number(data, 0, 1) & 15, number(data, 1, 3), number(data, 4, 4)
    order = ".BE" if flags & _BIG_ENDIAN and size > 1 else ""
    if kind not in (_FIXED, _FLOAT) or number(data, 8, 2) or number(data, 10, 2) != 8 * size:
        return ""
    if kind == _FIXED:
        label = _INTEGERS.get((size, bool(flags & _SIGNED)), "")
    else:
        # Bit 6 marks the byte order of the VAX.
        if flags & 0x40 or flags >> 4 & 3 != _IMPLIED_LEADING_BIT:
            return ""
        exponent, mantissa = (number(data, 12, 1), number(data, 13, 1)), (number(data, 14, 1), number(data, 15, 1))
        label = _FLOATS.get((size, flags >> 8 & 0xFF, *exponent, *mantissa, number(data, 16, 4)), "")
    return label and label + order


def _enumeration(data: bytes, version: int, size: int) -> str:
    """BOOL for FALSE = 0 and TRUE = 1 in a byte, else the label of the integers that the names stand for."""
    base = data[_HEAD_BYTES:]
    label = _number_label(base)
    if not label.startswith(("I", "U")) or number(base, 4, 4) != size:
        return ""
    values = base[12:]
    names = b"FALSE\0TRUE\0" if version >= 3 else b"FALSE\0\0\0TRUE\0\0\0\0"
    if size == 1 and number(data, 1, 2) == 2 and values.startswith(names + b"\0\1"):
        return "BOOL"
    return label


def _complex(data: bytes, version: int, size: int) -> str:
    """The label of a pair of floats named r and i, without space around them."""
    if number(data, 1, 2) != 2:
        return ""
    labels = []
    place = _HEAD_BYTES
    for name, offset in ((b"r\0", 0), (b"i\0", size // 2)):
        if data[place : place + 2] != name:
            return ""
        # Names are padded to eight bytes before version 3; then comes the offset, in version 1 followed by dimensions.
        place += 2 if version >= 3 else 8
        offset_bytes = max(1, (size.bit_length() + 7) // 8) if version >= 3 else 4
        if number(data, place, offset_bytes) != offset:
            return ""
        place += offset_bytes
        if version == 1:
            if number(data, place, 1):
                return ""
            place += 28
        member = data[place : place + 20]
        if number(member, 4, 4) * 2 != size:
            return ""
        labels.append(_number_label(member))
        place += 20
    return _COMPLEX.get(labels[0], "") if labels[0] == labels[1] else ""


def _array(data: bytes, version: int, size: int) -> Element:
    """An element that is itself an array of numbers."""
    rank = number(data, _HEAD_BYTES, 1)
    if not 1 <= rank <= RANK_LIMIT:
        raise HeaderSyntaxError(f"an array type of {rank} dimensions")
    start = _HEAD_BYTES + (1 if version >= 3 else 4)
    dims = tuple(number(data, start + 4 * axis, 4) for axis in range(rank))
    base = data[start + 4 * rank * (1 if version >= 3 else 2) :]
    label, elements = _number_label(base), 1
    for dim in dims:
        elements *= dim
    if not label or number(base, 4, 4) * elements != size:
        return Element("", size)
    return Element(label, size // elements, dims)
