"""Directories as units: which files belong, where their sidecars are, and the index that binds them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace

from bitward_agent.durable import atomic_file
from bitward_agent.errors import BitwardError, UnreadableError
from bitward_agent.findings import SidecarState, UnitReport
from bitward_agent.hub_cache import blob_of, is_hub_note
from bitward_agent.io import DISK, Disk, OpenFile
from bitward_formats.errors import SidecarError
from bitward_formats.frozen import dataclass
from bitward_formats.unit_index import UNIT_INDEX_NAME, UnitEntry, UnitIndex, build_unit_index, read_unit_index

_OURS = (".ward", ".ward-journal", ".ward-log", ".ward-seal", ".ward.new", ".ward-journal.new", ".ward-seal.new")


def is_ours(path: str) -> bool:
    """Whether a file is a sidecar, a journal, a log or a temporary file of ours, by its name."""
    return path.endswith(_OURS)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file of a unit. ``relative`` uses ``/`` and the file system's bytes (surrogateescape).

    ``shown`` is the name that people know it by, where that is another: a blob of a hub cache has one in a snapshot.
    """

    path: str
    relative: str
    sidecar: str
    shown: str = ""

    @property
    def name(self) -> str:
        return self.shown or self.path


@dataclass(frozen=True, slots=True)
class Listing:
    """What is in a directory; ``skipped`` are links, devices and the like, with the reason."""

    members: tuple[Member, ...]
    skipped: tuple[str, ...]


def sidecar_base(folder: str, sidecar_dir: str | None) -> str:
    """The folder under which a unit's sidecars lie, in the same structure as its files."""
    return os.path.join(sidecar_dir, os.path.basename(folder)) if sidecar_dir else folder


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: os.fsencode(entry.name)))


OnUnlisted = Callable[[OSError], None]


def _walk(folder: str, on_unlisted: OnUnlisted | None = None) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(relative path, entry) of all that is no directory. Not recursive: directories may be nested deeper than Python's stack."""
    open_folders = [("", _entries(folder))]
    while open_folders:
        prefix, entries = open_folders[-1]
        entry = next(entries, None)
        if entry is None:
            open_folders.pop()
        elif entry.is_dir(follow_symlinks=False):
            try:
                open_folders.append((f"{prefix}{entry.name}/", _entries(entry.path)))
            except OSError as error:
                if on_unlisted is None:
                    raise
                on_unlisted(error)
        else:
            yield prefix + entry.name, entry


def list_unit(folder: str, sidecar_dir: str | None = None, on_unlisted: OnUnlisted | None = None) -> Listing:
    """Every regular file below a directory but Bitward's own.

    Symbolic links are never followed, but for those of a snapshot in a hub cache that lead to a blob of the same repository: the blob is
    the file then, once. With ``on_unlisted``, directories below that cannot be listed are told to it and left out.

    Raises:
        UnreadableError: a directory cannot be listed.
    """
    base = sidecar_base(folder, sidecar_dir)
    members, skipped, links = [], [], []
    try:
        for relative, entry in _walk(folder, on_unlisted):
            if entry.is_symlink():
                blob = blob_of(entry.path)
                if blob is None or not _is_regular(blob):
                    skipped.append(f"{relative} ({'a symbolic link' if blob is None else 'its blob is gone'})")
                else:
                    links.append((relative, entry.path, blob))
            elif not entry.is_file(follow_symlinks=False):
                skipped.append(f"{relative} (not a regular file)")
            elif relative + ".ward" == UNIT_INDEX_NAME:
                skipped.append(f"{relative} (its sidecar would take the place of the directory's index)")
            elif is_hub_note(entry.path):
                skipped.append(f"{relative} (a note of the hub's own)")
            elif not is_ours(entry.name):
                members.append(Member(entry.path, relative, os.path.join(base, relative + ".ward")))
    except OSError as error:
        raise UnreadableError(f"{error.filename}: cannot list: {error.strerror}") from error
    known = {member.path: index for index, member in enumerate(members)}
    for relative, link, blob in links:
        index = known.get(blob)
        if index is None:
            known[blob] = len(members)
            members.append(_blob_member(blob, relative, link, sidecar_dir and base))
        elif "/snapshots/" not in members[index].shown:
            members[index] = replace(members[index], shown=link)
        else:
            skipped.append(f"{relative} (the same blob as {members[index].shown})")
    return Listing(tuple(members), tuple(skipped))


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _blob_member(blob: str, relative: str, link: str, base: str | None) -> Member:
    """A file of a snapshot. Its sidecar lies beside the blob, where every snapshot finds it, or under ``base``."""
    return Member(blob, relative, os.path.join(base, relative + ".ward") if base else blob + ".ward", link)


def index_path(folder: str, sidecar_dir: str | None) -> str:
    """Where a unit's index is."""
    return os.path.join(sidecar_base(folder, sidecar_dir), UNIT_INDEX_NAME)


def write_index(path: str, entries: list[UnitEntry], protected_ns: int, disk: Disk = DISK) -> bytes:
    """Write a unit's index; returns the unit root."""
    data, root = build_unit_index(entries, protected_ns)
    with atomic_file(path, disk) as target:
        target.write_all(data, 0)
    return root


def read_index(path: str, disk: Disk = DISK) -> UnitIndex | str:
    """A unit's index, or in words why there is none to be had."""
    if not os.path.lexists(path):
        return ""
    try:
        with OpenFile(path, disk=disk) as file:
            return read_unit_index(file.read, file.state().size)
    except (SidecarError, BitwardError) as error:
        return str(error)


def index_damage(path: str, index: UnitIndex, disk: Disk = DISK) -> bool:
    """Whether the index on disk is not exactly what it should be."""
    whole, _ = build_unit_index(index.entries, like=index.superblock)
    with OpenFile(path, disk=disk) as file:
        return file.read(0, len(whole) + 1) != whole


def heal_index(path: str, index: UnitIndex, disk: Disk = DISK) -> None:
    """Write an index as it was, over a damaged one that could still be read."""
    with atomic_file(path, disk) as target:
        target.write_all(build_unit_index(index.entries, like=index.superblock)[0], 0)


@dataclass(frozen=True, slots=True)
class UnitCheck:
    """A unit as it is now: its files, those that the index knows and that are gone, the report, and the roots that the index binds."""

    listing: Listing
    missing: tuple[Member, ...]
    report: UnitReport
    roots: dict[str, str]

    def report_on(self, found: dict[str, str]) -> UnitReport:
        """The report, with the files whose sidecar has another root; ``found`` maps relative paths to roots, empty if unknown."""
        differing = sorted(name for name, root in found.items() if root and self.roots.get(name, root) != root)
        if not differing:
            return self.report
        message = "files were protected anew by themselves: if that was meant, protect the directory again"
        return replace(self.report, mismatched=tuple(differing), message="; ".join(filter(None, (self.report.message, message))))


def _gone_member(folder: str, name: str, base: str, sidecar_dir: str | None) -> Member:
    path = os.path.join(folder, name)
    blob = blob_of(path)
    if blob is not None:
        return _blob_member(blob, name, path, sidecar_dir and base)
    return Member(path, name, os.path.join(base, name + ".ward"))


def check_unit(folder: str, sidecar_dir: str | None = None, *, heal: bool = False, disk: Disk = DISK) -> UnitCheck:
    """Hold a directory against its index. With ``heal`` a damaged index that can still be read is written anew."""
    try:
        listing = list_unit(folder, sidecar_dir)
    except UnreadableError as error:
        return UnitCheck(Listing((), ()), (), UnitReport(folder, "", SidecarState.MISSING, message=str(error)), {})
    path = index_path(folder, sidecar_dir)
    index = read_index(path, disk)
    present = {member.relative for member in listing.members}
    if isinstance(index, str):
        state = SidecarState.DAMAGED if index else SidecarState.MISSING
        message = index or "no index of the directory: whether files are missing cannot be told; 'bitward protect' makes one"
        return UnitCheck(listing, (), UnitReport(folder, "", state, skipped=listing.skipped, message=message), {})
    known = {os.fsdecode(entry.path) for entry in index.entries}
    state, message = SidecarState.INTACT, ""
    if index_damage(path, index, disk):
        state, message = SidecarState.DAMAGED, "the directory's index is damaged but still readable: 'bitward repair' heals it"
        if heal:
            try:
                heal_index(path, index, disk)
                state, message = SidecarState.HEALED, "the directory's index was damaged and is whole again"
            except BitwardError as error:
                message = f"the directory's index is damaged and could not be healed: {error}"
    base = sidecar_base(folder, sidecar_dir)
    missing = sorted(known - present)
    gone = tuple(_gone_member(folder, name, base, sidecar_dir) for name in missing)
    report = UnitReport(
        folder,
        index.superblock.root.hex(),
        state,
        tuple(missing),
        tuple(sorted(present - known)),
        skipped=listing.skipped,
        message=message,
    )
    return UnitCheck(listing, gone, report, {os.fsdecode(entry.path): entry.root.hex() for entry in index.entries})
