"""The undo journal of a repair, and the log of repairs that were made.

The journal appears whole (it is written like a sidecar) before the first byte of the file is touched, and goes when all
was read back. A crash in between leaves it, and the next repair puts the old bytes back before it starts anew: so a torn
write is never worse than the damage was.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from bitward_agent.io import DISK, Disk, FileState, OpenFile, atomic_file, sync_folder

MAGIC = b"BWUNDO1\n"
_HEAD = struct.Struct("<8sQqQQQI")
_ENTRY = struct.Struct("<QI")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class UndoEntry:
    """``before``: what the file held at ``offset``."""

    offset: int
    before: bytes


@dataclass(frozen=True, slots=True)
class UndoJournal:
    """``size`` and ``mtime_ns`` are the file's before the repair; device and inode say which file it is."""

    state: FileState
    entries: tuple[UndoEntry, ...]


def write_journal(path: str, state: FileState, entries: Sequence[UndoEntry], disk: Disk = DISK) -> None:
    """Make the journal durable under ``path``.

    Raises:
        WriteError: no space or no permission; the file has not been touched.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    at = 0
    with atomic_file(path, disk) as target:

        def put(data: bytes) -> None:
            nonlocal at
            digest.update(data)
            target.write_all(data, at)
            at += len(data)

        put(_HEAD.pack(MAGIC, state.size, state.mtime_ns, state.device, state.inode, sum(len(one.before) for one in entries), len(entries)))
        for entry in entries:
            put(_ENTRY.pack(entry.offset, len(entry.before)) + entry.before)
        target.write_all(digest.digest(), at)


def read_journal(path: str, disk: Disk = DISK) -> UndoJournal | None:
    """The journal under ``path``; ``None`` if it is not whole (then nothing had been written yet)."""
    with OpenFile(path, disk=disk) as file:
        data = file.read(0, file.state().size)
    if len(data) < _HEAD.size + _DIGEST_BYTES:
        return None
    body, stored = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != stored or not body.startswith(MAGIC):
        return None
    _, size, mtime_ns, device, inode, _, count = _HEAD.unpack_from(body)
    entries, at = [], _HEAD.size
    for _ in range(count):
        offset, length = _ENTRY.unpack_from(body, at)
        at += _ENTRY.size
        entries.append(UndoEntry(offset, body[at : at + length]))
        at += length
    return UndoJournal(FileState(size, mtime_ns, device, inode), tuple(entries))


def undo(file: OpenFile, journal: UndoJournal) -> None:
    """Put the file's old bytes and size back and make that durable. May be repeated."""
    for entry in journal.entries:
        file.write_all(entry.before, entry.offset)
    if file.state().size != journal.state.size:
        file.disk.truncate(file.fd, journal.state.size)
    file.disk.set_mtime(file.fd, journal.state.mtime_ns, journal.state.mtime_ns)
    file.disk.sync(file.fd)


def drop_journal(path: str, disk: Disk = DISK) -> None:
    """Forget the journal, durably."""
    disk.unlink(path)
    sync_folder(path, disk)


def recover(path: str, journal: str, disk: Disk = DISK) -> str:
    """Finish what an interrupted repair left; returns what was done, in words, or ``""``.

    Raises:
        UnreadableError, WriteError: the journal or the file cannot be opened; both are left as they are.
    """
    if not os.path.lexists(journal):
        return ""
    kept = read_journal(journal, disk)
    if kept is None:
        drop_journal(journal, disk)
        return "dropped an undo journal that was not whole"
    with OpenFile(path, write=True, disk=disk) as file:
        now = file.state()
        if (now.device, now.inode) != (kept.state.device, kept.state.inode):
            message = "dropped the undo journal of another file that had this name"
        else:
            undo(file, kept)
            message = "undid a repair that was interrupted"
    drop_journal(journal, disk)
    return message


def log_path(sidecar: str) -> str:
    """Where the log of repairs of a file is kept: one JSON document a line."""
    return sidecar + "-log"


def append_log(path: str, record: dict[str, object], disk: Disk = DISK) -> None:
    """Add a line to the log of repairs and make it durable."""
    fd = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    try:
        os.write(fd, json.dumps(record, separators=(",", ":")).encode() + b"\n")
        disk.sync(fd)
    finally:
        disk.close(fd)
