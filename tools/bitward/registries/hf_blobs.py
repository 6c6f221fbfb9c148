"""One blob's bytes: held against its digest, and searched for what looks lost. Streams; memory does not grow with the blob."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from bitward_agent.errors import BusyError
from bitward_agent.io import OpenFile, Range, merge_ranges
from bitward_formats.checksums import Algorithm, Part
from bitward_formats.frozen import dataclass

CHUNK_BYTES = 1 << 20
PAGE_BYTES = 4096
"""The smallest run of zeros that is suspected, aligned: file systems and downloads lose whole pages."""
SUSPECTS_LIMIT = 65_536
"""Most suspected ranges; a file with more of them is not healed by ranges."""
_ZEROS = bytes(CHUNK_BYTES)
_ZERO_PAGE = bytes(PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a blob's bytes are: whether they have the digest, how many they are, and which sectors could not be read."""

    is_right: bool
    size: int
    unreadable: tuple[Range, ...] = ()


def read_blob(path: str, part: Part, told: Callable[[int, int], object] | None = None) -> Reading:
    """Read a blob once and compare its digest. ``told`` is called with the bytes done and the bytes in all.

    Raises:
        UnreadableError: it cannot be opened or read.
        BusyError: it changes while it is read.
    """
    with OpenFile(path) as file:
        state = file.state()
        digest = hashlib.sha256()
        if part.algorithm is Algorithm.GIT_BLOB:
            digest = hashlib.sha1(b"blob %d\0" % state.size, usedforsecurity=False)
        buffer = memoryview(bytearray(CHUNK_BYTES))
        lost: list[Range] = []
        for offset in range(0, state.size, CHUNK_BYTES):
            view = buffer[: min(CHUNK_BYTES, state.size - offset)]
            lost = merge_ranges(lost + file.read_into(view, offset))[:SUSPECTS_LIMIT]
            digest.update(view)
            if told:
                told(offset + len(view), state.size)
        if file.state() != state or not file.is_still_named():
            raise BusyError(f"{path}: changes while it is read: try again when its writer is done")
    return Reading(not lost and digest.digest() == part.digest, state.size, tuple(lost))


def suspects(path: str, expected_bytes: int | None, unreadable: tuple[Range, ...] = ()) -> tuple[Range, ...]:
    """Ranges of a damaged blob that look lost: zeroed pages, unreadable sectors, and what is missing at its end. Zeros may be right, too.

    Raises:
        UnreadableError: it cannot be opened or read.
    """
    found = list(unreadable)
    with OpenFile(path) as file:
        size = file.state().size
        if expected_bytes is not None and size < expected_bytes:
            found.append((size, expected_bytes))
        end = size if expected_bytes is None else min(size, expected_bytes)
        buffer = memoryview(bytearray(CHUNK_BYTES))
        for offset in range(0, end, CHUNK_BYTES):
            view = buffer[: min(CHUNK_BYTES, end - offset)]
            file.read_into(view, offset)
            found += _zero_pages(view, offset)
            if len(found) > SUSPECTS_LIMIT:
                found = merge_ranges(found)
                if len(found) > SUSPECTS_LIMIT:
                    return tuple(found[:SUSPECTS_LIMIT])
    return tuple(merge_ranges(found))


def _zero_pages(view: memoryview, offset: int) -> list[Range]:
    """Pages of zeros in a piece that begins at a page; the file's last one may be shorter."""
    if view == _ZEROS[: len(view)]:
        return [(offset, offset + len(view))]
    found: list[Range] = []
    for at in range(0, len(view), PAGE_BYTES):
        page = view[at : at + PAGE_BYTES]
        if page == _ZERO_PAGE[: len(page)]:
            if found and found[-1][1] == offset + at:
                found[-1] = (found[-1][0], offset + at + len(page))
            else:
                found.append((offset + at, offset + at + len(page)))
    return found
