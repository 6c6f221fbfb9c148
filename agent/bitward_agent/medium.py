"""Which medium lies: the disk, or the memory that caches it. A range is read again around the page cache."""

from __future__ import annotations

import contextlib
import mmap
import os

from bitward_formats.blocks import Block
from bitward_formats.digest import LeafFunction

_ALIGNMENT_BYTES = 4096
DISK, MEMORY, UNKNOWN = "disk", "memory", "unknown"


class UncachedReader:
    """Reads a file with O_DIRECT; ``read`` gives ``None`` where file system or kernel will not."""

    def __init__(self, fd: int) -> None:
        """``fd`` is open on the file; a second descriptor of the very same file is opened through it, not by its name."""
        self._fd = -1
        with contextlib.suppress(OSError, AttributeError):
            self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, offset: int, length: int) -> bytes | None:
        """Exactly ``length`` bytes from the disk, or ``None``."""
        if self._fd < 0:
            return None
        low = offset // _ALIGNMENT_BYTES * _ALIGNMENT_BYTES
        size = -(-(offset + length - low) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        with mmap.mmap(-1, size) as buffer:  # anonymous maps are page-aligned, as O_DIRECT wants it
            try:
                count = os.preadv(self._fd, [buffer], low)
            except OSError:
                return None
            data = buffer[offset - low : min(count, offset - low + length)]
        return data if len(data) == length else None


def medium_of(reader: UncachedReader, block: Block, found: bytes, expected_leaf: bytes, leaf: LeafFunction) -> str:
    """Where a bad block went bad, given what the page cache holds of it."""
    on_disk = reader.read(block.offset, block.length)
    if on_disk is None:
        return UNKNOWN
    if leaf(on_disk, block.index, block.length) == expected_leaf:
        return MEMORY
    return DISK if on_disk == found else UNKNOWN
