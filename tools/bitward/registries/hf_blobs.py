"""One blob's bytes, held against its digest. Streams; memory does not grow with the blob."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from bitward.registries.blob_suspects import SUSPECTS_LIMIT
from bitward_agent.errors import BusyError
from bitward_agent.io import OpenFile, Range, merge_ranges
from bitward_formats.checksums import Algorithm, Part
from bitward_formats.frozen import dataclass

CHUNK_BYTES = 1 << 20


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
