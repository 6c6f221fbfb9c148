"""A squashfs image of some files: two of one shape can take each other's place at one mount point.

One folder, nothing compressed, no fragments, no export table; as the kernel reads it (its source: fs/squashfs/squashfs_fs.h).
"""

from __future__ import annotations

import struct

_BLOCK_LOG = 17
_METADATA_AS_IT_IS, _DATA_AS_IT_IS = 1 << 15, 1 << 24
_FLAGS = 0x1 | 0x2 | 0x8 | 0x10 | 0x200
"""Inodes, data and fragments are not compressed, there are no fragments and no extended attributes."""
_NONE = (1 << 64) - 1


def _metadata(data: bytes) -> bytes:
    assert len(data) <= 8192
    return struct.pack("<H", len(data) | _METADATA_AS_IT_IS) + data


def squashfs_image(files: dict[str, bytes], time_seconds: int) -> bytes:
    """An image whose root folder has these files, each with this time of modification."""
    block_bytes = 1 << _BLOCK_LOG
    body, inodes, entries = bytearray(96), bytearray(), bytearray()
    for number, (name, data) in enumerate(sorted(files.items()), 2):
        start, sizes = len(body), []
        for at in range(0, len(data), block_bytes):
            part = data[at : at + block_bytes]
            body += part
            sizes.append(len(part) | _DATA_AS_IT_IS)
        entries += struct.pack("<HhHH", len(inodes), number - 1, 2, len(name) - 1) + name.encode()
        inodes += struct.pack("<HHHHII", 2, 0o644, 0, 0, time_seconds, number)
        inodes += struct.pack("<IIII", start, 0xFFFFFFFF, 0, len(data)) + struct.pack(f"<{len(sizes)}I", *sizes)
    root_at = len(inodes)
    directory = struct.pack("<III", len(files) - 1, 0, 1) + bytes(entries)
    inodes += struct.pack("<HHHHII", 1, 0o755, 0, 0, time_seconds, 1)
    inodes += struct.pack("<IIHHI", 0, 2, len(directory) + 3, 0, 1)
    inode_table = len(body)
    body += _metadata(bytes(inodes))
    directory_table = len(body)
    body += _metadata(directory)
    ids = len(body)
    body += _metadata(struct.pack("<I", 0))
    id_table = len(body)
    body += struct.pack("<Q", ids)
    head = (0x73717368, len(files) + 1, time_seconds, block_bytes, 0, 1, _BLOCK_LOG, _FLAGS, 1, 4, 0)
    tables = (root_at, len(body), id_table, _NONE, inode_table, directory_table, _NONE, _NONE)
    body[:96] = struct.pack("<IIIIIHHHHHHQQQQQQQQ", *head, *tables)
    return bytes(body.ljust(-(-len(body) // 4096) * 4096, b"\0"))
