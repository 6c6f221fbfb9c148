"""The undo journal of a repair, and the log of repairs that were made.

The journal appears whole (it is written like a sidecar) before the first byte of the file is touched, and goes when all
was read back. A crash in between leaves it, and the next repair puts the old bytes back where no digest vouches for the new
ones, before it starts anew: so a torn write is never worse than the damage was. A journal is not believed either: it cannot
make a block bad that is good.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
from collections.abc import Sequence
from itertools import pairwise

from bitward_agent.durable import atomic_file, remove
from bitward_agent.errors import JournalError, WriteError
from bitward_agent.io import DISK, Disk, FileState, OpenFile, open_folder, reason
from bitward_formats.frozen import dataclass

MAGIC = b"BWUNDO2\n"
JOURNAL_LIMIT_BYTES = 96 << 20
"""More than any repair writes at once; what is longer is not read."""

_HEAD = struct.Struct("<8sQqQQQI")
_ENTRY = struct.Struct("<QII")
_CHECK_BYTES = 8
_SECTOR_BYTES = 512
"""What a disk writes whole or not at all."""
_DIGEST_BYTES = 32
_FILE_LIMIT_BYTES = 1 << 62


@dataclass(frozen=True, slots=True)
class UndoEntry:
    """``before``: what the file held at ``offset``; ``after_checks``: an 8-byte check of each sector of what is to be written there."""

    offset: int
    before: bytes | memoryview
    after_checks: bytes = b""

    @property
    def end(self) -> int:
        return self.offset + len(self.before)

    def foreign_sectors(self, now: bytes) -> int:
        """How many sectors of what the file holds now are neither as before nor as they were to become: somebody else wrote them."""
        checks = [self.after_checks[at : at + _CHECK_BYTES] for at in range(0, len(self.after_checks), _CHECK_BYTES)]
        count = 0
        for (low, high), check in zip(sectors(self.offset, len(now)), checks, strict=False):
            part = now[low:high]
            count += part != self.before[low:high] and sector_check(part) != check
        return count


@dataclass(frozen=True, slots=True)
class UndoJournal:
    """``state`` is the file's before the repair: size, modification time, and which file it is."""

    state: FileState
    entries: tuple[UndoEntry, ...]


def sectors(offset: int, length: int) -> list[tuple[int, int]]:
    """The parts of ``length`` bytes at ``offset`` of a file that lie in one sector each, as ranges from 0."""
    cuts = [0, *range(_SECTOR_BYTES - offset % _SECTOR_BYTES, length, _SECTOR_BYTES), length]
    return [(low, high) for low, high in pairwise(cuts) if low < high]


def sector_check(part: bytes) -> bytes:
    """The check of one sector's part."""
    return hashlib.blake2b(part, digest_size=_CHECK_BYTES).digest()


def entry_for(offset: int, before: bytes, after: bytes) -> UndoEntry:
    """The entry for a write of ``after`` over ``before``, which is shorter where the file ends."""
    return UndoEntry(offset, before, b"".join(sector_check(after[low:high]) for low, high in sectors(offset, len(after))))


def write_journal(path: str, state: FileState, entries: Sequence[UndoEntry], disk: Disk = DISK, *, mode: int) -> None:
    """Make the journal durable under ``path``, open to those to whom the file is (``mode``).

    Raises:
        WriteError: no space or no permission; the file has not been touched.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    at = 0
    with atomic_file(path, disk, mode=mode) as target:

        def put(data: bytes) -> None:
            nonlocal at
            digest.update(data)
            target.write_all(data, at)
            at += len(data)

        put(_HEAD.pack(MAGIC, state.size, state.mtime_ns, state.device, state.inode, sum(len(one.before) for one in entries), len(entries)))
        for entry in entries:
            put(_ENTRY.pack(entry.offset, len(entry.before), len(entry.after_checks)) + entry.before + entry.after_checks)
        target.write_all(digest.digest(), at)


def read_journal(path: str, disk: Disk = DISK) -> UndoJournal | None:
    """The journal under ``path``; ``None`` if it has rotted: it was whole when it appeared.

    Raises:
        JournalError: this is not what a repair leaves.
        UnreadableError: it cannot be opened.
    """
    with OpenFile(path, disk=disk) as file:
        size = file.state().size
        if size > JOURNAL_LIMIT_BYTES:
            raise JournalError(f"{path}: {size} bytes are too many for an undo journal: remove it, then repair again")
        data = memoryview(file.read(0, size))
    if len(data) < _HEAD.size + _DIGEST_BYTES:
        return None
    body, stored = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != stored or body[: len(MAGIC)] != MAGIC:
        return None
    _, file_size, mtime_ns, device, inode, _, count = _HEAD.unpack_from(body)
    entries, at = [], _HEAD.size
    try:
        for _ in range(count):
            offset, length, check_bytes = _ENTRY.unpack_from(body, at)
            at += _ENTRY.size
            entries.append(UndoEntry(offset, body[at : at + length], bytes(body[at + length : at + length + check_bytes])))
            at += length + check_bytes
    except struct.error:
        at = -1
    if at != len(body) or file_size > _FILE_LIMIT_BYTES or any(entry.before and entry.end > file_size for entry in entries):
        raise JournalError(f"{path}: not the undo journal of a repair: remove it, then repair again")
    return UndoJournal(FileState(file_size, mtime_ns, device, inode), tuple(entries))


def undo(file: OpenFile, journal: UndoJournal) -> None:
    """Put the file's old bytes, size and time back and make that durable. May be repeated.

    Raises:
        WriteError: by name and place.
    """
    try:
        for entry in journal.entries:
            file.write_all(entry.before, entry.offset)
        if file.state().size != journal.state.size:
            file.disk.truncate(file.fd, journal.state.size)
        restore_mtime(file, journal.state.mtime_ns)
        file.disk.sync(file.fd)
    except OSError as error:
        raise WriteError(f"{file.path}: an interrupted repair cannot be undone: {reason(error)}") from error


def restore_mtime(file: OpenFile, mtime_ns: int) -> bool:
    """Set a file's modification time; returns whether that was allowed: only its owner may."""
    try:
        file.disk.set_mtime(file.fd, mtime_ns, mtime_ns)
    except (PermissionError, OverflowError):
        return False
    return True


def drop_journal(path: str, disk: Disk = DISK) -> None:
    """Forget the journal, durably."""
    remove(path, disk)


def log_path(sidecar: str) -> str:
    """Where the log of repairs of a file is kept: one JSON document a line."""
    return sidecar + "-log"


def append_log(path: str, record: dict[str, object], disk: Disk = DISK, *, mode: int) -> None:
    """Add a line to the log of repairs and make it durable.

    Raises:
        OSError: it cannot be written.
    """
    line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
    folder, name = os.path.split(path)
    with contextlib.ExitStack() as stack:
        folder_fd = open_folder(folder, disk)
        stack.callback(disk.close, folder_fd)
        fd = disk.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, mode, dir_fd=folder_fd)
        stack.callback(disk.close, fd)
        found = disk.stat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "not a regular file")
        OpenFile.adopt(path, fd, disk).write_all(line, found.st_size)
        disk.sync(fd)
