"""What is below the watches, by a walk, against what the store knows: new, changed, gone, out of reach.

The rules are those of ``units.list_unit``: no symbolic link is followed, FIFOs, devices and Bitward's own files are left out. Nothing is
opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from bitward_agent.daemon.config import WatchConfig
from bitward_agent.daemon.facts import UnitRecord
from bitward_agent.daemon.pace import Stopped, never
from bitward_agent.errors import UnreadableError
from bitward_agent.hub_cache import is_hub_note
from bitward_agent.io import resolve, sidecar_path
from bitward_agent.units import Member, is_ours, list_unit, sidecar_base
from bitward_formats.checksums import is_hub_repository
from bitward_formats.frozen import dataclass
from bitward_formats.unit_index import UNIT_INDEX_NAME


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
    if resolve(watch.path) != watch.path:
        return Walk(watch.path, 0, (), (f"{watch.path} (a symbolic link is in its place, which is not followed)",))
    try:
        state = os.lstat(watch.path)
    except OSError as error:
        return Walk(watch.path, 0, (), (f"{watch.path} ({error.strerror})",))
    if not stat.S_ISDIR(state.st_mode):
        found = look(watch, watch.path)
        skipped = () if found else (f"{watch.path} (not a regular file)",)
        return Walk(watch.path, state.st_dev, (found,) if found else (), skipped)
    left_out, unlisted = list[str](), list[str]()

    def on_unlisted(error: OSError) -> None:
        if error.errno != errno.ENOENT:  # removed just now
            unlisted.append(str(error.filename))
            left_out.append(f"{error.filename} (cannot list: {error.strerror})")

    try:
        listing = list_unit(watch.path, watch.sidecar_dir, on_unlisted)
    except UnreadableError as error:
        return Walk(watch.path, 0, (), (str(error),))
    files = []
    for member in listing.members:
        if stop():
            raise Stopped
        if not _lies_below(member.path, watch.path):
            left_out.append(f"{member.name} (its blob lies outside of what is watched: watch the repository's folder)")
        elif (found := _found(watch, member)) is not None:
            files.append(found)
    return Walk(watch.path, state.st_dev, tuple(files), (*listing.skipped, *left_out), tuple(unlisted))


def _found(watch: WatchConfig, member: Member) -> Found | None:
    """A listed file with its state, unless it is not wanted or went meanwhile."""
    shown = os.path.relpath(member.name, watch.path) if _lies_below(member.name, watch.path) else member.relative
    if not (watch.wants(member.relative) or watch.wants(shown)):
        return None
    try:
        state = os.lstat(member.path)
    except OSError:
        return None
    if not stat.S_ISREG(state.st_mode):
        return None
    where = (member.path, watch.path, member.relative, member.sidecar, member.name)
    return Found(*where, state.st_size, state.st_mtime_ns, state.st_ino, os.path.lexists(member.sidecar))


def look(watch: WatchConfig, path: str) -> Found | None:
    """One path after an event: what it is now, or ``None`` if there is no file that belongs to the watch.

    Blobs of a hub cache are left to the walk, which alone knows their names; and a folder is none: all below it is for a walk.
    """
    name = os.path.basename(path)
    if is_ours(name) or resolve(path) != path or is_hub_note(path) or is_in_hub_cache(path):
        return None
    if path == watch.path:
        return _found(replace(watch, include=("*",), exclude=()), Member(path, name, sidecar_path(path, watch.sidecar_dir)))
    if not _lies_below(path, watch.path):
        return None
    relative = os.path.relpath(path, watch.path)
    if relative + ".ward" == UNIT_INDEX_NAME:
        return None
    sidecar = os.path.join(sidecar_base(watch.path, watch.sidecar_dir), relative + ".ward")
    return _found(watch, Member(path, relative, sidecar))


def found_now(watch: WatchConfig, path: str, record: UnitRecord | None) -> Found | None:
    """What is at a path now. A blob of a hub cache that a walk has found before is looked at as it was found."""
    if record is None or not is_in_hub_cache(path):
        return look(watch, path)
    try:
        state = os.lstat(path)
    except OSError:
        return None
    where = (path, watch.path, os.path.relpath(path, watch.path), record.sidecar, path)
    return Found(*where, state.st_size, state.st_mtime_ns, state.st_ino, os.path.lexists(record.sidecar))


def is_in_hub_cache(path: str) -> bool:
    """Whether a path lies in a repository of a hub cache, where files are blobs and names are links."""
    parts = path.split("/")
    return any(is_hub_repository(above) and name in ("blobs", "snapshots") for above, name in pairwise(parts))


def _lies_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def compare(walks: Sequence[Walk], records: Iterable[UnitRecord], devices: Mapping[str, int]) -> Reconciliation:
    """Hold the walks of all watches against the records.

    Args:
        devices: for each watch's path the device that held files of it when it was last walked; see ``devices_of``. If all files of a
            watch are gone and the device is another one or was never seen, a mount is missing.
    """
    by_watch = {one.watch: one for one in walks}
    found: dict[str, Found] = {}
    for one in sorted(walks, key=lambda walk: len(walk.watch)):
        found |= {file.path: file for file in one.found}  # where watches lie in each other, the deepest has the file
    known = {record.path: record for record in records}
    gone, unreachable, strays = [], [], []
    for record in known.values():
        if record.path in found:
            continue
        its_walk = by_watch.get(record.watch)
        if its_walk is None:
            strays.append(record)
        elif _is_out_of_reach(record, its_walk, devices.get(record.watch, 0)):
            unreachable.append(record)
        else:
            gone.append(record)
    new = tuple(file for path, file in found.items() if path not in known)
    changed = tuple(file for path, file in found.items() if path in known and file.is_changed_since(known[path]))
    return Reconciliation(new, changed, tuple(gone), tuple(unreachable), tuple(strays))


def _is_out_of_reach(record: UnitRecord, its_walk: Walk, device: int) -> bool:
    if not its_walk.device or any(_lies_below(record.path, folder) for folder in its_walk.unlisted):
        return True
    return not its_walk.found and its_walk.device != device


def devices_of(walks: Sequence[Walk], before: Mapping[str, int]) -> dict[str, int]:
    """What to give to the next ``compare``."""
    return dict(before) | {one.watch: one.device for one in walks if one.found}
