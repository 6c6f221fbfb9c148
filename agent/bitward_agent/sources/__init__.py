"""Where good bytes come from when parity is not enough. A source is never believed: each block is held against its leaf.

A *place* is where a kind of source keeps files (a folder, a server, a bucket); its files are read by ranges. ``copies.CopySource`` makes
a *source* of one file's blocks out of any place: it knows how blocks are found in another copy, the place only how bytes are got.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Protocol

from bitward_agent.sources.limits import Meter
from bitward_formats.blocks import Block

Range = tuple[int, int]
"""Half-open, in bytes of a file."""


class Way(Enum):
    """How a block may be found in another copy."""

    SAME_PLACE = "at the same offset"
    SAME_TENSOR = "in the tensor of the same name"


class Source(Protocol):
    """Something that may hold good copies of one file's blocks."""

    @property
    def name(self) -> str:
        """As it may be shown: without credentials."""

    @property
    def is_local(self) -> bool:
        """Whether reading from it again costs nothing; else what it gave is kept."""

    @property
    def meter(self) -> Meter:
        """What was read so far."""

    def ways(self, file_bytes: int) -> Sequence[Way]:
        """How blocks of a file of that many bytes may be found here, best first. Raises SourceError."""

    def fetch(self, blocks: Sequence[Block], way: Way) -> Iterator[tuple[Block, bytes]]:
        """What may be the blocks' bytes, in any order; nothing for those it does not have. Only these ranges are read.

        Raises:
            SourceError: it can give no more.
        """

    def close(self) -> None:
        """Let go of files and connections."""


class RangedFile(Protocol):
    """A file somewhere, read by ranges."""

    @property
    def size(self) -> int | None:
        """Its bytes; ``None`` if the place does not say."""

    def read(self, ranges: Sequence[Range]) -> Iterator[tuple[Range, bytes]]:
        """Each range with its bytes, in any order; a range that the file does not have in full is left out. Raises SourceError."""

    def close(self) -> None:
        """Let go of it."""


class Place(Protocol):
    """A file or folder somewhere."""

    @property
    def name(self) -> str:
        """As it may be shown: without credentials."""

    @property
    def is_local(self) -> bool:
        """Whether its bytes come from this machine."""

    def open(self, relative: str, meter: Meter) -> RangedFile | None:
        """A file below the place, by its path with ``/``; with an empty path the place itself. ``None`` if there is no such file.

        Raises:
            SourceError: it cannot be told, or not be read.
        """

    def names(self, folder: str, meter: Meter) -> list[str]:
        """Names of the files in a folder below the place; empty if the place cannot list. Raises SourceError."""

    def close(self) -> None:
        """Let go of connections."""
