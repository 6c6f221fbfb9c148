"""Reading a remote file's header in small steps without a request for each: pages that are kept, and more of them in a row."""

from __future__ import annotations

from collections import OrderedDict

from bitward_agent.errors import SourceError
from bitward_agent.sources import RangedFile

PAGE_BYTES = 16384
KEPT_PAGES = 256
"""4 MiB of pages; a longer read is passed through and not kept."""
_FIRST_BYTES = 65536
_LONGEST_BYTES = 1 << 20


class ReadAhead:
    """``fetch`` for a reader of layouts. A read that goes on where the last one ended brings twice as much as that one."""

    def __init__(self, file: RangedFile, size: int) -> None:
        self._file, self._size = file, size
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self._next_page = 0
        self._ahead_bytes = _FIRST_BYTES // 2

    def fetch(self, offset: int, length: int) -> bytes:
        """Bytes of the file, fewer only at its end. Raises SourceError."""
        end = min(self._size, offset + max(0, length))
        if offset >= end:
            return b""
        if end - offset > KEPT_PAGES * PAGE_BYTES // 2:
            return self._read(offset, end)
        first, last = offset // PAGE_BYTES, (end - 1) // PAGE_BYTES
        missing = []
        for page in range(first, last + 1):
            if page in self._pages:
                self._pages.move_to_end(page)  # so that it is not what makes room for the others
            else:
                missing.append(page)
        if missing:
            self._bring(missing[0], missing[-1] + 1)
        found = b"".join(self._pages[page] for page in range(first, last + 1))
        start = offset - first * PAGE_BYTES
        return found[start : start + end - offset]

    def _bring(self, first: int, stop: int) -> None:
        self._ahead_bytes = min(_LONGEST_BYTES, 2 * self._ahead_bytes) if first == self._next_page else PAGE_BYTES
        stop = max(stop, first + self._ahead_bytes // PAGE_BYTES)
        low, high = first * PAGE_BYTES, min(self._size, stop * PAGE_BYTES)
        data = self._read(low, high)
        for at in range(0, len(data), PAGE_BYTES):
            self._pages[(low + at) // PAGE_BYTES] = data[at : at + PAGE_BYTES]
        self._next_page = stop
        while len(self._pages) > KEPT_PAGES:
            self._pages.popitem(last=False)

    def _read(self, low: int, high: int) -> bytes:
        for _, data in self._file.read([(low, high)]):
            return data
        raise SourceError(f"bytes {low} to {high} do not come")
