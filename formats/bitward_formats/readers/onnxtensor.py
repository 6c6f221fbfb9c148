"""One ONNX TensorProto: which bytes of the file are its elements, or where outside of it they lie.

Field numbers, element types and how elements are packed are those of ``onnx.proto`` (ONNX IR version 14). Elements are claimed as a
tensor where they lie as an array: ``raw_data``, and ``float_data`` or ``double_data`` in one packed piece. What is stored as
variable-length integers or strings, in pieces, or in a size that does not fit its shape, is no array and stays opaque.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from bitward_formats import records
from bitward_formats.errors import HeaderSyntaxError, UnknownDtypeError
from bitward_formats.frozen import dataclass
from bitward_formats.readers.protowalk import Field, Walker, Wire

NAME_LIMIT_BYTES = 65_535
DIMS_LIMIT = 255
"""More dimensions do not fit the layout stream (SPEC, section 2.1)."""
EXTERNAL_ENTRIES_LIMIT = 64
"""Most entries that say where external data lies; the format knows four."""
LOCATION_LIMIT_BYTES = 4096
PACKED_DIMS_LIMIT_BYTES = 10 * DIMS_LIMIT
ELEMENTS_LIMIT = 1 << 63

DTYPES: dict[int, str] = {
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32", 13: "U64", 14: "C64",
    15: "C128", 16: "BF16", 17: "F8_E4M3", 18: "F8_E4M3FNUZ", 19: "F8_E5M2", 20: "F8_E5M2FNUZ", 21: "U4", 22: "I4", 23: "F4",
    24: "F8_E8M0", 25: "U2", 26: "I2", 27: "F6_E2M3", 28: "F6_E3M2",
}  # fmt: skip
"""TensorProto.DataType. 0 is undefined, 8 a string. All are little-endian, the first of small elements in the lowest bits."""

_DIMS, _DATA_TYPE, _SEGMENT, _FLOATS, _INT32S, _STRINGS, _INT64S, _NAME, _RAW, _DOUBLES, _UINT64S = range(1, 12)
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_LENGTH = (Wire.LENGTH,)
_WIRES: dict[int, tuple[Wire, ...]] = {
    _DIMS: (Wire.VARINT, Wire.LENGTH),
    _DATA_TYPE: (Wire.VARINT,),
    _SEGMENT: _LENGTH,
    _FLOATS: (Wire.FIXED32, Wire.LENGTH),
    _INT32S: (Wire.VARINT, Wire.LENGTH),
    _STRINGS: _LENGTH,
    _INT64S: (Wire.VARINT, Wire.LENGTH),
    _NAME: _LENGTH,
    _RAW: _LENGTH,
    _DOUBLES: (Wire.FIXED64, Wire.LENGTH),
    _UINT64S: (Wire.VARINT, Wire.LENGTH),
    _EXTERNAL_DATA: _LENGTH,
    _DATA_LOCATION: (Wire.VARINT,),
}
_DATA_FIELDS = frozenset({_FLOATS, _INT32S, _STRINGS, _INT64S, _RAW, _DOUBLES, _UINT64S})
_ARRAY_DTYPES: dict[int, tuple[str, ...]] = {_FLOATS: ("F32", "C64"), _DOUBLES: ("F64", "C128")}
"""Which element types lie as an array in a packed field; the values of all types do in ``raw_data``."""


class Storage(Enum):
    """Where a tensor's elements are."""

    ARRAY = auto()
    OPAQUE = auto()
    EXTERNAL = auto()
    NONE = auto()


@dataclass(frozen=True, slots=True)
class External:
    """Where external data lies: bytes of a file beside the model. ``length`` is None where it is not said."""

    location: str
    offset: int
    length: int | None


@dataclass(frozen=True, slots=True)
class Tensor:
    """A TensorProto. ``start .. end`` are its elements' bytes in this file (of an opaque one, of its longest payload).

    ``name`` is its own name, without prefixes; ``dtype`` is "" for element types without a record kind.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    storage: Storage
    start: int
    end: int
    external: External | None = None


def expect_wire(field: Field, wires: tuple[Wire, ...], message: str) -> None:
    """Raises HeaderSyntaxError if a known field has another wire type than its kind allows."""
    if field.wire not in wires:
        raise HeaderSyntaxError(f"byte {field.start}: field {field.number} of {message} has wire type {field.wire.value}")


class _Parts:
    """What the fields of one TensorProto say, in any order."""

    def __init__(self) -> None:
        self.dims: list[int] = []
        self.data_type: int | None = None
        self.name: Field | None = None
        self.data: Field | None = None
        self.external: list[Field] = []
        self.is_external = False
        self.is_odd = False  # something that no array has: pieces, a segment of a larger tensor, a shape without meaning

    def add_data(self, field: Field) -> None:
        """One more piece of data. Empty lists say nothing; of two pieces, the longer stands for both."""
        if field.number != _RAW and field.start == field.end:
            return
        self.is_odd |= self.data is not None
        if self.data is None or field.end - field.start > self.data.end - self.data.start:
            self.data = field


def read_tensor(walker: Walker, start: int, end: int) -> Tensor:
    """The TensorProto at ``start .. end``. Raises HeaderSyntaxError, HeaderTooLargeError."""
    parts = _Parts()
    for field in walker.fields(start, end):
        wires = _WIRES.get(field.number)
        if wires is not None:
            expect_wire(field, wires, "TensorProto")
            _take(walker, field, parts)
    name = walker.text(parts.name, NAME_LIMIT_BYTES) if parts.name else ""
    dtype = DTYPES.get(parts.data_type or 0, "")
    dims = tuple(parts.dims)
    try:
        length = tensor_bytes(dtype, dims)
    except UnknownDtypeError:
        dtype, length = "", None
    if parts.is_external:
        external = _read_external(walker, parts.external)
        array = not parts.is_odd and length is not None and external is not None
        return Tensor(name, dtype, dims, Storage.EXTERNAL if array else Storage.NONE, end, end, external)
    if parts.data is None:
        storage = Storage.ARRAY if length == 0 and not parts.is_odd else Storage.NONE
        return Tensor(name, dtype, dims, storage, end, end)
    field = parts.data
    array = field.number == _RAW or (field.wire is Wire.LENGTH and dtype in _ARRAY_DTYPES.get(field.number, ()))
    fits = array and not parts.is_odd and length == field.end - field.start
    return Tensor(name, dtype, dims, Storage.ARRAY if fits else Storage.OPAQUE, field.start, field.end)


def _take(walker: Walker, field: Field, parts: _Parts) -> None:
    """Adds what one field says. A number that comes twice is odd: parsers take the last, but nobody writes that."""
    if field.number == _DIMS:
        if field.wire is Wire.VARINT:
            parts.dims.append(field.value)
        elif field.end - field.start > PACKED_DIMS_LIMIT_BYTES:
            parts.is_odd = True
        else:
            parts.dims += walker.packed_varints(field)
        if len(parts.dims) > DIMS_LIMIT:
            parts.is_odd = True
            del parts.dims[DIMS_LIMIT:]
    elif field.number == _DATA_TYPE:
        parts.is_odd |= parts.data_type is not None
        parts.data_type = field.value
    elif field.number == _SEGMENT:
        parts.is_odd = True
    elif field.number == _NAME:
        parts.name = field
    elif field.number == _EXTERNAL_DATA:
        if len(parts.external) < EXTERNAL_ENTRIES_LIMIT:
            parts.external.append(field)
        parts.is_odd |= len(parts.external) >= EXTERNAL_ENTRIES_LIMIT
    elif field.number == _DATA_LOCATION:
        parts.is_external = field.value == 1
    elif field.number in _DATA_FIELDS:
        parts.add_data(field)


def tensor_bytes(dtype: str, dims: tuple[int, ...]) -> int | None:
    """Bytes of an array, the last one filled up; None where it cannot be an array of whole records. Raises UnknownDtypeError."""
    bits = records.element_bits(dtype) if dtype else 0
    if not bits:
        raise UnknownDtypeError("an element type without a record kind")
    elements = 1
    for dim in dims:
        elements *= dim or 1  # a negative one is 2^63 or more here
        if elements >= ELEMENTS_LIMIT:
            return None
    if 0 in dims:
        return 0
    length = -(-elements * bits // 8)
    return None if length % records.kind_of(dtype).record_bytes else length


def _read_external(walker: Walker, entries: list[Field]) -> External | None:
    """The location, offset and length among the entries (key 1, value 2); None if they are missing or make no sense."""
    found: dict[str, str] = {}
    for entry in entries:
        texts = {field.number: field for field in walker.fields(entry.start, entry.end) if field.wire is Wire.LENGTH}
        key, value = texts.get(1), texts.get(2)
        if key is None or value is None or max(key.end - key.start, value.end - value.start) > LOCATION_LIMIT_BYTES:
            continue
        found[walker.text(key, LOCATION_LIMIT_BYTES)] = walker.text(value, LOCATION_LIMIT_BYTES)
    numbers = [found.get("offset", "0"), found.get("length", "0")]
    if not found.get("location") or not all(re.fullmatch(r"[0-9]{1,19}", number) for number in numbers):
        return None
    return External(found["location"], int(numbers[0]), int(numbers[1]) if "length" in found else None)
