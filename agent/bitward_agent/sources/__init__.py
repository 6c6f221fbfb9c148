"""Where good bytes come from when parity is not enough. A source is never believed: each block is held against its leaf."""

from __future__ import annotations

from typing import Protocol

from bitward_formats.blocks import Block


class Source(Protocol):
    """Something that may hold good copies of blocks."""

    name: str

    def candidates(self, block: Block) -> list[bytes]:
        """Bytes that may be the block's, best first; only these ranges are read. Empty if the source has nothing."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...
