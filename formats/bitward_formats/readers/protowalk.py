"""Walking over a hostile protobuf message without building it: fields one after the other, their payloads left where they are.

The wire format is that of the Protocol Buffers encoding guide: a field is a tag (field number and wire type) and a value, which is a
varint, four or eight bytes, or a length and so many bytes. Groups, which the guide deprecates, are refused. Nothing is interpreted
here: what a payload means is the caller's to know, who may walk into it as into a message.

Only what is asked for is read, through a window that is small after a jump and grows while fields follow each other, so that a message
of a few large payloads costs little. What is wrong is a HeaderSyntaxError that names the byte of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum

from bitward_formats.errors import HeaderSyntaxError, HeaderTooLargeError, HeaderTooShortError
from bitward_formats.frozen import dataclass
from bitward_formats.readers.file_view import Fetch

FIELDS_LIMIT = 1 << 22
"""Most fields of one file, a run of short unpacked elements counted as few. A graph of 100,000 nodes has about 2,000,000."""
VARINT_LIMIT_BYTES = 10
FIELD_HEAD_LIMIT_BYTES = 2 * VARINT_LIMIT_BYTES
FIRST_WINDOW_BYTES = 512
LAST_WINDOW_BYTES = 65_536
RUN_LIMIT_FIELDS = 256
"""Longest list of unpacked numbers that is given in full: one more than a shape may have dimensions."""
_MATCH_LIMIT = 1000


class Wire(IntEnum):
    """Wire types, with their numbers in a tag."""

    VARINT = 0
    FIXED64 = 1
    LENGTH = 2
    FIXED32 = 5


@dataclass(frozen=True, slots=True)
class Field:
    """One field. ``start .. end`` is the payload's range in the file (behind tag and length); ``value`` is a varint's number, else 0."""

    number: int
    wire: Wire
    start: int
    end: int
    value: int = 0


class Walker:
    """Walks over the messages of one file. It remembers a window of the file and counts fields, so one serves for the whole file."""

    def __init__(self, fetch: Fetch, file_bytes: int) -> None:
        self._fetch = fetch
        self.file_bytes = file_bytes
        self._window = b""
        self._window_start = 0
        self._next_window_bytes = FIRST_WINDOW_BYTES
        self._fields_left = FIELDS_LIMIT

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message that lies at ``start .. end``, in their order; of a longer run of numbers with the same tag, the
        first RUN_LIMIT_FIELDS. Raises HeaderSyntaxError, HeaderTooLargeError.
        """
        place = start
        run_tag, run_fields = b"", 0
        while place < end:
            field, tag = self._field(place, end)
            place = field.end
            yield field
            run_fields = run_fields + 1 if tag == run_tag else 1
            run_tag = tag
            # An unpacked list is one short field for each element: a message of trees has millions.
            if run_fields == RUN_LIMIT_FIELDS and field.wire is not Wire.LENGTH:
                place = self._skip_run(field, tag, place, end)

    def text(self, field: Field, limit_bytes: int) -> str:
        """A string field's text; bytes that are not UTF-8 are shown as escapes. Raises HeaderTooLargeError."""
        return self.payload(field, limit_bytes).decode("utf-8", "backslashreplace")

    def payload(self, field: Field, limit_bytes: int) -> bytes:
        """A short payload's bytes. Raises HeaderTooLargeError, and HeaderTooShortError where the file ends first."""
        length = field.end - field.start
        if length > limit_bytes:
            raise HeaderTooLargeError(f"field {field.number} at byte {field.start} has {length} bytes; the most is {limit_bytes}")
        self._show(field.start, length)
        at = field.start - self._window_start
        found = self._window[at : at + length]
        if len(found) != length:
            raise HeaderTooShortError(f"the file ended within field {field.number} at byte {field.start}")
        return found

    def packed_varints(self, field: Field) -> list[int]:
        """The numbers of a short packed list. Raises HeaderSyntaxError."""
        numbers = []
        place = field.start
        self._show(place, field.end - place)
        while place < field.end:
            number, place = self._varint(place, field.end)
            numbers.append(number)
        return numbers

    def holds(self, start: int, end: int, text: bytes) -> bool:
        """Whether a range of at most LAST_WINDOW_BYTES has these bytes in it; a longer one may have them."""
        if end - start > LAST_WINDOW_BYTES:
            return True
        self._show(start, end - start)
        at = start - self._window_start
        return self._window.find(text, at, at + end - start) >= 0

    def _field(self, place: int, end: int) -> tuple[Field, bytes]:
        """The field at ``place`` and its tag's bytes."""
        if not self._fields_left:
            raise HeaderTooLargeError(f"more than {FIELDS_LIMIT} fields before byte {place}")
        self._fields_left -= 1
        self._show(place, min(FIELD_HEAD_LIMIT_BYTES, end - place))
        tag, value_start = self._varint(place, end)
        number, wire = tag >> 3, tag & 7
        if not 1 <= number < 1 << 29:
            raise HeaderSyntaxError(f"byte {place}: field number {number} is not in 1 .. 2^29")
        tag_bytes = self._window[place - self._window_start : value_start - self._window_start]
        if wire == Wire.VARINT:
            value, value_end = self._varint(value_start, end)
            return Field(number, Wire.VARINT, value_start, value_end, value), tag_bytes
        if wire == Wire.LENGTH:
            length, value_start = self._varint(value_start, end)
        elif wire in (Wire.FIXED32, Wire.FIXED64):
            length = 4 if wire == Wire.FIXED32 else 8
        else:
            raise HeaderSyntaxError(f"byte {place}: field {number} has wire type {wire}, which is not used")
        if length > end - value_start:
            raise HeaderSyntaxError(f"byte {place}: field {number} claims {length} bytes; its message has {end - value_start} left")
        return Field(number, Wire(wire), value_start, value_start + length), tag_bytes

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        """A number of 7 bits a byte, lowest first, and where it ends. More than 64 bits are cut off, as the reference parsers do."""
        at = place - self._window_start
        value = 0
        for index, byte in enumerate(self._window[at : at + min(VARINT_LIMIT_BYTES, end - place)]):
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value & (1 << 64) - 1, place + index + 1
        raise HeaderSyntaxError(f"byte {place}: no varint ends before byte {min(place + VARINT_LIMIT_BYTES, end)}")

    def _skip_run(self, field: Field, tag: bytes, place: int, end: int) -> int:
        """Where a run of fields with this tag and no payload ends, as far as the window shows."""
        one = {Wire.VARINT: rb"[\x80-\xff]{0,9}[\x00-\x7f]", Wire.FIXED32: rb"[\x00-\xff]{4}", Wire.FIXED64: rb"[\x00-\xff]{8}"}[field.wire]
        run = re.compile(rb"(?:" + re.escape(tag) + one + rb"){0,%d}" % _MATCH_LIMIT)
        while True:
            self._show(place, min(FIELD_HEAD_LIMIT_BYTES, end - place))
            at = place - self._window_start
            match = run.match(self._window, at, min(len(self._window), at + end - place))
            if match is None or match.end() == at:
                return place
            place = self._window_start + match.end()

    def _show(self, start: int, length: int) -> None:
        """Moves the window so that it has ``start .. start + length``, as far as the file goes."""
        window_end = self._window_start + len(self._window)
        if self._window_start <= start and start + length <= window_end:
            return
        if self._window_start <= start <= window_end:
            self._next_window_bytes = min(2 * self._next_window_bytes, LAST_WINDOW_BYTES)
        else:
            self._next_window_bytes = FIRST_WINDOW_BYTES
        wanted = min(max(length, self._next_window_bytes), self.file_bytes - start)
        self._window = self._fetch(start, wanted)
        self._window_start = start
