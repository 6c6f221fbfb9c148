"""Damage on the disk that the page cache hides: memory holds the right bytes, so every program computes on, until the page is evicted.

Only blocks whose cached bytes are what was protected belong here; all others are the business of ``verify`` and ``repair``.
"""

from __future__ import annotations

from collections.abc import Sequence

from bitward_agent.errors import WriteError
from bitward_agent.findings import FLIPS_LISTED_LIMIT, Damage
from bitward_agent.io import DISK, Disk, OpenFile
from bitward_agent.journal import restore_mtime
from bitward_agent.medium import UncachedReader
from bitward_agent.verify import FlipBudget, OpenPair, open_sidecar
from bitward_formats.blocks import Block
from bitward_formats.digest import leaf_function
from bitward_formats.sidecar import Sidecar

DESCRIBED_BLOCKS_LIMIT = 4096
"""Blocks of one file that are described; the others are found by the next scrub."""


class DiskComparison:
    """Reads around the page cache what was just read through it, and keeps the numbers of blocks that are wrong on the disk alone."""

    def __init__(self, file: OpenFile, sidecar: Sidecar) -> None:
        self._reader = UncachedReader(file.fd)
        self._sidecar = sidecar
        self._leaf = leaf_function(sidecar.superblock.leaf_hash)
        self._has_read = False
        self.bad_blocks: list[int] = []

    def close(self) -> None:
        """Close the second descriptor."""
        self._reader.close()

    def compare(self, view: memoryview, start: int) -> bool:
        """Whether the disk holds what ``view`` does, read from ``start`` and right by its leaves. ``True`` where that cannot be told."""
        on_disk = self._reader.read(start, len(view))
        self._has_read |= on_disk is not None
        if on_disk == bytes(view) or not self._has_read:  # nothing read so far: this file system has no uncached reads
            return True
        table = self._sidecar.plan.table
        at, end, count = start, start + len(view), len(self.bad_blocks)
        while at < end:
            block = table.at_offset(at)
            data = on_disk[block.offset - start : block.end - start] if on_disk else self._reader.read(block.offset, block.length)
            if data is None or self._leaf(data, block.index, block.length) != self._sidecar.leaf(block.number):
                self.bad_blocks.append(block.number)
            at = block.end
        return len(self.bad_blocks) == count


def describe_disk_damage(pair: OpenPair, numbers: Sequence[int]) -> tuple[Damage, ...]:
    """What the disk holds of these blocks against what memory holds of them. Loads NumPy."""
    import numpy as np

    from bitward_agent.judge import DamageDescriber
    from bitward_agent.locate import Outcome

    reader, describe = UncachedReader(pair.file.fd), DamageDescriber(pair, FlipBudget(FLIPS_LISTED_LIMIT))
    damage = []
    try:
        for number in numbers[:DESCRIBED_BLOCKS_LIMIT]:
            block = pair.sidecar.plan.table[number]
            right = pair.file.read(block.offset, block.length)
            on_disk = reader.read(block.offset, block.length)
            if not _is_right(pair.sidecar, block, right) or on_disk == right:
                continue
            found, correct = np.frombuffer(on_disk or bytes(block.length), np.uint8), np.frombuffer(right, np.uint8)
            damage.append(describe(Outcome(block, found, correct, None, on_disk is None)))
    finally:
        reader.close()
        describe.close()
    return tuple(damage)


def rewrite_from_cache(path: str, sidecar_path: str, damage: Sequence[Damage], disk: Disk = DISK) -> tuple[Damage, ...]:
    """Write back, in place, what memory holds of damaged blocks where that is right and the disk is not. Returns those that are right now.

    No journal is needed: the file's contents do not change for anybody who reads it, and any part of the write makes the disk better.

    Raises:
        WriteError: it may not be written, or does not read back.
        UnreadableError, SidecarError: file or sidecar cannot be read.
    """
    ward, sidecar, _ = open_sidecar(sidecar_path, disk)
    ward.close()
    with OpenFile(path, write=True, disk=disk) as file:
        file.lock()
        state = file.state()
        if (state.size, state.mtime_ns) != (sidecar.superblock.file_bytes, sidecar.superblock.mtime_ns):
            return ()
        reader, done = UncachedReader(file.fd), []
        try:
            for one in damage:
                block = sidecar.plan.table.at_offset(one.offset)
                right = file.read(block.offset, block.length)
                on_disk = reader.read(block.offset, block.length)
                if (on_disk is None and not one.unreadable) or on_disk == right or not _is_right(sidecar, block, right):
                    continue
                file.write_all(right, block.offset)
                done.append(one)
            if done:
                restore_mtime(file, state.mtime_ns)
                disk.sync(file.fd)
            for one in done:
                block = sidecar.plan.table.at_offset(one.offset)
                again = reader.read(block.offset, block.length)
                if again is None or not _is_right(sidecar, block, again):
                    raise WriteError(f"{path}: what was written at byte {block.offset} does not read back: the disk is failing")
        finally:
            reader.close()
    return tuple(done)


def _is_right(sidecar: Sidecar, block: Block, data: bytes) -> bool:
    leaf = leaf_function(sidecar.superblock.leaf_hash)
    return len(data) == block.length and leaf(data, block.index, block.length) == sidecar.leaf(block.number)
