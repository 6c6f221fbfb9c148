"""A blob's bytes, read once: hashed, held against a digest, copied. Streams; memory does not grow with the blob.

Unreadable sectors are zeros here, and told.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from bitward.registries.blob_suspects import SUSPECTS_LIMIT
from bitward_agent.durable import check_room, make_empty
from bitward_agent.errors import BusyError, UnreadableError
from bitward_agent.findings import Progress, ProgressSink
from bitward_agent.io import OpenFile, Range, merge_ranges
from bitward_formats.checksums import Algorithm, Part
from bitward_formats.frozen import dataclass

CHUNK_BYTES = 1 << 20

Told = Callable[[int, int], object]
"""Called with the bytes done and the bytes in all."""


class LostRangeError(UnreadableError):
    """Part of a file cannot be read: the medium lost it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a blob should be, or is: SHA-256 in hexadecimal, and bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What a blob's bytes are: whether they have the digest, how many they are, and which sectors could not be read."""

    is_right: bool
    size: int
    unreadable: tuple[Range, ...] = ()


def read_blob(path: str, part: Part, told: Told | None = None) -> Reading:
    """Read a blob once and compare its digest.

    Raises:
        UnreadableError: it cannot be opened or read.
        BusyError: it changes while it is read.
    """
    digest, size, lost = _read(path, part.algorithm, None, told)
    return Reading(not lost and digest == part.digest, size, lost)


def hash_file(path: str, progress: ProgressSink | None = None, *, end: int | None = None) -> Wanted:
    """SHA-256 and size of a file as it is, or of its first ``end`` bytes.

    Raises:
        LostRangeError: part of it cannot be read.
        UnreadableError: it cannot be opened.
        BusyError: it changes while it is read.
    """

    def told(done: int, total: int) -> None:
        if progress:
            progress(Progress("hash", path, done, total))

    digest, size, lost = _read(path, Algorithm.SHA256, end, told)
    if lost:
        raise LostRangeError(f"{path}: bytes {lost[0][0]} to {lost[0][1]} cannot be read")
    return Wanted(digest.hex(), size)


def _read(path: str, algorithm: Algorithm, end: int | None, told: Told | None) -> tuple[bytes, int, tuple[Range, ...]]:
    """Digest, number of bytes, and what of them could not be read."""
    with OpenFile(path) as file:
        state = file.state()
        size = state.size if end is None else min(end, state.size)
        digest = hashlib.sha256()
        if algorithm is Algorithm.GIT_BLOB:
            digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        buffer = memoryview(bytearray(CHUNK_BYTES))
        lost: list[Range] = []
        for offset in range(0, size, CHUNK_BYTES):
            view = buffer[: min(CHUNK_BYTES, size - offset)]
            lost = merge_ranges(lost + file.read_into(view, offset))[:SUSPECTS_LIMIT]
            digest.update(view)
            if told:
                told(offset + len(view), size)
        if file.state() != state or not file.is_still_named():
            raise BusyError(f"{path}: changes while it is read: try again when its writer is done")
    return digest.digest(), size, tuple(lost)


def copy_into(target: OpenFile, path: str, size: int) -> None:
    """The first ``size`` bytes of a file, as far as it has them; what cannot be read is zero. Raises UnreadableError, WriteError."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with OpenFile(path) as source:
        end = min(size, source.state().size)
        for offset in range(0, end, CHUNK_BYTES):
            view = buffer[: min(CHUNK_BYTES, end - offset)]
            source.read_into(view, offset)
            target.write_all(view, offset)


def copy_readable(path: str, target: str, size: int | None = None) -> None:
    """A new file ``target`` as :func:`copy_into` has it, without ``size`` with all bytes. Where that fails there is none.

    Raises:
        UnreadableError: the file cannot be opened or read.
        WriteError: there is no room, or something is in the way.
    """
    with OpenFile(path) as source:
        wanted = source.state().size if size is None else size
    check_room(os.path.dirname(target), wanted, path)
    make_empty(target, mode=0o600)
    try:
        with OpenFile(target, write=True) as copy:
            copy_into(copy, path, wanted)
    except BaseException:
        os.remove(target)
        raise
