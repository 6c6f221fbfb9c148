"""Asking the sources of a file for the blocks that parity could not restore, in their order, and counting what each was good for.

A source is asked once for a block: what a remote one gave is kept, up to a few megabytes in memory and else in a nameless file, so that
deciding first and writing afterwards does not fetch twice; what it gave wrong is not asked for again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

from bitward_agent.errors import SourceError
from bitward_agent.findings import Progress, ProgressSink, SourceUse
from bitward_agent.sources import Source
from bitward_formats.blocks import Block

KEPT_IN_MEMORY_BYTES = 8 << 20

IsLeaf = Callable[[Block, bytes], bool]


@dataclass(slots=True)
class _Use:
    """What one source was good for so far."""

    source: Source
    right: set[int] = field(default_factory=set)
    wrong: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)
    error: str = ""
    gave_up: bool = False


class Sourcing:
    """The sources of one file while it is repaired."""

    def __init__(
        self,
        sources: Sequence[Source],
        path: str,
        *,
        keep_in: str | None = None,
        progress: ProgressSink | None = None,
    ) -> None:
        """``keep_in`` is the folder of the nameless file; without it nothing is kept."""
        self._uses = [_Use(source) for source in sources]
        self._path, self._keep_in, self._progress = path, keep_in, progress
        self._kept: dict[int, tuple[int, str]] = {}
        self._spool: IO[bytes] | None = None
        self._spool_end = 0

    def __bool__(self) -> bool:
        return bool(self._uses)

    def close(self) -> None:
        """Forget what was kept. The sources stay open."""
        if self._spool is not None:
            self._spool.close()
        self._spool, self._kept = None, {}

    def report(self) -> tuple[SourceUse, ...]:
        """What each source was good for, in the order in which they are asked."""
        return tuple(
            SourceUse(
                use.source.name,
                len(use.right),
                use.source.meter.fetched_bytes,
                use.source.meter.requests,
                len(use.wrong - use.right),
                use.error,
            )
            for use in self._uses
        )

    def fetch(self, blocks: Sequence[Block], file_bytes: int, is_leaf: IsLeaf) -> Iterator[tuple[Block, bytes, str]]:
        """Blocks that a source has, each with bytes that are right by ``is_leaf``, and the source's name.

        ``file_bytes`` is how long the file should be.
        """
        left = {block.number: block for block in blocks}
        total = sum(block.length for block in blocks)
        done = 0
        for block, data, name in self._from_kept(blocks, is_leaf):
            del left[block.number]
            done += block.length
            yield block, data, name
        for use in self._uses:
            for block, data in self._ask(use, left, file_bytes, is_leaf):
                del left[block.number]
                self._keep(use, block, data)
                done += block.length
                self._tell(done, total)
                yield block, data, use.source.name
            if not left:
                break
        self._tell(total, total)

    def _tell(self, done_bytes: int, total_bytes: int) -> None:
        if self._progress and total_bytes:
            self._progress(Progress("fetch", self._path, done_bytes, total_bytes))

    def _ask(self, use: _Use, left: dict[int, Block], file_bytes: int, is_leaf: IsLeaf) -> Iterator[tuple[Block, bytes]]:
        """Right blocks of one source. Its failures end here, as ``error``. ``left`` shrinks while they are taken."""
        fresh = {number for number in left if number not in use.asked}
        if use.gave_up or not fresh:
            return
        try:
            for way in use.source.ways(file_bytes):
                wanted = [left[number] for number in sorted(fresh) if number in left]
                for block, data in use.source.fetch(wanted, way) if wanted else ():
                    if block.number not in left:
                        continue
                    if is_leaf(block, data):
                        use.right.add(block.number)
                        yield block, data
                    else:
                        use.wrong.add(block.number)
            use.asked |= fresh - use.right
        except SourceError as error:
            use.error, use.gave_up = str(error), True

    def _keep(self, use: _Use, block: Block, data: bytes) -> None:
        if self._keep_in is None or use.source.is_local:
            return
        if self._spool is None:
            self._spool = tempfile.SpooledTemporaryFile(KEPT_IN_MEMORY_BYTES, dir=self._keep_in)  # noqa: SIM115 - closed in close()
        self._spool.seek(self._spool_end)
        self._spool.write(data)
        self._kept[block.number] = (self._spool_end, use.source.name)
        self._spool_end += len(data)

    def _from_kept(self, blocks: Sequence[Block], is_leaf: IsLeaf) -> Iterator[tuple[Block, bytes, str]]:
        for block in blocks:
            if self._spool is None or block.number not in self._kept:
                continue
            at, name = self._kept[block.number]
            self._spool.seek(at)
            data = self._spool.read(block.length)
            if is_leaf(block, data):
                yield block, data, name
