"""What a reader is given: one file, and on request the files beside it.

Readers never open a file. The agent hands them these values; ``fetch`` reads, and what it raises goes through a reader untouched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Protocol

from bitward_formats.frozen import dataclass

Fetch = Callable[[int, int], bytes]
"""(offset, length) -> bytes of the file; fewer only where the file ends."""


class Neighbours(Protocol):
    """The files in the same folder: formats that split themselves (external data, shards) keep their index beside their data."""

    def names(self) -> list[str]:
        """Names of the regular files of the folder, sorted; the file itself is among them."""
        ...

    def open(self, name: str) -> FileView | None:
        """One of them by its name, without a folder in it; ``None`` if there is no such regular file or it cannot be read.

        The view is valid as long as the one it came from.
        """
        ...


class Alone:
    """No files beside it: streams, remote files, files in memory."""

    def names(self) -> list[str]:
        """None."""
        return []

    def open(self, name: str) -> FileView | None:  # noqa: ARG002 - the protocol's signature
        """None."""
        return None


@dataclass(frozen=True, slots=True)
class FileView:
    """A file as a reader sees it: its ``name`` (with or without folders before it), its ``size`` in bytes, and how to read it."""

    name: str
    size: int
    fetch: Fetch
    neighbours: Neighbours = field(default_factory=Alone)
