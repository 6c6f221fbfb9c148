"""What is below the watches, by a walk, against what the store knows: new, changed, gone, out of reach.

The rules are those of ``units.list_unit``: no symbolic link is followed, FIFOs, devices and Bitward's own files are left out. Nothing is
opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from bitward_agent.daemon.config import WatchConfig
from bitward_agent.daemon.facts import UnitRecord
from bitward_agent.daemon.pace import never
from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """A file that belongs to a watch. ``shown`` is its name to people; ``has_sidecar``: something lies where its sidecar belongs."""

    path: str
    watch: str
    relative: str
    sidecar: str
    shown: str
    size: int
    mtime_ns: int
    inode: int
    has_sidecar: bool

    def is_changed_since(self, record: UnitRecord) -> bool:
        """Whether size, time or inode are not those that were seen last."""
        return (self.size, self.mtime_ns, self.inode) != (record.seen_size, record.seen_mtime_ns, record.seen_inode)


@dataclass(frozen=True, slots=True)
class Walk:
    """What one watch holds. ``device`` is 0 where its path is not to be had; ``skipped`` are files left out and folders that could not
    be listed, with the reason; ``unlisted`` those folders' paths."""

    watch: str
    device: int
    found: tuple[Found, ...]
    skipped: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """``gone``: their files were removed. ``unreachable``: their watch's path, file system or folder is out of reach, so nothing is known
    of them and they are to be kept. ``strays`` belong to no watch any more."""

    new: tuple[Found, ...]
    changed: tuple[Found, ...]
    gone: tuple[UnitRecord, ...]
    unreachable: tuple[UnitRecord, ...]
    strays: tuple[UnitRecord, ...]


def walk(watch: WatchConfig, stop: Callable[[], bool] = never) -> Walk:
    """List a watch.

    Raises:
        Stopped: ``stop`` said so.
    """
    raise NotImplementedError


def look(watch: WatchConfig, path: str) -> Found | None:
    """One path after an event: what it is now, or ``None`` if there is no file that belongs to the watch."""
    raise NotImplementedError


def compare(walks: Sequence[Walk], records: Iterable[UnitRecord], devices: Mapping[str, int]) -> Reconciliation:
    """Hold the walks of all watches against the records.

    Args:
        devices: for each watch's path the device that held files of it when it was last walked; see ``devices_of``. If all files of a
            watch are gone and the device is another one or was never seen, a mount is missing.
    """
    raise NotImplementedError


def devices_of(walks: Sequence[Walk], before: Mapping[str, int]) -> dict[str, int]:
    """What to give to the next ``compare``."""
    raise NotImplementedError
