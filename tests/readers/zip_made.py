"""Zip archives that CPython's ``zipfile`` does not write by itself."""

from __future__ import annotations

import io
import struct
import zipfile

CENTRAL = b"PK\x01\x02"
END = b"PK\x05\x06"


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
