"""Records: the smallest repeating elements of tensors, by the label of their element type (SPEC, section 2.2).

Which record a label stands for, which of its lanes are critical, to which number of the record a lane belongs, and what that number
means. Reads single records for reports; it is no array conversion. Labels may be hostile: an unknown one is an UnknownDtypeError.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from bitward_formats.errors import UnknownDtypeError
from bitward_formats.records.forms import Number, RecordForm, Value, make_form
from bitward_formats.records.ggml import BLOCKS
from bitward_formats.records.ggml_grids import GRID_BLOCKS
from bitward_formats.records.labels import Label, index_in_tensor, parse_label, unravel
from bitward_formats.records.plain import ELEMENT_TYPES, PLAIN_DTYPES, ElementType, decode, field_of_bit
from bitward_formats.spans import OPAQUE_KIND, RecordKind, Span

__all__ = [
    "OPAQUE_FORM",
    "PLAIN_DTYPES",
    "QUANTISED_DTYPES",
    "Label",
    "Number",
    "RecordForm",
    "Value",
    "decode_element",
    "element_bits",
    "elements_per_record",
    "field_of",
    "form_of",
    "form_of_span",
    "index_in_tensor",
    "is_known",
    "kind_of",
    "locator",
    "parse_label",
    "unravel",
]


_QUANTISED = {**BLOCKS, **GRID_BLOCKS}

QUANTISED_DTYPES: tuple[str, ...] = tuple(_QUANTISED)
"""The names of all types that come in blocks."""


def _unknown(dtype: str) -> UnknownDtypeError:
    return UnknownDtypeError(f"unknown element type {dtype[:40]!r}; this version knows {', '.join(PLAIN_DTYPES + QUANTISED_DTYPES)}")


def _element_type(dtype: str) -> ElementType:
    name = parse_label(dtype).element
    if name in _QUANTISED:
        raise UnknownDtypeError(f"{dtype[:40]} comes in blocks: its elements have no bits of their own")
    element = ELEMENT_TYPES.get(name)
    if element is None:
        raise _unknown(dtype)
    return element


def _plain_form(element: ElementType, *, big_endian: bool) -> RecordForm:
    count = element.elements_per_record
    record_bytes = element.bits * count // 8
    numbers = [Number(at, tuple(range(at * element.bits, (at + 1) * element.bits)), element) for at in range(count)]
    # The parts of a complex element keep their order; elements of a byte or less have no byte order.
    part = element.part_bits // 8 if element.part_bits % 8 == 0 else 1
    order = tuple(byte // part * part + part - 1 - byte % part for byte in range(record_bytes)) if big_endian and part > 1 else ()
    return make_form(record_bytes, count, numbers, lambda number, bit: number.type.is_critical(bit), order)


@cache
def _known_form(element: str, big_endian: bool) -> RecordForm:
    if element in _QUANTISED:
        return _QUANTISED[element]().form(big_endian=big_endian)
    return _plain_form(ELEMENT_TYPES[element], big_endian=big_endian)


OPAQUE_FORM = _known_form("", big_endian=False)
"""One byte that means nothing."""


def form_of(dtype: str) -> RecordForm:
    """The form of a label's record; one object for each. Raises UnknownDtypeError."""
    label = parse_label(dtype)
    if label.element not in ELEMENT_TYPES and label.element not in _QUANTISED:
        raise _unknown(dtype)
    return _known_form(label.element, big_endian=label.big_endian)


def is_known(dtype: str) -> bool:
    """Whether this version knows the label."""
    try:
        form_of(dtype)
    except UnknownDtypeError:
        return False
    return True


def form_of_span(span: Span) -> RecordForm:
    """The form of a span's records: that of its label, or bytes where the label is not known or does not fit the span's kind.

    Spans come out of sidecars as well, which another version, or anybody, can have made.
    """
    form = form_of(span.dtype) if is_known(span.dtype) else OPAQUE_FORM
    return form if form.kind.record_bytes == span.kind.record_bytes else OPAQUE_FORM


def locator(span: Span, form: RecordForm) -> Callable[[int], tuple[int, ...]]:
    """From the place of an element in a tensor's memory to its index; to the bare place where the shape does not count such elements.

    The last record may have room for more elements than the shape counts: odd numbers of elements of half a byte.
    """
    elements = span.length // form.kind.record_bytes * form.elements
    try:
        axes = parse_label(span.dtype).axes
    except UnknownDtypeError:
        axes = ()
    counted = math.prod(span.dims)
    if not 0 <= elements - counted < form.elements or (axes and len(axes) != len(span.dims)):
        return lambda place: (place,)
    return lambda place: index_in_tensor(axes, span.dims, place) if place < counted else (place,)


def kind_of(dtype: str) -> RecordKind:
    """The record kind of a label; "" is the opaque byte. Raises UnknownDtypeError."""
    kind = form_of(dtype).kind
    # One object for all opaque bytes, so that layouts share it.
    return OPAQUE_KIND if kind == OPAQUE_KIND and dtype in ("", "BOOL") else kind


def element_bits(dtype: str) -> int:
    """Width of one element in bits: 2 to 128. Raises UnknownDtypeError, also for types that come in blocks."""
    return _element_type(dtype).bits


def elements_per_record(dtype: str) -> int:
    """Elements in one record: more than one where an element is smaller than a byte, or comes in blocks. Raises UnknownDtypeError.

    Plain element e of a little-endian record occupies its lanes ``e * element_bits .. (e + 1) * element_bits``.
    """
    return form_of(dtype).elements


def field_of(dtype: str, bit: int) -> str:
    """What a bit of an element is: sign, exponent, mantissa, scale or raw (integers, booleans and opaque bytes).

    ``bit`` counts from the element's least significant bit, wherever that lies. Raises UnknownDtypeError, and ValueError for a bit that
    is not there.
    """
    element = _element_type(dtype)
    if not 0 <= bit < element.bits:
        raise ValueError(f"{dtype or 'an opaque byte'} has bits 0 to {element.bits - 1}, not {bit}")
    return field_of_bit(element, bit)


def decode_element(dtype: str, bits: int) -> Value:
    """The value that an element's bits mean, ``bits`` as an unsigned number (not as bytes: ``.BE`` makes no difference).

    See ``plain.decode``. Raises UnknownDtypeError, and ValueError for bits that the element does not have.
    """
    element = _element_type(dtype)
    if not 0 <= bits < 1 << element.bits:
        raise ValueError(f"{bits:#x} does not fit {element.bits} bits of {dtype or 'an opaque byte'}")
    return decode(element, bits)
