"""Scrubbing one file: every block against its leaf at a given pace, to be stopped at any chunk and taken up again there.

A verdict is given only of a whole file. While everything is intact no NumPy is loaded and one buffer of 1 MiB is used. At the first
block that differs the file is verified anew as ``bitward verify`` does it, at the same pace.
"""

from __future__ import annotations

from collections.abc import Callable

from bitward_agent.daemon.facts import UnitRecord
from bitward_agent.daemon.pace import TokenBucket
from bitward_agent.findings import FileVerification
from bitward_agent.io import DISK, Disk
from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class ScrubPosition:
    """How far an unfinished scrub came, and of what: it counts only for a file and a sidecar that are still the same.

    ``position_bytes`` is where in the file it goes on (the file's length: only the sidecar's pages are left). ``root`` is the sidecar's
    file root in hex. ``suspect``: a block differed, so that the whole file is to be verified.
    """

    position_bytes: int = 0
    size: int = 0
    mtime_ns: int = 0
    root: str = ""
    suspect: bool = False

    @classmethod
    def of_record(cls, record: UnitRecord) -> ScrubPosition:
        """From what the store keeps: ``scrub_position_bytes``, ``seen_size``, ``seen_mtime_ns``, ``root`` and ``suspect``."""
        return cls(record.scrub_position_bytes, record.seen_size, record.seen_mtime_ns, record.root, record.suspect)


@dataclass(frozen=True, slots=True)
class ScrubProgress:
    """A scrub that was stopped: where it is, and how many bytes of the file this run read."""

    path: str
    at: ScrubPosition
    total_bytes: int
    read_bytes: int


Tell = Callable[[ScrubPosition, int], None]
"""Called after each chunk with the position and the file's length; for STATUS, the watchdog and the store."""


def scrub_file(
    path: str,
    sidecar_path: str,
    start: ScrubPosition = ScrubPosition(),  # noqa: B008 - a frozen value
    *,
    pace: TokenBucket,
    stop: Callable[[], bool],
    tell: Tell | None = None,
    disk: Disk = DISK,
) -> ScrubProgress | FileVerification:
    """Scrub from ``start`` to the end, or until ``stop`` says so.

    Damage, changes and whatever cannot be told come back as a verification, never as an exception.
    """
    raise NotImplementedError
