"""What of a file lies in the page cache, and leaving it there as it was.

What others had in the cache stays, what a scrub had to bring in is dropped again. Which is which the kernel tells, by pieces of 64 KiB,
with cachestat(2): it is in Linux from 6.5 on and starts no reads, as preadv2(2) with RWF_NOWAIT does. It may be refused to who neither
owns the file nor may write it. Where it is not to be had, all that was read is dropped, but for pages that a program maps: those the
kernel keeps by itself. Readahead is off for the descriptor, since the pages that it brings in would look like others'.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

from bitward_agent.io import OpenFile, Range, drop_cache, merge_ranges, read_at_random

PAGE_CACHE_BYTES = mmap.PAGESIZE
"""What the kernel keeps or forgets as a whole."""
PIECE_BYTES = 64 << 10

_SYS_CACHESTAT = 451
"""The same on all architectures but Alpha."""
_libc = ctypes.CDLL(None, use_errno=True)


def cached_pages(fd: int, offset: int, length: int) -> int | None:
    """How many pages of a range the page cache holds, ``None`` where the kernel does not tell. See cachestat(2)."""
    found = (ctypes.c_uint64 * 5)()
    wanted = (ctypes.c_uint64 * 2)(offset, length)
    if _libc.syscall(ctypes.c_long(_SYS_CACHESTAT), ctypes.c_uint(fd), wanted, found, ctypes.c_uint(0)) != 0:
        return None
    return int(found[0])


class CacheKeeper:
    """For one descriptor and chunks in ascending order: ``before`` a chunk is read, ``after`` it was used."""

    def __init__(self, file: OpenFile) -> None:
        self._fd = file.fd
        self._ours_end = -1
        """Where the last chunk ended, if its last page was ours to drop: that page is there, and nobody else's."""
        self._cold: list[Range] = []
        read_at_random(self._fd)

    def before(self, start: int, end: int) -> bool:
        """Whether any page of the range is in the cache already, as far as the kernel tells."""
        self._cold, has_cached = [], False
        at = start
        while at < end:
            stop = min(end, (at // PIECE_BYTES + 1) * PIECE_BYTES)
            count = cached_pages(self._fd, at, stop - at)
            if not count or (at == self._ours_end and count == 1):
                self._cold.append((_page_start(at), stop))
            else:
                has_cached = True
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
        cache.before(offset, offset + length)
        data = file.read(offset, length)
        cache.after()
        return data

    return fetch


def _page_start(offset: int) -> int:
    return offset // PAGE_CACHE_BYTES * PAGE_CACHE_BYTES
