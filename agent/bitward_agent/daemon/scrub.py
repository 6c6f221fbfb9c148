"""Scrubbing one file: every block against its leaf at a given pace, to be stopped at any chunk and taken up again there.

A verdict is given only of a whole file. While everything is intact no NumPy is loaded and one buffer of 1 MiB is used. At the first
block that differs the file is verified anew as ``bitward verify`` does it, at the same pace; where that is stopped, the next scrub
begins with it.

Reads go through the page cache, so that what programs compute with is what is checked; what is cached is read around the cache as well,
since the disk may have rotted beneath it. The cache is left as it was (``page_cache``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from enum import Enum

from bitward_agent.daemon.disk_check import DiskComparison, describe_disk_damage
from bitward_agent.daemon.facts import UnitRecord
from bitward_agent.daemon.pace import PacedDisk, Stopped, TokenBucket
from bitward_agent.daemon.page_cache import CacheKeeper, cache_neutral
from bitward_agent.errors import BitwardError
from bitward_agent.findings import FileVerification, SidecarReport, SidecarState, Verdict
from bitward_agent.io import DISK, Disk, FileState, OpenFile, journal_path
from bitward_agent.scan import CHUNK_BYTES, chunks
from bitward_agent.verify import MOVES_TOLD, REPLACED_TOLD, OpenPair, unverifiable, verify_file
from bitward_formats.digest import run_leaves
from bitward_formats.errors import FormatError
from bitward_formats.frozen import dataclass
from bitward_formats.pages import PAGE_BYTES
from bitward_formats.sidecar import Sidecar, lost_pages, read_sidecar


@dataclass(frozen=True, slots=True)
class ScrubPosition:
    """How far an unfinished scrub came, and of what: it counts only for a file and a sidecar that are still the same.

    ``position_bytes`` is where in the file it goes on (the file's length: only the sidecar's pages are left). ``root`` is the sidecar's
    file root in hex. ``suspect``: a block differed, so that the whole file is to be verified.
    """

    position_bytes: int = 0
    size: int = 0
    mtime_ns: int = 0
    root: str = ""
    suspect: bool = False

    @classmethod
    def of_record(cls, record: UnitRecord) -> ScrubPosition:
        """From what the store keeps: ``scrub_position_bytes``, ``seen_size``, ``seen_mtime_ns``, ``root`` and ``suspect``."""
        return cls(record.scrub_position_bytes, record.seen_size, record.seen_mtime_ns, record.root, record.suspect)


@dataclass(frozen=True, slots=True)
class ScrubProgress:
    """A scrub that was stopped: where it is, and how many bytes of the file this run read."""

    path: str
    at: ScrubPosition
    total_bytes: int
    read_bytes: int


Tell = Callable[[ScrubPosition, int], None]
"""Called after each chunk with the position and the file's length; for STATUS, the watchdog and the store."""


def scrub_file(
    path: str,
    sidecar_path: str,
    start: ScrubPosition = ScrubPosition(),  # noqa: B008 - a frozen value
    *,
    pace: TokenBucket,
    stop: Callable[[], bool],
    tell: Tell | None = None,
    disk: Disk = DISK,
) -> ScrubProgress | FileVerification:
    """Scrub from ``start`` to the end, or until ``stop`` says so.

    Damage, changes and whatever cannot be told come back as a verification, never as an exception.
    """
    scrub = _Scrub(path, sidecar_path, start, PacedDisk(pace, stop, below=disk), tell)
    try:
        return scrub.run()
    except Stopped:
        return ScrubProgress(path, scrub.at, scrub.total_bytes, scrub.read_bytes)
    except (BitwardError, FormatError) as error:
        return unverifiable(path, 0, SidecarReport(sidecar_path, SidecarState.MISSING), str(error))
    finally:
        scrub.close()


class Agreement(Enum):
    """What holding blocks against leaves came to."""

    AGREES = "all blocks are right"
    DIFFERS = "a block is wrong, or cannot be read"
    MOVES = "somebody writes to the file"


class _Scrub:
    def __init__(self, path: str, sidecar_path: str, start: ScrubPosition, disk: Disk, tell: Tell | None) -> None:
        self.path, self.sidecar_path, self.disk, self.tell = path, sidecar_path, disk, tell
        self.at, self.total_bytes, self.read_bytes = start, start.size, 0
        self.file: OpenFile | None = None
        self.ward: OpenFile | None = None

    def close(self) -> None:
        for file in (self.file, self.ward):
            if file is not None:
                file.close()

    def run(self) -> FileVerification:
        """The verdict of the whole file. Raises Stopped; then ``at`` is where it goes on."""
        try:
            self.file = file = OpenFile(self.path, disk=self.disk)
            self.ward = ward = OpenFile(self.sidecar_path, disk=self.disk)
            sidecar = read_sidecar(ward.read, ward.state().size)
        except (BitwardError, FormatError):
            return self._verify()  # says what is wrong in the usual words
        state, block = file.state(), sidecar.superblock
        self.total_bytes = state.size
        fresh = ScrubPosition(0, state.size, state.mtime_ns, block.root.hex())
        if (self.at.size, self.at.mtime_ns, self.at.root) != (fresh.size, fresh.mtime_ns, fresh.root):
            self.at = fresh
        if self.at.suspect or state.size != block.file_bytes or os.path.lexists(journal_path(self.sidecar_path)):
            return self._verify()
        disk_side = DiskComparison(file, sidecar)
        try:
            agreement = self._blocks_agree(file, sidecar, state, disk_side)
        finally:
            disk_side.close()
        if agreement is Agreement.DIFFERS:
            self.at = replace(self.at, suspect=True)
            return self._verify()
        lost = tuple(sorted({*lost_pages(cache_neutral(ward), sidecar), *sidecar.lost_pages}))
        if ward.state().size != sidecar.plan.total_pages * PAGE_BYTES and not lost:
            lost = (sidecar.plan.total_pages,)
        return self._verdict(OpenPair(file, ward, sidecar, lost, state), disk_side.bad_blocks)

    def _verdict(self, pair: OpenPair, bad_on_disk: list[int]) -> FileVerification:
        """All blocks are right in memory. Nothing of that counts if the file did not stay the same one."""
        damage = describe_disk_damage(pair, bad_on_disk) if bad_on_disk else ()
        if pair.file.state() != pair.state:
            return unverifiable(self.path, pair.state.size, pair.sidecar_report(), MOVES_TOLD)
        if not pair.file.is_still_named():
            return unverifiable(self.path, pair.state.size, pair.sidecar_report(), REPLACED_TOLD)
        block = pair.sidecar.superblock
        return FileVerification(
            *(self.path, Verdict.DAMAGED if damage else Verdict.INTACT, block.file_bytes, block.root.hex(), block.origin_label),
            *(pair.modified, pair.sidecar_report(), damage, len(damage)),
            message=f"memory holds the right bytes of {len(damage)} blocks that are wrong on the disk" if damage else "",
        )

    def _verify(self) -> FileVerification:
        found = verify_file(self.path, self.sidecar_path, jobs=1, disk=self.disk)
        if self.at.suspect and found.verdict is Verdict.INTACT:
            told = f"a block at or after byte {self.at.position_bytes} differed when it was first read, and no longer: memory or cable"
            return replace(found, message="; ".join(filter(None, (found.message, told))))
        return found

    def _blocks_agree(self, file: OpenFile, sidecar: Sidecar, state: FileState, disk_side: DiskComparison) -> Agreement:
        """Hold every block from the position on against its leaf. The position follows, up to the first block that differs anywhere."""
        leaves_of = run_leaves(sidecar.superblock.leaf_hash)
        size, leaves = sidecar.leaf_bytes, sidecar.leaves
        cache = CacheKeeper(file)
        buffer = memoryview(bytearray(CHUNK_BYTES))
        for segments in chunks(sidecar.plan.table):
            start, end = segments[0].offset, segments[-1].end
            if end <= self.at.position_bytes:
                continue
            view = buffer[: end - start]
            was_cached = cache.before(start, end)
            lost = file.read_into(view, start)
            self.read_bytes += len(view)
            for segment in segments:
                part = view[segment.offset - start : segment.end - start]
                found = leaves_of(part, segment.first, segment.span.kind.block_bytes)
                if lost or found != leaves[segment.number * size : (segment.number + segment.count) * size]:
                    return Agreement.DIFFERS
            if was_cached:
                disk_side.compare(view, start)
            cache.after()
            if file.state() != state:
                return Agreement.MOVES
            if not disk_side.bad_blocks:
                self.at = replace(self.at, position_bytes=end)
            if self.tell is not None:
                self.tell(self.at, self.total_bytes)
        return Agreement.AGREES
