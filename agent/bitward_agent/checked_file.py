"""A file that is held open together with its sidecar, and whose bytes are hashed in the very memory in which they are handed out.

What somebody does to the file after that, or in between, cannot get into bytes that were found to be right. Only reads; whether to
refuse, tell or heal what is not right is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bitward_agent.io import DISK, Disk, OpenFile, Range
from bitward_agent.scan import BlockReader, ScanResult
from bitward_agent.verify import OpenPair
from bitward_formats.blocks import Block
from bitward_formats.digest import leaf_function
from bitward_formats.sidecar import read_sidecar

if TYPE_CHECKING:
    from bitward_agent.locate import Outcome


class CheckedFile:
    """A file and its sidecar, both open. Of the sidecar all but its parity is read and checked; parity is read where it is needed."""

    def __init__(self, path: str, sidecar_path: str, disk: Disk = DISK) -> None:
        """``path`` and ``sidecar_path`` are what ``io.resolve`` gave, or lie below it.

        Raises:
            UnreadableError: one of them cannot be opened.
            FormatError: the sidecar cannot be used; one named subclass for each way.
        """
        self.file = OpenFile(path, disk=disk)
        try:
            self.ward = OpenFile(sidecar_path, disk=disk)
            try:
                self.sidecar = read_sidecar(self.ward.read, self.ward.state().size)
                self._leaf = leaf_function(self.sidecar.superblock.leaf_hash)
                self._reader = BlockReader(self.file, self.sidecar)
            except BaseException:
                self.ward.close()
                raise
        except BaseException:
            self.file.close()
            raise
        self.state = self.file.state()
        self.table = self.sidecar.plan.table

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close both. Reading is over then."""
        self.file.close()
        self.ward.close()

    @property
    def protected_bytes(self) -> int:
        """How long the file was when it was protected."""
        return self.sidecar.superblock.file_bytes

    @property
    def pair(self) -> OpenPair:
        """As the engine takes it; of the sidecar's bad pages only those of its metadata are known."""
        return OpenPair(self.file, self.ward, self.sidecar, self.sidecar.lost_pages, self.state)

    def covering(self, low: int, high: int) -> Range:
        """The range of the whole blocks that hold the bytes from ``low`` to ``high`` of what was protected."""
        if low >= high:
            return low, low
        spans = self.table.layout.spans
        first = spans[self.table.span_index_at(low)]
        if low == first.offset and high == first.offset + first.length:  # a whole tensor, which is what most reads are for
            return low, high
        last = spans[self.table.span_index_at(high - 1)]
        before = (low - first.offset) % first.kind.block_bytes
        blocks = (high - 1 - last.offset) // last.kind.block_bytes + 1
        return low - before, min(last.end, last.offset + blocks * last.kind.block_bytes)

    def is_read_right(self, view: memoryview, low: int) -> bool:
        """Fill ``view`` as :meth:`read_into` does, on this thread. False: something is wrong, and :meth:`read_into` names it.

        Most tensors are small, and there are many.

        Raises:
            UnreadableError: as :meth:`read_into`.
        """
        return self._reader.is_right(view, low)

    def read_into(self, view: memoryview, low: int, *, jobs: int | None = None) -> ScanResult:
        """Fill ``view`` with the whole blocks that begin at ``low`` and name those that are not what was protected.

        Raises:
            UnreadableError: the file cannot be read for a reason other than bad sectors.
        """
        return self._reader.read_into(view, low, jobs=jobs)

    def is_right(self, number: int, data: memoryview) -> bool:
        """Whether these bytes are what was protected as block ``number``."""
        block = self.table[number]
        return len(data) == block.length and self._leaf(data, block.index, block.length) == self.sidecar.leaf(number)

    def block(self, number: int) -> Block:
        """Block ``number`` of the file."""
        return self.table[number]

    def restored(self, numbers: Sequence[int], unreadable: Sequence[Range]) -> Iterator[Outcome]:
        """What parity makes of bad blocks; ``correct`` is vouched for by the leaf. The file stays as it is."""
        from bitward_agent.locate import Locator  # loads NumPy and the decoder: only where there is damage

        for outcomes in Locator(self.file, self.ward, self.sidecar).outcomes(numbers, unreadable):
            yield from outcomes
