"""What of a file lies in the page cache, seen without waiting for a disk, and leaving it there as it was.

What others had in the cache stays, what a scrub had to bring in is dropped again. Which is which is asked with reads that do not wait
(preadv2(2), RWF_NOWAIT), in pieces of 64 KiB: within a piece, what lies behind the first page that is not there counts as not there.
Readahead is off for the descriptor, since the pages that it brings in would look like others'. Where the kernel or the file system has no
such reads, nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Callable

from bitward_agent.io import PAGE_CACHE_BYTES, OpenFile, Range, cached_prefix, drop_cache, merge_ranges, read_at_random

PIECE_BYTES = 64 << 10


class CacheKeeper:
    """For one descriptor and chunks in ascending order: ``before`` a chunk is read, ``after`` it was used."""

    def __init__(self, file: OpenFile) -> None:
        self._fd = file.fd
        self._ours_end = -1
        """Where the last chunk ended, if its last page was ours to drop: that page is there, and nobody else's."""
        self._cold: list[Range] = []
        read_at_random(self._fd)

    def before(self, view: memoryview, start: int) -> bool:
        """Whether some of the bytes that ``view`` is to take, from ``start``, are in the cache already. ``view`` is overwritten."""
        self._cold, has_cached = [], False
        end = start + len(view)
        at = start
        while at < end:
            stop = min(end, (at // PIECE_BYTES + 1) * PIECE_BYTES)
            count = cached_prefix(self._fd, view[at - start : stop - start], at)
            if count is None:
                return False
            low = at + count
            if at == self._ours_end and low <= _page_start(at) + PAGE_CACHE_BYTES:
                low = at
            has_cached |= low > at
            if low < stop:
                self._cold.append((_page_start(low), stop))
            at = stop
        return has_cached

    def after(self) -> None:
        """The chunk was used: forget what was not cached before."""
        for low, high in merge_ranges(self._cold):
            drop_cache(self._fd, low, high - low)
            self._ours_end = high


def cache_neutral(file: OpenFile) -> Callable[[int, int], bytes]:
    """``file.read``, for ranges in ascending order, leaving the page cache as it was."""
    cache = CacheKeeper(file)

    def fetch(offset: int, length: int) -> bytes:
        data = bytearray(max(0, min(length, file.state().size - offset)))
        cache.before(memoryview(data), offset)
        file.read_into(memoryview(data), offset)
        cache.after()
        return bytes(data)

    return fetch


def _page_start(offset: int) -> int:
    return offset // PAGE_CACHE_BYTES * PAGE_CACHE_BYTES
