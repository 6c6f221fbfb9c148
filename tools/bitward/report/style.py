"""Colour, if the reader can see it. Four colours need no library."""

from __future__ import annotations

import os
from typing import TextIO

from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Style:
    """Wraps text into terminal colours, or leaves it alone."""

    colour: bool = False

    @classmethod
    def of(cls, stream: TextIO) -> Style:
        """Colour only on a terminal that can do it and whose user did not refuse it (https://no-color.org)."""
        return cls(stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") != "dumb")

    def _wrap(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def good(self, text: str) -> str:
        return self._wrap("32", text)

    def warn(self, text: str) -> str:
        return self._wrap("33", text)

    def bad(self, text: str) -> str:
        return self._wrap("31", text)

    def strong(self, text: str) -> str:
        return self._wrap("1", text)

    def dim(self, text: str) -> str:
        return self._wrap("2", text)


PLAIN = Style()
