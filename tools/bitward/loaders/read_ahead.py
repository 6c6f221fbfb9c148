"""Reading ahead: a program that asks for tensors in the order of the file finds the next ones read and verified when it asks.

Another thread reads the tensors of the next few megabytes, each into memory of its own, and hashes them there, while the program does
something with those that it has. They go in windows, since to wake a thread takes as long as to read half a megabyte. What is not right is
left out: it is read again when it is asked for, if it is, and then the policy speaks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from bitward_formats.spans import Span

Bytes = npt.NDArray[np.uint8]
Read = Callable[[int, int], Bytes | None]
"""(low, high) -> the bytes of that range of the file, or None if they are not right."""

WINDOW_BYTES = 8 << 20
"""Most bytes of a window. Two are held at a time, beside what the program holds."""
_IN_A_ROW = 2
"""So many tensors must have been asked for in the order of the file: who picks a few does not pay for the others."""


class _Window:
    """Neighbouring tensors that are read in a thread of their own. Each is handed out once."""

    def __init__(self, spans: Sequence[Span], read: Read) -> None:
        self._spans, self._read_right = spans, read
        self._names = {span.name for span in spans}
        self._read: dict[str, Bytes] = {}
        self._thread = threading.Thread(target=self._work, name="bitward-read-ahead")
        self._thread.start()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def _work(self) -> None:
        try:
            for span in self._spans:
                data = self._read_right(span.offset, span.offset + span.length)
                if data is None:
                    break
                self._read[span.name] = data
        except Exception:  # noqa: BLE001, S110  # whoever asks for these bytes meets it again
            pass

    def take(self, name: str) -> Bytes | None:
        """The bytes of a tensor, u8, once the window is read; None if they are not right, or were handed out before."""
        self._thread.join()
        return self._read.pop(name, None)

    def end(self) -> None:
        """Return when nothing is read any more."""
        self._thread.join()


class ReadAhead:
    """Windows over the tensors of one file. Safe to use from several threads: where two ask at once only one is served."""

    def __init__(self, spans: Sequence[Span], read: Read) -> None:
        """``spans``: the tensors in the order of the file."""
        self._spans, self._read = spans, read
        self._numbers = {span.name: number for number, span in enumerate(spans)}
        self._lock = threading.Lock()
        self._next_number = self._in_a_row = 0
        self._now: _Window | None = None
        self._next: _Window | None = None

    def take(self, name: str) -> Bytes | None:
        """The verified bytes of a tensor, u8, if they were read ahead, else None; begins to read what is likely to be asked for next."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return self._taken(name)
        finally:
            self._lock.release()

    def end(self) -> None:
        """Return when nothing is read any more, and let go of what was. No lock: a process may have been forked while another thread
        held it. Who still asks meanwhile finds a closed file."""
        self._drop()

    def _taken(self, name: str) -> Bytes | None:
        number = self._numbers[name]
        self._in_a_row = self._in_a_row + 1 if number == self._next_number else 0
        self._next_number = number + 1
        if self._now is not None and name in self._now:
            return self._now.take(name)
        if self._next is not None and name in self._next:
            self._now, data = self._next, self._next.take(name)
            self._next = self._begun()
            return data
        self._drop()
        if self._in_a_row >= _IN_A_ROW:
            self._next = self._begun()
        return None

    def _begun(self) -> _Window | None:
        """The next window: after those that are read or being read, as long as tensors are small enough."""
        ahead: list[Span] = []
        size = 0
        for number in range(self._next_number, len(self._spans)):
            span = self._spans[number]
            if self._now is not None and span.name in self._now:
                continue
            size += span.length
            if size > WINDOW_BYTES:
                break
            ahead.append(span)
        return _Window(ahead, self._read) if ahead else None

    def _drop(self) -> None:
        windows, self._now, self._next = (self._now, self._next), None, None
        for window in windows:
            if window is not None:
                window.end()
