"""A file as a process sees it: the page cache's bytes, and over them the pages that are copies of the process's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bitward_agent.io import OpenFile, Range, merge_ranges
from bitward_agent.live.memory import ProcessMemory


def overlaps(ranges: Iterable[Range], low: int, high: int) -> Iterator[Range]:
    """The parts of ``low .. high`` that lie in some ascending ranges."""
    for start, end in ranges:
        if start < high and low < end:
            yield max(start, low), min(end, high)


def outside(ranges: Iterable[Range], low: int, high: int) -> Iterator[Range]:
    """The parts of ``low .. high`` that lie in none of some ascending ranges."""
    for start, end in overlaps(ranges, low, high):
        if low < start:
            yield low, start
        low = end
    if low < high:
        yield low, high


class Image(OpenFile):
    """Reads like the file, but bytes in ``own`` ranges come out of the process's memory, at ``base`` plus their offset.

    The descriptor stays the file's: do not close it here.
    """

    def __init__(self, file: OpenFile, memory: ProcessMemory, base: int, own: tuple[Range, ...]) -> None:
        self.path, self.disk, self.fd = file.path, file.disk, file.fd
        self._memory, self._base, self.own = memory, base, own

    def without(self, ranges: Iterable[Range]) -> Image:
        """The same, but with the file's bytes in these ranges."""
        taken = tuple(merge_ranges(list(ranges)))
        own = tuple(part for low, high in self.own for part in outside(taken, low, high))
        return Image(self, self._memory, self._base, own)

    def read_into(self, view: memoryview, offset: int) -> list[Range]:
        """See ``OpenFile.read_into``; what cannot be read in the process counts as unreadable too."""
        own = list(_near(self.own, offset, offset + len(view)))
        if own == [(offset, offset + len(view))]:
            return self._read_own(view, offset)
        lost = super().read_into(view, offset)
        if not own:
            return lost
        lost = [part for low, high in lost for part in outside(own, low, high)]
        for low, high in own:
            lost += self._read_own(view[low - offset : high - offset], low)
        return merge_ranges(lost)

    def _read_own(self, view: memoryview, offset: int) -> list[Range]:
        return [(low - self._base, high - self._base) for low, high in self._memory.read_into(view, self._base + offset)]


def _near(ranges: tuple[Range, ...], low: int, high: int) -> Iterator[Range]:
    """As ``overlaps``, found by bisection: a process can have a copy of every second page."""
    first, end = 0, len(ranges)
    while first < end:
        middle = (first + end) // 2
        if ranges[middle][1] <= low:
            first = middle + 1
        else:
            end = middle
    while first < len(ranges) and ranges[first][0] < high:
        yield max(ranges[first][0], low), min(ranges[first][1], high)
        first += 1
