"""What the file system of an open file tells of writes: whether its times can be believed, and whether it writes pages back.

A verdict that is remembered by times needs a file system that moves the change time with every write and keeps it for as long as an inode
number means the same file. Those that are known to do so are listed, and no others are believed: FAT keeps no change time of its own;
of squashfs, ISO 9660 or EROFS another image with the same numbers and times may be mounted at the same device; network file systems
and FUSE say what somebody else tells them.

The type is asked for by the mount that the file was opened through (proc_pid_fdinfo(5), "mnt_id"; proc_pid_mountinfo(5)). The device number
will not do: btrfs and overlayfs show another one in ``stat`` than there.
"""

from __future__ import annotations

import os
from contextlib import suppress

from bitward_agent.gate.identity import FileIdentity, identity_of

_BELIEVED = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "overlay", "tmpfs"})
_WRITE_BACK = frozenset({"ext4", "xfs", "btrfs", "f2fs"})
"""Those on which a page that was written back can be stored to through a map only after a fault, which moves the times. On tmpfs nothing is
written back; overlayfs syncs no lower files; of the others it is not known."""


def type_of_mount(mountinfo: str, mount_id: int) -> str:
    """The file system's type of one mount in the text of ``mountinfo``, "" if it is not there: it was opened in another name space."""
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        if dash and before.split(" ", 1)[0] == str(mount_id):
            return after.split(" ", 1)[0]
    return ""


def type_of_open_file(fd: int) -> str:
    """The type of the file system of a descriptor, as in ``mountinfo``; "" where that cannot be told."""
    with suppress(OSError, ValueError):
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            return type_of_mount(file.read(), int(fields.get("mnt_id", "-1")))
    return ""


def type_at(path: str) -> str:
    """As :func:`type_of_open_file`, for what has this name; links are not followed."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return type_of_open_file(fd)
    finally:
        os.close(fd)


def why_not_believed(kind: str) -> str:
    """Why the times of files on a file system of this type prove nothing, or ""."""
    if kind in _BELIEVED:
        return ""
    return f"times on {kind} need not tell of every change" if kind else "the type of its file system cannot be told"


def is_written_back(fd: int, kind: str) -> bool:
    """Write back what is dirty of a file, where that makes every later write move its times, by whatever descriptor or map.

    Any reader may ask for it (fdatasync(2)).
    """
    if kind not in _WRITE_BACK:
        return False
    try:
        os.fdatasync(fd)
    except OSError:
        return False
    return True


def identity_at(path: str) -> FileIdentity | None:
    """The identity of what has this name; links are not followed."""
    try:
        return identity_of(os.lstat(path))
    except OSError:
        return None
