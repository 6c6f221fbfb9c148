"""An object of a store as an open file: what scans and decodes files does the same with objects.

Memory is fixed: windows of ``WINDOW_BYTES``, one that is read and ``ahead`` more on their way. Read one after the other they bring a
whole object once; where blocks here and there are wanted, ``scatter`` turns the windows off, so that no more comes than is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from bitward_agent.errors import UnreadableError
from bitward_agent.io import DISK, FileState, OpenFile, Range

WINDOW_BYTES = 4 << 20
"""Of one request; large enough that a request's own cost does not count, small enough to have several on their way."""
READ_LIMIT_BYTES = 128 << 20
"""Most bytes that one read may ask for: the leaves of a file of 512 GiB. What a forged sidecar claims beyond that is not fetched."""

Get = Callable[[int, int], bytes]
"""Bytes ``low .. high`` of the object, all of them. Raises SourceError."""


class ObjectFile(OpenFile):
    """An object, read by ranges. Not for several threads at once: one reader, its own requests ahead of it."""

    def __init__(self, path: str, size: int, get: Get, ahead: int = 1) -> None:
        self.path, self.disk, self.fd = path, DISK, -1
        self._size, self._get, self._ahead = size, get, ahead
        self._windows: dict[int, bytes | Future[bytes]] = {}
        self._last = -1
        self._pool: ThreadPoolExecutor | None = None
        self._scattered = False

    def close(self) -> None:
        """Let go of what is on its way."""
        self._windows.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def begin(self) -> None:
        """Have the first window come while something else is done."""
        self._ask(0)

    def scatter(self) -> None:
        """From here on reads are far apart."""
        self._scattered = self._size > WINDOW_BYTES
        if self._scattered:
            self.close()

    def state(self) -> FileState:
        """Size only: whether the object was exchanged is the store's to say."""
        return FileState(self._size, 0, 0, 0)

    def is_still_named(self) -> bool:
        """The store says so, not a path."""
        return True

    def read_into(self, view: memoryview, offset: int) -> list[Range]:
        """See ``OpenFile.read_into``; only what lies behind the object's end is unreadable. Raises SourceError."""
        end = max(offset, min(offset + len(view), self._size))
        self._fill(view[: end - offset], offset)
        if end < offset + len(view):
            view[end - offset :] = bytes(offset + len(view) - end)
            return [(end, offset + len(view))]
        return []

    def read(self, offset: int, length: int) -> bytes:
        """See ``OpenFile.read``. Raises SourceError, UnreadableError."""
        length = max(0, min(length, self._size - offset))
        if length > READ_LIMIT_BYTES:
            raise UnreadableError(f"{self.path}: {length} bytes at once are asked for: no sidecar of a sane size has so many leaves")
        data = bytearray(length)
        self._fill(memoryview(data), offset)
        return bytes(data)

    def _fill(self, view: memoryview, offset: int) -> None:
        if self._scattered or len(view) > WINDOW_BYTES:
            for at in range(0, len(view), WINDOW_BYTES):
                part = view[at : at + WINDOW_BYTES]
                part[:] = self._get(offset + at, offset + at + len(part))
            return
        done = 0
        while done < len(view):
            at = offset + done
            data = memoryview(self._window(at // WINDOW_BYTES))[at % WINDOW_BYTES :]
            count = min(len(data), len(view) - done)
            view[done : done + count] = data[:count]
            done += count

    def _window(self, index: int) -> bytes:
        for old in [one for one in self._windows if not index <= one <= index + self._ahead]:
            self._drop(old)
        if index == self._last + 1 and self._last >= 0:  # one after the other: the next ones will be wanted
            for coming in range(index + 1, index + 1 + self._ahead):
                self._ask(coming)
        self._last = index
        found = self._windows.get(index)
        if isinstance(found, Future):
            found = found.result()
        if found is None:
            found = self._get(*self._bounds(index))
        self._windows[index] = found
        return found

    def _ask(self, index: int) -> None:
        if index in self._windows or index * WINDOW_BYTES >= self._size:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._ahead, thread_name_prefix="bitward-ahead")
        self._windows[index] = self._pool.submit(self._get, *self._bounds(index))

    def _drop(self, index: int) -> None:
        window = self._windows.pop(index)
        if isinstance(window, Future):
            window.cancel()

    def _bounds(self, index: int) -> Range:
        return index * WINDOW_BYTES, min(self._size, (index + 1) * WINDOW_BYTES)
