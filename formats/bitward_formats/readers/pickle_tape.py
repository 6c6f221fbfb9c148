"""Reading a pickle forward out of a file, a piece at a time, with every length bounded before it is used."""

from __future__ import annotations

from bitward_formats.errors import PickleSyntaxError
from bitward_formats.readers.file_view import Fetch

PIECE_BYTES = 1 << 16
LINE_LIMIT_BYTES = 1 << 16
"""Longest argument that ends with a newline: names and numbers of the text opcodes."""


class Tape:
    """The bytes ``start .. end`` of what ``fetch`` reads, from front to back. ``place`` is the offset of the next one."""

    def __init__(self, fetch: Fetch, start: int, end: int) -> None:
        self._fetch = fetch
        self._end = end
        self._base = start
        self._piece = b""
        self._at = 0

    @property
    def place(self) -> int:
        """Offset of the next byte."""
        return self._base + self._at

    def byte(self) -> int:
        """The next byte."""
        if self._at == len(self._piece):
            self._more(1)
        value = self._piece[self._at]
        self._at += 1
        return value

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes; callers bound it. Raises PickleSyntaxError if the pickle ends before."""
        if len(self._piece) - self._at < count:
            self._more(count)
        at = self._at
        self._at = at + count
        return self._piece[at : at + count]

    def skip(self, count: int) -> None:
        """Passes over ``count`` bytes without reading them."""
        if count > self._end - self.place:
            raise PickleSyntaxError(f"the pickle ends at {self._end}, within {count} bytes of contents at {self.place}")
        self._at += count
        if self._at > len(self._piece):
            self._base, self._piece, self._at = self.place, b"", 0

    def line(self) -> bytes:
        """The bytes up to the next newline, which is passed over."""
        searched = 0
        while (end := self._piece.find(b"\n", self._at + searched)) < 0:
            searched = len(self._piece) - self._at
            if searched > LINE_LIMIT_BYTES:
                raise PickleSyntaxError(f"the text at {self.place} of the pickle is longer than {LINE_LIMIT_BYTES} bytes")
            self._more(searched + 1)
        text = self._piece[self._at : end]
        self._at = end + 1
        return text

    def _more(self, count: int) -> None:
        """Brings at least ``count`` bytes into the piece."""
        place = self.place
        if count > self._end - place:
            raise PickleSyntaxError(f"the pickle ends at {self._end}; {count} bytes at {place} were expected")
        wanted = min(max(count, PIECE_BYTES), self._end - place)
        self._piece = self._fetch(place, wanted)
        self._base, self._at = place, 0
        if len(self._piece) < count:
            raise PickleSyntaxError(f"the file ended at {place + len(self._piece)}, within the pickle")
