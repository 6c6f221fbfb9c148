"""Reading a binary header from its beginning on, a window at a time: numbers and strings of either byte order, nothing unbounded."""

from __future__ import annotations

from struct import Struct

from bitward_formats.errors import HeaderTooLargeError, HeaderTooShortError
from bitward_formats.readers.file_view import FileView

WINDOW_BYTES = 1 << 18

_U64 = {False: Struct("<Q"), True: Struct(">Q")}


class ByteCursor:
    """A place in the header of a file. ``limit_bytes`` is how long a header may be; ``big_endian`` may be set once it is known.

    Every method raises HeaderTooShortError where the file ends before what was asked for, HeaderTooLargeError where the limit does.
    """

    def __init__(self, view: FileView, limit_bytes: int) -> None:
        self.big_endian = False
        self._view = view
        self._limit = min(limit_bytes, view.size)
        self._window = b""
        self._base = 0
        self._at = 0

    @property
    def position(self) -> int:
        """Bytes from the beginning of the file."""
        return self._base + self._at

    def take(self, length: int) -> bytes:
        """The next bytes; ``length`` must have been bounded."""
        if len(self._window) - self._at < length:
            self._fill(length)
        self._at += length
        return self._window[self._at - length : self._at]

    def skip(self, length: int) -> None:
        """Passes over bytes without reading them."""
        self._check(length)
        self._at += length  # beyond the window, if need be: the next fill begins there

    def u32(self) -> int:
        """The next number of 32 bits."""
        return int.from_bytes(self.take(4), "big" if self.big_endian else "little")

    def u64(self) -> int:
        """The next number of 64 bits."""
        return int.from_bytes(self.take(8), "big" if self.big_endian else "little")

    def string(self, limit_bytes: int) -> bytes:
        """The next string: a length of 64 bits, then so many bytes."""
        length = self.u64()
        if length > limit_bytes:
            raise HeaderTooLargeError(f"the string at byte {self.position - 8} claims {length} bytes; the most is {limit_bytes}")
        return self.take(length)

    def skip_strings(self, count: int) -> None:
        """Passes over strings. Lists of tokens have hundreds of thousands, so those within a window go by in one loop."""
        self._check(8 * count)
        unpack = _U64[self.big_endian].unpack_from
        while count:
            window, at, end = self._window, self._at, len(self._window)
            while count and at + 8 <= end:
                length = unpack(window, at)[0]
                if length > end - at - 8:
                    break
                at += 8 + length
                count -= 1
            self._at = at
            if count:
                self.skip(self.u64())
                count -= 1

    def _check(self, length: int) -> None:
        if length <= self._limit - self.position:
            return
        if length <= self._view.size - self.position:
            raise HeaderTooLargeError(f"{length} bytes at byte {self.position} go beyond the {self._limit} that a header may have")
        raise HeaderTooShortError(f"{length} bytes are claimed at byte {self.position}; the file has {self._view.size}")

    def _fill(self, length: int) -> None:
        self._check(length)
        self._base, self._at = self.position, 0
        self._window = self._view.fetch(self._base, min(max(length, WINDOW_BYTES), self._limit - self._base))
        if len(self._window) < length:
            raise HeaderTooShortError(f"the file ended after {self._base + len(self._window)} of {self._view.size} bytes")
