"""A file as a process sees it: the page cache's bytes, and over them the pages that are copies of the process's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy

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


class BaseImage(OpenFile):
    """Reads like the file, but bytes in ``own`` ranges come from elsewhere. The descriptor stays the file's: do not close it here."""

    def __init__(self, file: OpenFile, own: tuple[Range, ...]) -> None:
        self.path, self.disk, self.fd, self.own = file.path, file.disk, file.fd, own

    def without(self, ranges: Iterable[Range]) -> BaseImage:
        """The same, but with the file's bytes in these ranges."""
        taken = tuple(merge_ranges(list(ranges)))
        image = copy(self)
        image.own = tuple(part for low, high in self.own for part in outside(taken, low, high))
        return image

    def read_own(self, view: memoryview, offset: int) -> list[Range]:
        """Fill ``view`` with the bytes of a range that lies in ``own``; returns the ranges that could not be read."""
        raise NotImplementedError

    def read_into(self, view: memoryview, offset: int) -> list[Range]:
        """See ``OpenFile.read_into``; what cannot be read of ``own`` counts as unreadable too."""
        own = list(near(self.own, offset, offset + len(view)))
        if own == [(offset, offset + len(view))]:
            return self.read_own(view, offset)
        lost = super().read_into(view, offset)
        if not own:
            return lost
        lost = [part for low, high in lost for part in outside(own, low, high)]
        for low, high in own:
            lost += self.read_own(view[low - offset : high - offset], low)
        return merge_ranges(lost)


class Image(BaseImage):
    """What another process sees: ``own`` bytes come out of its memory, at ``base`` plus their offset."""

    def __init__(self, file: OpenFile, memory: ProcessMemory, base: int, own: tuple[Range, ...]) -> None:
        super().__init__(file, own)
        self._memory, self._base = memory, base

    def read_own(self, view: memoryview, offset: int) -> list[Range]:
        """See ``BaseImage``."""
        return [(low - self._base, high - self._base) for low, high in self._memory.read_into(view, self._base + offset)]


def near(ranges: tuple[Range, ...], low: int, high: int) -> Iterator[Range]:
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
