"""Where on its device a byte of a file lies: FIEMAP, as Linux documents it in Documentation/filesystems/fiemap.rst. Needs no rights.

A repair in place moves no extent, so the place of a repaired block can be asked for afterwards.
"""

from __future__ import annotations

import fcntl
import struct

from bitward_agent.daemon.facts import RepairRecord
from bitward_agent.errors import BitwardError
from bitward_agent.io import OpenFile

_FS_IOC_FIEMAP = 0xC020660B
_HEAD = struct.Struct("=QQIIII")
"""fm_start, fm_length, fm_flags, fm_mapped_extents, fm_extent_count, reserved."""
_EXTENT = struct.Struct("=QQQQQIIII")
"""fe_logical, fe_physical, fe_length, 2 reserved, fe_flags, 3 reserved."""
_NO_PLACE = 0x1 << 1 | 0x1 << 2 | 0x1 << 3
"""FIEMAP_EXTENT_UNKNOWN, DELALLOC, ENCODED: the physical offset means nothing."""


def place_on_device(fd: int, offset: int) -> int | None:
    """The byte of the device that holds byte ``offset`` of a file; ``None`` where the file system does not say."""
    request = bytearray(_HEAD.pack(offset, 1, 0, 0, 1, 0) + bytes(_EXTENT.size))
    try:
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
    except OSError:
        return None
    if not _HEAD.unpack_from(request)[3]:
        return None
    logical, physical, _, _, _, flags, *_ = _EXTENT.unpack_from(request, _HEAD.size)
    return None if flags & _NO_PLACE else int(physical + offset - logical)


def place_of_repair(repair: RepairRecord) -> int | None:
    """Where the block of a repair lies, if its file can still be opened."""
    try:
        with OpenFile(repair.path) as file:
            return place_on_device(file.fd, repair.offset)
    except BitwardError:
        return None
