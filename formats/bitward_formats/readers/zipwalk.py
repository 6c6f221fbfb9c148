"""Walking over a hostile zip archive: where each entry's bytes lie in the file.

Container formats that are zip archives (PyTorch, npz) keep their tensors in stored entries, whose bytes are the file's own. The walker
reads the end of central directory record, the zip64 records, the central directory and each entry's local header; no entry's contents.
Every number is held against the file before it is used, and what contradicts itself is a named error: two readers of an ambiguous
archive would see different tensors.

Facts are from PKWARE's APPNOTE 6.3.x, sections 4.3 (records), 4.4 (fields) and 4.5.3 (zip64). Where the archive really begins, if bytes
stand before it, is settled as CPython's ``zipfile`` does: by the place of the end record, not by the offset written in it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import attrgetter

from bitward_formats.errors import (
    ArchiveBoundsError,
    ArchiveOverlapError,
    ArchiveSyntaxError,
    ArchiveTooLargeError,
    DuplicateKeyError,
    UnsupportedArchiveError,
)
from bitward_formats.frozen import dataclass
from bitward_formats.readers.file_view import FileView
from bitward_formats.readers.jsonwalk import shown
from bitward_formats.spans import OPAQUE_KIND, Role, Span

LOCAL_MAGIC = b"PK\x03\x04"
"""An archive without a prefix begins with this, or, when it holds nothing, with its end record."""
ENTRY_LIMIT = 1 << 20
DIRECTORY_LIMIT_BYTES = 1 << 28
"""A million entries with names and extra fields of 200 bytes together."""
STORED = 0
DEFLATED = 8

_END = struct.Struct("<4s4H2LH")
_END_MAGIC = b"PK\x05\x06"
_LOCATOR = struct.Struct("<4sLQL")
_LOCATOR_MAGIC = b"PK\x06\x07"
_END64 = struct.Struct("<4sQ2H2L4Q")
_END64_MAGIC = b"PK\x06\x06"
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_CENTRAL_MAGIC = b"PK\x01\x02"
_LOCAL = struct.Struct("<4s5H3L2H")
_EXTRA = struct.Struct("<HH")
_ZIP64_EXTRA = 0x0001
_IN_ZIP64 = 0xFFFF_FFFF
_COMMENT_LIMIT_BYTES = 0xFFFF

_ENCRYPTED = 1 << 0
_PATCH = 1 << 5
_STRONGLY_ENCRYPTED = 1 << 6
_UTF8_NAME = 1 << 11
_DIRECTORY_ENCRYPTED = 1 << 13


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an archive. ``header_offset``, ``offset`` and ``length`` are of the file; ``size`` is that of the unpacked contents.

    ``is_stored`` says that the ``length == size`` bytes at ``offset`` are the contents themselves; ``is_deflated``, that they can be
    unpacked; neither holds for what is encrypted or packed by another method.
    """

    name: str
    header_offset: int
    offset: int
    length: int
    size: int
    crc32: int
    is_stored: bool
    is_deflated: bool

    @property
    def end(self) -> int:
        """Where its bytes end; a data descriptor may follow."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Archive:
    """The entries in the order of their offsets; their ranges are disjoint and end before ``directory_offset``.

    ``prefix_bytes`` stand before the archive (self-extracting programs); all offsets here already count from the file's start.
    """

    entries: tuple[Entry, ...]
    prefix_bytes: int
    directory_offset: int

    def by_name(self) -> dict[str, Entry]:
        """The entries by their names, which are unique."""
        return {entry.name: entry for entry in self.entries}


@dataclass(frozen=True, slots=True)
class _Directory:
    offset: int
    length: int
    entry_count: int
    prefix_bytes: int


def read_archive(view: FileView) -> Archive:
    """All entries of an archive. Reads the directory and, per entry, its local header; contents are left alone.

    Memory stays below ten times the directory. Raises one of the Archive errors, or DuplicateKeyError for a name that comes twice.
    """
    directory = _find_directory(view)
    table = _fetch(view, directory.offset, directory.length, "the central directory")
    entries: list[Entry] = []
    names: set[str] = set()
    place = 0
    for _ in range(directory.entry_count):
        entry, place = _read_entry(view, table, place, directory)
        if entry.name in names:
            raise DuplicateKeyError(f"the archive holds {shown(entry.name)} twice")
        names.add(entry.name)
        entries.append(entry)
    if place != directory.length:
        raise ArchiveSyntaxError(f"{directory.length - place} bytes of the central directory follow its last entry")
    entries.sort(key=attrgetter("header_offset"))
    _check_disjoint(entries)
    return Archive(tuple(entries), directory.prefix_bytes, directory.offset)


def read_contents(view: FileView, entry: Entry, limit_bytes: int) -> bytes:
    """The unpacked contents of one entry, at most ``limit_bytes``.

    Raises ArchiveTooLargeError for more, UnsupportedArchiveError for encrypted or otherwise packed ones, ArchiveSyntaxError for what
    does not unpack to ``entry.size`` bytes. The CRC is not compared: PyTorch can write files without a true one.
    """
    # Deflate at its worst adds a few bytes per block; a kibibyte and a part in 256 are more than enough.
    if entry.size > limit_bytes or entry.length > limit_bytes + limit_bytes // 256 + 1024:
        raise ArchiveTooLargeError(f"{shown(entry.name)} has {max(entry.size, entry.length)} bytes; {limit_bytes} are the most here")
    if not (entry.is_stored or entry.is_deflated):
        raise UnsupportedArchiveError(f"{shown(entry.name)} is encrypted, or packed by a method other than deflate")
    data = _fetch(view, entry.offset, entry.length, shown(entry.name))
    if entry.is_stored:
        return data
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        contents = inflater.decompress(data, entry.size + 1)
    except zlib.error as error:
        raise ArchiveSyntaxError(f"{shown(entry.name)} does not unpack: {error}") from None
    if len(contents) != entry.size or not inflater.eof:
        raise ArchiveSyntaxError(f"{shown(entry.name)} does not unpack to the {entry.size} bytes that the directory gives it")
    return contents


def tile_archive(archive: Archive, file_bytes: int, contents: Mapping[str, Sequence[Span]]) -> list[Span]:
    """Spans over the whole file: ``contents`` of the entries named there, which must cover each one's bytes; other entries as data.

    What stands around entries (local headers, padding, data descriptors) is header, the directory and what follows it trailer.
    Neighbouring header spans are joined.
    """
    spans: list[Span] = []
    header_start = place = 0
    for entry in archive.entries:
        pieces = contents.get(entry.name)
        if pieces is None:
            pieces = (Span(Role.DATA, OPAQUE_KIND, entry.offset, entry.length),) if entry.length else ()
        place = entry.offset
        for piece in pieces:
            if piece.role is not Role.HEADER:
                if header_start < piece.offset:
                    spans.append(Span(Role.HEADER, OPAQUE_KIND, header_start, piece.offset - header_start))
                spans.append(piece)
                header_start = piece.end
            place = piece.end
        if place != entry.end:
            raise AssertionError(f"spans of {entry.name!r} end at {place}, the entry at {entry.end}")
    if header_start < archive.directory_offset:
        spans.append(Span(Role.HEADER, OPAQUE_KIND, header_start, archive.directory_offset - header_start))
    spans.append(Span(Role.TRAILER, OPAQUE_KIND, archive.directory_offset, file_bytes - archive.directory_offset))
    return spans


def _fetch(view: FileView, offset: int, length: int, what: str) -> bytes:
    """A range that lies in the file: the caller has checked. Fewer bytes mean that the file shrank meanwhile."""
    data = view.fetch(offset, length)
    if len(data) != length:
        raise ArchiveBoundsError(f"the file ended after {len(data)} of the {length} bytes of {what} at {offset}")
    return data


def _find_directory(view: FileView) -> _Directory:
    """Where the central directory is, by the end record and, where there is one, the zip64 end record."""
    end_offset, end = _find_end(view)
    _, disk, directory_disk, disk_entries, entry_count, length, claimed_offset, _ = _END.unpack(end)
    directory_end = end_offset
    locator_offset = end_offset - _LOCATOR.size
    if locator_offset >= _END64.size:
        records = _fetch(view, locator_offset - _END64.size, _END64.size + _LOCATOR.size, "the zip64 end record")
        magic, end64_disk, claimed_end64, disk_count = _LOCATOR.unpack_from(records, _END64.size)
        if magic == _LOCATOR_MAGIC:
            directory_end = locator_offset - _END64.size
            fields = _END64.unpack_from(records)
            if fields[0] != _END64_MAGIC:
                raise ArchiveSyntaxError(f"no zip64 end record before its locator at byte {locator_offset}")
            if end64_disk or disk_count > 1:
                raise UnsupportedArchiveError("the archive spans several disks")
            disk, directory_disk, disk_entries, entry_count, length, claimed_offset = fields[4:]
            if claimed_end64 - claimed_offset != length:
                raise ArchiveSyntaxError("the zip64 end record does not stand where the central directory ends")
    if disk or directory_disk or disk_entries != entry_count:
        raise UnsupportedArchiveError("the archive spans several disks")
    if length > directory_end or claimed_offset > directory_end - length:
        raise ArchiveBoundsError(f"the central directory claims {length} bytes at {claimed_offset}; it must end at {directory_end}")
    if length > DIRECTORY_LIMIT_BYTES or entry_count > ENTRY_LIMIT:
        raise ArchiveTooLargeError(
            f"a central directory of {length} bytes and {entry_count} entries; at most {DIRECTORY_LIMIT_BYTES} and {ENTRY_LIMIT} are read"
        )
    if entry_count * _CENTRAL.size > length:
        raise ArchiveSyntaxError(f"{entry_count} entries do not fit the {length} bytes of the central directory")
    offset = directory_end - length
    return _Directory(offset, length, entry_count, offset - claimed_offset)


def _find_end(view: FileView) -> tuple[int, bytes]:
    """The end record's offset and bytes: the file's last 22 bytes, or the last such record before a comment."""
    tail_bytes = min(view.size, _END.size)
    tail = _fetch(view, view.size - tail_bytes, tail_bytes, "the end record")
    if len(tail) == _END.size and tail.startswith(_END_MAGIC) and tail.endswith(b"\0\0"):
        return view.size - _END.size, tail
    tail_bytes = min(view.size, _END.size + _COMMENT_LIMIT_BYTES)
    tail = _fetch(view, view.size - tail_bytes, tail_bytes, "the end record and a comment")
    place = tail.rfind(_END_MAGIC)
    if place < 0 or len(tail) - place < _END.size:
        raise ArchiveSyntaxError("the file does not end with the end record of a zip archive")
    return view.size - tail_bytes + place, tail[place : place + _END.size]


def _read_entry(view: FileView, table: bytes, place: int, directory: _Directory) -> tuple[Entry, int]:
    """The entry at ``place`` of the central directory, with its local header checked, and where the next one begins."""
    where = f"byte {directory.offset + place}"
    if len(table) - place < _CENTRAL.size:
        raise ArchiveSyntaxError(f"the central directory ends within the entry at {where}")
    fields = _CENTRAL.unpack_from(table, place)
    magic, _, _, flags, method, _, _, crc32, length, size, name_bytes, extra_bytes, comment_bytes, disk, _, _, header_offset = fields
    if magic != _CENTRAL_MAGIC:
        raise ArchiveSyntaxError(f"no entry of the central directory at {where}")
    name_end = place + _CENTRAL.size + name_bytes
    next_place = name_end + extra_bytes + comment_bytes
    if next_place > len(table):
        raise ArchiveSyntaxError(f"the central directory ends within the entry at {where}")
    name = _name(table[name_end - name_bytes : name_end], flags, where)
    if flags & _DIRECTORY_ENCRYPTED or disk not in (0, 0xFFFF):
        raise UnsupportedArchiveError(f"{shown(name)} has an encrypted header, or lies on another disk")
    size, length, header_offset = _widened(table[name_end : name_end + extra_bytes], [size, length, header_offset], name)
    plain = not flags & (_ENCRYPTED | _PATCH | _STRONGLY_ENCRYPTED)
    header_offset += directory.prefix_bytes
    offset = _contents_offset(view, name, table[name_end - name_bytes : name_end], header_offset, method, directory.offset)
    if length > directory.offset - offset:
        raise ArchiveBoundsError(f"{shown(name)} claims {length} bytes at {offset}; the directory begins at {directory.offset}")
    if method == STORED and plain and size != length:
        raise ArchiveSyntaxError(f"{shown(name)} is stored, but {size} bytes take {length}")
    return Entry(name, header_offset, offset, length, size, crc32, plain and method == STORED, plain and method == DEFLATED), next_place


def _name(raw: bytes, flags: int, where: str) -> str:
    try:
        name = raw.decode("utf-8" if flags & _UTF8_NAME else "cp437")
    except UnicodeDecodeError:
        raise ArchiveSyntaxError(f"the name of the entry at {where} is not UTF-8, as its flags say") from None
    if "\0" in name or not name:
        # Some readers cut a name at its zero: they would see another archive.
        raise ArchiveSyntaxError(f"the name of the entry at {where} is empty or holds a zero")
    return name


def _widened(extra: bytes, values: list[int], name: str) -> list[int]:
    """The sizes and offset with those that are too large for 32 bits taken from the zip64 extra field, which lists only these."""
    place = 0
    while _IN_ZIP64 in values and len(extra) - place >= _EXTRA.size:
        kind, field_bytes = _EXTRA.unpack_from(extra, place)
        place += _EXTRA.size
        if field_bytes > len(extra) - place:
            raise ArchiveSyntaxError(f"the extra fields of {shown(name)} end within one")
        if kind == _ZIP64_EXTRA:
            missing = [index for index, value in enumerate(values) if value == _IN_ZIP64]
            if field_bytes < 8 * len(missing):
                raise ArchiveSyntaxError(f"the zip64 field of {shown(name)} has {field_bytes} bytes, too few for what it must hold")
            wide = struct.unpack_from(f"<{len(missing)}Q", extra, place)
            return [wide[missing.index(index)] if index in missing else value for index, value in enumerate(values)]
        place += field_bytes
    return values


def _contents_offset(view: FileView, name: str, raw_name: bytes, header_offset: int, method: int, directory_offset: int) -> int:
    """Where an entry's contents begin: behind its local header, whose name and extra field may differ in length from the directory's."""
    header_bytes = _LOCAL.size + len(raw_name)
    if header_offset > directory_offset - header_bytes:
        raise ArchiveBoundsError(f"{shown(name)} claims a header at {header_offset}; the directory begins at {directory_offset}")
    header = _fetch(view, header_offset, header_bytes, f"the header of {shown(name)}")
    magic, _, _, local_method, _, _, _, _, _, name_bytes, extra_bytes = _LOCAL.unpack_from(header)
    if magic != LOCAL_MAGIC:
        raise ArchiveSyntaxError(f"no header of {shown(name)} at {header_offset}")
    if name_bytes != len(raw_name) or header[_LOCAL.size :] != raw_name or local_method != method:
        raise ArchiveSyntaxError(f"the header at {header_offset} contradicts the directory's entry {shown(name)}")
    offset: int = header_offset + header_bytes + extra_bytes
    if offset > directory_offset:
        raise ArchiveBoundsError(f"{shown(name)} begins at {offset}, inside the directory at {directory_offset}")
    return offset


def _check_disjoint(entries: list[Entry]) -> None:
    """Sorted entries must not share bytes: overlapping ones are the trick of zip bombs."""
    for last, entry in pairwise(entries):
        if entry.header_offset < last.end:
            raise ArchiveOverlapError(f"{shown(entry.name)} begins at {entry.header_offset}, before {shown(last.name)} ends at {last.end}")
