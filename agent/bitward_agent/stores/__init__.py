"""Places that hold many checkpoints: buckets and folders, listed in order a page at a time, and read by ranges.

A *source* gives good bytes for one damaged file; a *store* is looked through as a whole. Keys are what the store calls its objects, and are
never turned into paths of this machine but by ``stores.folder``, which follows no link.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from bitward_agent.io import OpenFile
from bitward_agent.sources.limits import Meter
from bitward_formats.frozen import dataclass

TAG_LIMIT_CHARACTERS = 256
"""Of an entity tag or version; what is longer is cut, and then still differs where it matters: real ones are digests or numbers."""


@dataclass(frozen=True, slots=True)
class ObjectState:
    """What tells whether an object was exchanged: bytes, the store's own mark of its contents (entity tag, generation, inode), and time.

    ``tag`` is empty and ``mtime_ns`` 0 where the store does not say.
    """

    size: int
    tag: str
    mtime_ns: int

    @property
    def mark(self) -> str:
        """All of it in one line, to be kept and compared."""
        return f"{self.size}/{self.mtime_ns}/{self.tag}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a listing."""

    key: str
    state: ObjectState


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A part of a store that could not be listed, and why; what lies there is not known."""

    key: str
    message: str


def order_of(key: str) -> bytes:
    """Keys are in the order of their UTF-8 bytes, as S3 lists them."""
    return key.encode("utf-8", "surrogateescape")


class Store(Protocol):
    """A prefix of a bucket, or a folder."""

    @property
    def name(self) -> str:
        """As it may be shown: without credentials."""

    @property
    def identity(self) -> str:
        """The name, with what else tells it from another store that has the same one. Raises SourceError: the settings cannot be read."""

    def entries(self) -> Iterator[Entry | Unlisted]:
        """Everything below the prefix, in the order of ``order_of``; memory is that of a page (of a folder, where there are no pages).

        Raises:
            SourceError: the listing cannot go on.
        """

    def entries_below(self, folder: str) -> Iterator[Entry | Unlisted]:
        """The same for the keys that begin with ``folder``, which ends with a slash. Raises SourceError."""

    def state(self, key: str) -> ObjectState | None:
        """What the object is now, or ``None`` if there is none. Raises SourceError."""

    def open(self, key: str, state: ObjectState, meter: Meter, ahead: int) -> OpenFile:
        """An object to be read, as long as it is the one of ``state``; ``ahead`` requests are made before their bytes are asked for.

        Raises:
            SourceMovedError: it is another one now. Reading raises it as well.
            SourceError, UnreadableError: it cannot be read.
        """

    def shown(self, key: str) -> str:
        """The address of an object, as it may be shown."""

    def close(self) -> None:
        """Let go of connections."""
