"""Which of the files that a process maps are checkpoints with sidecars, and opening the very file that is mapped.

A name proves nothing: the file may have been deleted or replaced since, or the process may live in another mount namespace. Device and
inode decide. The kernel's maps name a device of their own kind on file systems that stack or share devices (overlayfs, Btrfs: major
number 0); there the inode of the file of that name decides.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable

from bitward_agent.errors import UnreadableError
from bitward_agent.io import DISK, OpenFile, sidecar_path
from bitward_agent.live.maps import MappedFile, mapped_files
from bitward_agent.live.memory import ProcessMemory
from bitward_agent.verify import OpenPair, checked_sidecar
from bitward_formats.frozen import dataclass


@dataclass(frozen=True, slots=True)
class LiveFile:
    """A mapped file that has a sidecar. ``path`` is its name, ``shown`` what people call it; both are as this process sees them.

    ``root`` is "" or, for a process in another mount namespace, ``/proc/PID/root``: where the sidecar was found.
    """

    mapped: MappedFile
    path: str
    sidecar: str
    shown: str
    root: str = ""


def _is_same(status: os.stat_result, mapped: MappedFile, name: str) -> bool:
    """Whether what has this name and status is the mapped file. Inodes of devices without a number of their own need the name as well."""
    device = (os.major(status.st_dev), os.minor(status.st_dev))
    is_there = device == mapped.device or (mapped.device[0] == 0 and name in mapped.names)
    return is_there and status.st_ino == mapped.inode and stat.S_ISREG(status.st_mode)


def _status(path: str) -> os.stat_result | None:
    with contextlib.suppress(OSError, ValueError):
        return os.stat(path)
    return None


def find_live_files(memory: ProcessMemory, sidecar_dir: str | None) -> tuple[LiveFile, ...]:
    """All mapped files beside which, or in ``sidecar_dir``, a sidecar lies."""
    found = []
    for mapped in mapped_files(memory.maps()):
        root, name = _named_with_sidecar(memory, mapped, sidecar_dir)
        if name:
            found.append(LiveFile(mapped, name, _ward_of(name, sidecar_dir, root), name, root))
    return tuple(found)


def _ward_of(name: str, sidecar_dir: str | None, root: str) -> str:
    return sidecar_path(name, sidecar_dir) if sidecar_dir else sidecar_path(root + name)


def _named_with_sidecar(memory: ProcessMemory, mapped: MappedFile, sidecar_dir: str | None) -> tuple[str, str]:
    """(root, name) of the first of the file's names that has a sidecar: names that still lead to the file come first."""
    roots = ("", memory.root) if not sidecar_dir else ("",)
    candidates = [(root, name) for root in roots for name in mapped.names if os.path.lexists(_ward_of(name, sidecar_dir, root))]
    for root, name in candidates:
        status = _status(root + name)
        if status is not None and _is_same(status, mapped, name):
            return root, name
    return candidates[0] if candidates else ("", "")


def match_live_files(
    memory: ProcessMemory, members: Iterable[tuple[str, str, str]]
) -> tuple[tuple[LiveFile, ...], tuple[tuple[str, str, str], ...]]:
    """What the process maps of some files, given as (path, sidecar, shown name); and those of them that it does not map."""
    files = mapped_files(memory.maps())
    found, absent = [], []
    for path, sidecar, shown in members:
        status = _status(path)
        # The file itself first; then what was called so when it was mapped: a deleted file, or an older one in whose place it stands.
        same = [one for one in files if status is not None and _is_same(status, one, path)]
        older = [one for one in files if one not in same and path in one.names]
        found += [LiveFile(one, path, sidecar, shown) for one in same + older]
        if not same and not older:
            absent.append((path, sidecar, shown))
    return tuple(found), tuple(absent)


def open_live_pair(memory: ProcessMemory, live: LiveFile) -> OpenPair:
    """The mapped file and its sidecar, both open.

    Raises:
        BitwardError, FormatError: why not.
    """
    file = _open_mapped(memory, live)
    try:
        ward = _open_ward(live)
        try:
            sidecar, lost = checked_sidecar(ward)
        except BaseException:
            ward.close()
            raise
    except BaseException:
        file.close()
        raise
    return OpenPair(file, ward, sidecar, lost, file.state())


def _open_mapped(memory: ProcessMemory, live: LiveFile) -> OpenFile:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW
    for name in dict.fromkeys((live.path, *live.mapped.names)):
        for root in ("", memory.root):
            status = _status(root + name)
            if status is None or not _is_same(status, live.mapped, name):
                continue
            with contextlib.suppress(OSError):
                fd = os.open(root + name, flags)
                if _is_same(os.fstat(fd), live.mapped, name):
                    return OpenFile.adopt(live.path, fd, DISK)
                os.close(fd)
    try:
        fd = memory.mapped_fd(live.mapped.mapping)
    except OSError as error:
        told = "the file that it maps was deleted or replaced, or lies in another mount namespace: only root can reach it"
        raise UnreadableError(f"{live.path}: {told} ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode) or os.fstat(fd).st_ino != live.mapped.inode:
        os.close(fd)
        raise UnreadableError(f"{live.path}: is not mapped there any more")
    return OpenFile.adopt(live.path, fd, DISK)


def _open_ward(live: LiveFile) -> OpenFile:
    if not live.root:
        return OpenFile(live.sidecar)
    try:  # below a link of the kernel's, which the other way of opening would not follow
        fd = os.open(live.sidecar, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise UnreadableError(f"{live.sidecar}: cannot open: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UnreadableError(f"{live.sidecar}: not a regular file")
    return OpenFile.adopt(live.sidecar, fd, DISK)


def is_named(live: LiveFile, pair: OpenPair) -> bool:
    """Whether the file's path, as this process sees it, still leads to what is mapped."""
    status = _status(live.path) if not live.root else None
    return status is not None and (status.st_dev, status.st_ino) == (pair.state.device, pair.state.inode)


def is_deleted(pair: OpenPair) -> bool:
    """Whether no name leads to the file any more, wherever."""
    return os.fstat(pair.file.fd).st_nlink == 0


def may_write(pair: OpenPair) -> str:
    """Why nothing should be written to a file that nobody named, or "".

    A process chooses what it maps. Only who could write the file anyway may have made the sidecar that says what belongs into it.
    """
    owner, maker = os.fstat(pair.file.fd).st_uid, os.fstat(pair.ward.fd).st_uid
    if maker in (owner, 0, os.geteuid()):
        return ""
    return f"its sidecar belongs to user {maker}, the file to {owner}: name the file to repair it"

