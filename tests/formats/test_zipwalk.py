"""The zip walker, against CPython's ``zipfile`` and against archives that lie."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable
from itertools import pairwise

import pytest

from bitward_formats.errors import (
    ArchiveBoundsError,
    ArchiveOverlapError,
    ArchiveSyntaxError,
    ArchiveTooLargeError,
    CheckpointError,
    DuplicateKeyError,
    UnsupportedArchiveError,
)
from bitward_formats.readers.file_view import FileView
from bitward_formats.readers.zipwalk import Archive, read_archive, read_contents, tile_archive

CENTRAL = b"PK\x01\x02"
LOCAL = b"PK\x03\x04"
END = b"PK\x05\x06"


def view_of(data: bytes) -> FileView:
    return FileView("a.zip", len(data), lambda offset, length: data[offset : offset + length])


def walk(data: bytes) -> Archive:
    return read_archive(view_of(data))


def archive(*, comment: bytes = b"", stream: bool = False, prefix: bytes = b"") -> bytes:
    """Two stored entries, one empty and one deflated, as zipfile writes them; a stream that cannot seek gets data descriptors."""
    buffer = io.BytesIO()
    buffer.write(prefix)
    target = Unseekable(buffer) if stream else buffer
    with zipfile.ZipFile(target, "a" if prefix else "w") as writer:  # type: ignore[call-overload]
        writer.writestr("a/data.pkl", b"stored" * 10)
        writer.writestr("a/empty", b"")
        writer.writestr("a/packed", b"packed" * 1000, zipfile.ZIP_DEFLATED)
        writer.writestr("ä", b"last")
        writer.comment = comment
    return buffer.getvalue()


class Unseekable(io.RawIOBase):
    """What zipfile can only write forward to."""

    def __init__(self, target: io.BytesIO) -> None:
        self.target = target

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        return self.target.write(data)  # type: ignore[arg-type]


VARIANTS = {
    "plain": archive(),
    "comment": archive(comment=b"a comment " * 50),
    "data descriptors": archive(stream=True),
    "prefix": archive(prefix=b"#!/bin/sh\n" * 9),
}


def zip64(data: bytes) -> bytes:
    """The same archive with zip64 fields in the last central entry and zip64 end records."""
    with zipfile.ZipFile(io.BytesIO(data)) as reader:
        last = reader.infolist()[-1]
        start, count = reader.start_dir, len(reader.infolist())
    end = data.rfind(END)
    place = data.rfind(CENTRAL)
    entry = bytearray(data[place:end])
    name_bytes = struct.unpack_from("<H", entry, 28)[0]
    struct.pack_into("<LL", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<L", entry, 42, 0xFFFFFFFF)
    struct.pack_into("<H", entry, 30, 28)
    extra = struct.pack("<HHQQQ", 1, 24, last.file_size, last.compress_size, last.header_offset)
    directory = data[start:place] + bytes(entry[: 46 + name_bytes]) + extra
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + len(directory), 1)
    classic = struct.pack("<4s4H2LH", END, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:start] + directory + end64 + locator + classic


VARIANTS["zip64"] = zip64(archive())


@pytest.mark.parametrize("data", VARIANTS.values(), ids=VARIANTS.keys())
def test_entries_are_those_of_zipfile(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as reader:
        walked = walk(data)
        assert [entry.name for entry in walked.entries] == reader.namelist()
        for entry, info in zip(walked.entries, reader.infolist(), strict=True):
            contents = reader.read(info)
            assert read_contents(view_of(data), entry, 10_000) == contents
            assert entry.is_stored == (info.compress_type == zipfile.ZIP_STORED)
            assert entry.is_deflated == (info.compress_type == zipfile.ZIP_DEFLATED)
            assert entry.crc32 == info.CRC
            if entry.is_stored:
                assert data[entry.offset : entry.end] == contents
    spans = tile_archive(walked, len(data), {})
    assert spans[0].offset == 0
    assert spans[-1].end == len(data)
    assert all(left.end == right.offset for left, right in pairwise(spans))


def edited(data: bytes, place: int, form: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, place, *values)
    return bytes(changed)


PLAIN = VARIANTS["plain"]
FIRST = PLAIN.find(CENTRAL)
SECOND = PLAIN.find(CENTRAL, FIRST + 1)
THIRD = PLAIN.find(CENTRAL, SECOND + 1)
LAST_END = PLAIN.rfind(END)
WIDE = VARIANTS["zip64"]
LOCATOR_AT = WIDE.rfind(b"PK\x06\x07")


@pytest.mark.parametrize(
    ("data", "error", "told"),
    [
        (b"", ArchiveSyntaxError, "end record"),
        (PLAIN[:-1], ArchiveSyntaxError, "end record"),
        (PLAIN[:LAST_END], ArchiveSyntaxError, "end record"),
        (PLAIN[:100], ArchiveSyntaxError, "end record"),
        (edited(PLAIN, LAST_END + 4, "<H", 1), UnsupportedArchiveError, "several disks"),
        (edited(PLAIN, THIRD + 32, "<H", 10), ArchiveSyntaxError, "ends within"),
        (edited(PLAIN, LAST_END + 8, "<HH", 3, 3), ArchiveSyntaxError, "follow its last entry"),
        (edited(PLAIN, LAST_END + 8, "<HH", 60000, 60000), ArchiveSyntaxError, "do not fit"),
        (edited(PLAIN, LAST_END + 12, "<L", 0x7FFFFFFF), ArchiveBoundsError, "must end at"),
        (edited(PLAIN, LAST_END + 16, "<L", 0x7FFFFFFF), ArchiveBoundsError, "must end at"),
        (edited(PLAIN, FIRST, "<B", 0), ArchiveSyntaxError, "no entry"),
        (edited(PLAIN, FIRST + 8, "<H", 1 << 13), UnsupportedArchiveError, "encrypted header"),
        (edited(PLAIN, FIRST + 24, "<L", 61), ArchiveSyntaxError, "is stored, but"),
        (edited(PLAIN, FIRST + 20, "<LL", 5000, 5000), ArchiveBoundsError, "claims 5000 bytes"),
        (edited(PLAIN, FIRST + 20, "<LL", 61, 61), ArchiveOverlapError, "before"),
        (edited(PLAIN, FIRST + 28, "<H", 60000), ArchiveSyntaxError, "ends within"),
        (edited(PLAIN, FIRST + 42, "<L", 0x7FFFFFFF), ArchiveBoundsError, "claims a header"),
        (edited(PLAIN, FIRST + 42, "<L", 1), ArchiveSyntaxError, "no header"),
        (edited(PLAIN, SECOND + 42, "<L", 0), ArchiveSyntaxError, "contradicts"),
        (edited(PLAIN, 8, "<H", 8), ArchiveSyntaxError, "contradicts"),
        (edited(PLAIN, 28, "<H", 60000), ArchiveBoundsError, "inside the directory"),
        (edited(PLAIN, FIRST + 46, "<B", 0), ArchiveSyntaxError, "holds a zero"),
        (PLAIN.replace(b"a/data.pkl", b"a/empty\xff\xff\xff").replace("ä".encode(), b"\xff\xff"), ArchiveSyntaxError, "not UTF-8"),
        (edited(WIDE, LOCATOR_AT + 4, "<L", 1), UnsupportedArchiveError, "several disks"),
        (edited(WIDE, LOCATOR_AT + 8, "<Q", 1), ArchiveSyntaxError, "does not stand"),
        (edited(WIDE, LOCATOR_AT - 56, "<B", 0), ArchiveSyntaxError, "no zip64 end record"),
        (edited(WIDE, LOCATOR_AT - 32, "<QQ", 1 << 60, 1 << 60), ArchiveTooLargeError, "entries"),
        (edited(WIDE, LOCATOR_AT - 56 - 26, "<H", 8), ArchiveSyntaxError, "too few"),
        (edited(WIDE, LOCATOR_AT - 56 - 26, "<H", 800), ArchiveSyntaxError, "end within one"),
        (edited(WIDE, LOCATOR_AT - 56 - 24, "<QQ", 1 << 63, 1 << 63), ArchiveBoundsError, "claims"),
    ],
)
def test_what_lies_is_named(data: bytes, error: type[CheckpointError], told: str) -> None:
    with pytest.raises(error, match=told):
        walk(data)


def test_the_same_name_twice() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as writer:
        writer.writestr("b1", b"1")
        writer.writestr("b2", b"2")
    with pytest.raises(DuplicateKeyError, match="'b1' twice"):
        walk(buffer.getvalue().replace(b"b2", b"b1"))


def test_encrypted_and_packed_entries_are_only_ranges() -> None:
    encrypted = walk(edited(PLAIN, FIRST + 8, "<H", 1)).entries[0]
    assert not encrypted.is_stored
    with pytest.raises(UnsupportedArchiveError, match="encrypted"):
        read_contents(view_of(PLAIN), encrypted, 1000)


def test_contents_that_do_not_unpack() -> None:
    packed = walk(PLAIN).entries[2]
    with pytest.raises(ArchiveTooLargeError, match="5999 are the most"):
        read_contents(view_of(PLAIN), packed, 5999)
    with pytest.raises(ArchiveSyntaxError, match="does not unpack"):
        read_contents(view_of(edited(PLAIN, packed.offset, "<L", 0xFFFFFFFF)), packed, 10_000)
    for size in (5999, 6001):
        lying = edited(PLAIN, THIRD + 24, "<L", size)
        with pytest.raises(ArchiveSyntaxError, match="does not unpack to"):
            read_contents(view_of(lying), walk(lying).entries[2], 10_000)


def test_a_file_that_shrinks_while_it_is_read() -> None:
    view = FileView("a.zip", len(PLAIN), lambda offset, length: PLAIN[offset : offset + length][:-1])
    with pytest.raises(ArchiveBoundsError, match="the file ended"):
        read_archive(view)


@pytest.mark.parametrize("data", [VARIANTS["plain"], VARIANTS["zip64"]], ids=["plain", "zip64"])
def test_mutations_give_a_named_error_or_a_sound_archive(data: bytes) -> None:
    seed = 20_260
    print(f"seed {seed}")
    random_bytes = random.Random(seed)
    mutate: list[Callable[[bytearray], None]] = [
        lambda text: text.__setitem__(random_bytes.randrange(len(text)), random_bytes.randrange(256)),
        lambda text: text.__delitem__(random_bytes.randrange(len(text))),
        lambda text: struct.pack_into("<L", text, random_bytes.randrange(len(text) - 4), random_bytes.choice([0, 1, 0xFFFFFFFF, 1 << 31])),
    ]
    for _ in range(1000):
        text = bytearray(data)
        for _ in range(random_bytes.randrange(1, 4)):
            random_bytes.choice(mutate)(text)
        try:
            walked = walk(bytes(text))
        except CheckpointError:
            continue
        spans = tile_archive(walked, len(text), {})
        assert all(left.end == right.offset for left, right in pairwise(spans))
        assert spans[-1].end == len(text)
