"""Reading tables of a hostile FlatBuffer, field by field.

The encoding is that of the FlatBuffers documentation ("FlatBuffer Internals"): a table begins with a signed offset back to its vtable;
the vtable has its own size, the table's size, and for each field where in the table it lies, 0 if it is absent. Strings, vectors and
tables are reached by unsigned 32-bit offsets from where the offset stands. All numbers are little-endian.

Every offset is held against the file before it is followed; one that leads out of it is a HeaderSyntaxError that names its byte. There is
nothing here that follows offsets by itself, so there are no cycles: who walks goes as deep as the schema that it knows.
"""

from __future__ import annotations

from bitward_formats.errors import HeaderSyntaxError, HeaderTooLargeError, HeaderTooShortError
from bitward_formats.frozen import dataclass
from bitward_formats.readers.file_view import Fetch

OFFSET_BYTES = 4
CHUNK_BYTES = 1024
CHUNKS_LIMIT = 256
"""Chunks of the file that are kept. Tables lie in the order in which they were written, so a few are enough."""


class FlatFile:
    """Numbers at places of a file, read in small chunks of which the last used are kept."""

    def __init__(self, fetch: Fetch, file_bytes: int) -> None:
        self._fetch = fetch
        self.file_bytes = file_bytes
        self._chunks: dict[int, bytes] = {}

    def read(self, start: int, length: int) -> bytes:
        """``length`` bytes, which should be few. Raises HeaderSyntaxError where they are not in the file."""
        if start < 0 or start + length > self.file_bytes:
            raise HeaderSyntaxError(f"{length} bytes at byte {start} are not in the file of {self.file_bytes} bytes")
        first, last = start // CHUNK_BYTES, (start + max(length, 1) - 1) // CHUNK_BYTES
        chunks = [self._chunk(index) for index in range(first, last + 1)]
        found = (chunks[0] if len(chunks) == 1 else b"".join(chunks))[start - first * CHUNK_BYTES :][:length]
        if len(found) != length:
            raise HeaderTooShortError(f"the file ended within the {length} bytes at byte {start}")
        return found

    def _chunk(self, index: int) -> bytes:
        chunk = self._chunks.pop(index, None)
        if chunk is None:
            start = index * CHUNK_BYTES
            chunk = self._fetch(start, min(CHUNK_BYTES, self.file_bytes - start))
            if len(self._chunks) == CHUNKS_LIMIT:
                del self._chunks[next(iter(self._chunks))]
        self._chunks[index] = chunk
        return chunk

    def unsigned(self, place: int, size: int) -> int:
        """A number of ``size`` bytes."""
        return int.from_bytes(self.read(place, size), "little")

    def signed(self, place: int, size: int) -> int:
        """A number in two's complement."""
        return int.from_bytes(self.read(place, size), "little", signed=True)

    def target(self, place: int) -> int:
        """Where the offset at ``place`` leads: forward, into the file. Raises HeaderSyntaxError."""
        offset = self.unsigned(place, OFFSET_BYTES)
        if not OFFSET_BYTES <= offset <= self.file_bytes - place - OFFSET_BYTES:
            raise HeaderSyntaxError(f"the offset at byte {place} leads {offset} bytes on, out of the file or nowhere")
        return place + offset


@dataclass(frozen=True, slots=True)
class Vector:
    """``count`` elements from byte ``start`` on; all lie within the file."""

    start: int
    count: int


class Table:
    """One table: its fields by their number in the schema."""

    def __init__(self, file: FlatFile, place: int) -> None:
        """Raises HeaderSyntaxError for a table or vtable that is not within the file."""
        self._file = file
        self._place = place
        vtable = place - file.signed(place, OFFSET_BYTES)
        vtable_bytes, self._table_bytes = file.unsigned(vtable, 2), file.unsigned(vtable + 2, 2)
        if vtable_bytes < 4 or vtable_bytes % 2 or vtable + vtable_bytes > file.file_bytes:
            raise HeaderSyntaxError(f"the vtable at byte {vtable} claims {vtable_bytes} bytes")
        if self._table_bytes < OFFSET_BYTES or place + self._table_bytes > file.file_bytes:
            raise HeaderSyntaxError(f"the table at byte {place} claims {self._table_bytes} bytes")
        self._fields = vtable + 4
        self._field_count = (vtable_bytes - 4) // 2

    def _at(self, number: int, size: int) -> int | None:
        """Where a field lies; None if it is absent."""
        if number >= self._field_count:
            return None
        offset = self._file.unsigned(self._fields + 2 * number, 2)
        if not offset:
            return None
        if not OFFSET_BYTES <= offset <= self._table_bytes - size:
            raise HeaderSyntaxError(f"field {number} of the table at byte {self._place} lies {offset} bytes on, outside of the table")
        return self._place + offset

    def number(self, number: int, size: int) -> int:
        """An unsigned number of ``size`` bytes; 0 if it is absent."""
        place = self._at(number, size)
        return 0 if place is None else self._file.unsigned(place, size)

    def has(self, number: int) -> bool:
        """Whether a field that is an offset is there."""
        return self._at(number, OFFSET_BYTES) is not None

    def vector(self, number: int, element_bytes: int) -> Vector | None:
        """A vector, or a string with elements of one byte; None if it is absent. Raises HeaderSyntaxError where it leaves the file."""
        place = self._at(number, OFFSET_BYTES)
        if place is None:
            return None
        start = self._file.target(place) + OFFSET_BYTES
        count = self._file.unsigned(start - OFFSET_BYTES, OFFSET_BYTES)
        if count * element_bytes > self._file.file_bytes - start:
            raise HeaderSyntaxError(f"the vector at byte {start} claims {count} elements of {element_bytes} bytes, more than the file has")
        return Vector(start, count)

    def text(self, number: int, limit_bytes: int) -> str:
        """A string, its bytes that are not UTF-8 as escapes; "" if it is absent. Raises HeaderTooLargeError."""
        vector = self.vector(number, 1)
        if vector is None:
            return ""
        if vector.count > limit_bytes:
            raise HeaderTooLargeError(f"the text at byte {vector.start} has {vector.count} bytes; the most is {limit_bytes}")
        return self._file.read(vector.start, vector.count).decode("utf-8", "backslashreplace")

    def table_of(self, vector: Vector, index: int) -> Table:
        """One table of a vector of tables."""
        return Table(self._file, self._file.target(vector.start + OFFSET_BYTES * index))
